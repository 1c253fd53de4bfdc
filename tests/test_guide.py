"""The programs of the guide run as they are printed, each page in order, and its search finds what users look for."""

import json
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch

from tests.support.torchrun import run_by_torchrun

DOCS = Path(__file__).parent.parent / "docs"
PROGRAM = re.compile(r"^\.\. code-block:: python\n(?:   :class: (\w+)\n)?\n((?:   .*\n|\n)+)", re.MULTILINE)
NEEDS = {"log": ["tensorboard"], "video": ["pygame", "moviepy"], "performance": ["matplotlib"]}
"""Packages that a page needs beside those of the tests."""


def programs(path):
    """Return the programs of a page, each with its class: "torchrun", "ray", or an empty string."""
    found = PROGRAM.findall(path.read_text(encoding="utf-8"))
    return [(kind, textwrap.dedent(text)) for kind, text in found]


PAGES = [path for path in sorted(DOCS.rglob("*.rst")) if "reference" not in path.parts and programs(path)]


@pytest.mark.timeout(600)
@pytest.mark.parametrize("path", PAGES, ids=lambda path: path.stem)
def test_the_programs_of_a_page_run_in_order(path, tmp_path, monkeypatch):
    for package in ("gymnasium", *NEEDS.get(path.stem, [])):
        pytest.importorskip(package)
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "compile", lambda function: function)  # seconds of compiling, which its own tests do
    torch.manual_seed(0)
    names = {}
    for kind, text in programs(path):
        if kind == "torchrun":
            out = run_by_torchrun(text, tmp_path / "train.py", n_processes=2)
            assert out.count("the same weights everywhere") == 2, out
        elif not kind:
            exec(compile(text, path.name, "exec"), names)
    for feed in [names.get("feed"), *names.get("feeds", [])]:
        if feed is not None:
            feed.close()


@pytest.mark.ray
@pytest.mark.timeout(300)
def test_the_program_of_the_page_on_clusters_runs(tmp_path):
    pytest.importorskip("ray")
    (text,) = (text for kind, text in programs(DOCS / "guide/cluster.rst") if kind == "ray")
    done = subprocess.run([sys.executable, "-c", text], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 0, done.stderr


def test_every_recipe_has_a_program_and_a_line_with_its_title():
    page = (DOCS / "guide/how_do_i.rst").read_text(encoding="utf-8")
    listed = re.findall(r"^   (\w+)$", page, re.MULTILINE)
    assert len(listed) >= 15
    assert {DOCS / "guide" / f"{name}.rst" for name in listed} <= set(PAGES)
    titles = [(DOCS / "guide" / f"{name}.rst").read_text(encoding="utf-8").splitlines()[0] for name in listed]
    lines = re.findall(r"^\* `([^`<]+) <(\w+)\.rst>`__: \S", page, re.MULTILINE)
    assert lines == list(zip(titles, listed, strict=True))


def test_the_messages_of_the_page_of_troubles_are_those_of_the_engine():
    sources = "".join(path.read_text() for path in (DOCS.parent / "rlplay").rglob("*.py"))
    page = (DOCS / "guide/troubleshooting.rst").read_text(encoding="utf-8")
    messages = re.findall(r"^``(.*)``$", page, re.MULTILINE)
    assert len(messages) >= 4
    for message in messages:
        assert message in sources, message


@pytest.mark.timeout(600)
def test_the_documentation_is_built_without_a_warning_and_its_search_finds_what_users_look_for(tmp_path):
    for package in ("sphinx", "furo", "numpydoc"):
        pytest.importorskip(package)
    from snowballstemmer import stemmer

    command = [sys.executable, "-m", "sphinx", "-q", "-W", "--keep-going", str(DOCS), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    text = (tmp_path / "searchindex.js").read_text(encoding="utf-8")
    index = json.loads(text.removeprefix("Search.setIndex(").removesuffix(")"))
    stem = stemmer("english").stemWord
    for query in ("install", "quickstart", "checkpoint", "tensorboard", "video", "custom environment", "save"):
        pages = set(index["docnames"])
        for word in query.split():
            found = [index[where].get(stem(word), []) for where in ("terms", "titleterms")]
            numbers = [number for one in found for number in (one if isinstance(one, list) else [one])]
            pages &= {index["docnames"][number] for number in numbers}
        assert any(page.startswith("guide/") for page in pages), query
