"""The code in the README runs as it is printed there."""

import json
import re
from functools import partial
from pathlib import Path

import pytest
import torch

from rlplay.algo import a2c
from tests.support.fragments import Dense, random_fragment

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
LOOP, ACTOR, PAGE, TRACE, FASTER, REPLAY = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def loss_of(fragment, actor):
    _, _, info = actor(fragment.state.obs, hx=fragment.hx)
    return info["logits"].exp().mean() + info["value"].square().mean(), {}


@pytest.mark.parametrize("library", ["gym", "gymnasium"])
@pytest.mark.parametrize("engine", ["threaded", "same"])
def test_the_loop_of_the_readme_runs_word_for_word(library, engine, tmp_path, monkeypatch, capsys):
    pytest.importorskip(library)
    monkeypatch.chdir(tmp_path)
    names = {"torch": torch, "rl_algorithm_loss": loss_of}
    exec(ACTOR, names)
    loop = LOOP.replace("import gym\n", f"import {library} as gym\n").replace("rollout.threaded", f"rollout.{engine}")
    exec(loop, names)
    assert names["j"] == 99
    assert names["fragment"].state.obs.shape == (121, 8, 4)
    assert names["feed"].steps == 100 * 120 * 8

    if engine == "threaded":
        pytest.importorskip("matplotlib")
        exec(TRACE, names)
        assert {event["name"] for event in json.loads(Path("run.json").read_text())["traceEvents"]} >= {"training"}
        assert Path("run.png").stat().st_size
        assert "steps/s; collector: stepping" in capsys.readouterr().out
        names["feed"].close()
        exec(REPLAY, names)
        assert len(names["buffer"]) == 20 * 32 * 8
    names["feed"].close()


def test_the_page_of_the_readme_runs_and_is_short(capsys, monkeypatch):
    monkeypatch.setattr(torch, "set_num_threads", lambda n: None)  # of this process, that is
    assert len([line for line in PAGE.splitlines() if line and "import" not in line]) < 30
    names = {}
    exec(PAGE.replace("range(50)", "range(2)").replace("range(16)", "range(2)"), names)
    assert names["j"] == 1
    assert -2000 < float(capsys.readouterr().out.split()[-1]) < 0


def test_the_two_lines_of_the_readme_make_an_update(monkeypatch):
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager", fullgraph=True))
    actor = Dense()
    names = {"torch": torch, "a2c": a2c, "actor": actor}
    exec(FASTER, names)
    before = [x.clone() for x in actor.parameters()]
    names["loss_of"](random_fragment(), actor, gamma=0.99)[0].backward()
    names["optim"].step()
    assert not any(map(torch.equal, before, actor.parameters()))


def test_the_links_of_the_readme_lead_somewhere():
    anchors = {re.sub(r"[^a-z0-9]+", "-", title.lower()) for title in re.findall(r"^#+ (.*)$", README, re.MULTILINE)}
    for target in re.findall(r"\]\(([^)]+)\)", README):
        there = target[1:] in anchors if target.startswith("#") else (ROOT / target).exists()
        assert target.startswith("http") or there, target
