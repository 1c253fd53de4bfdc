"""The code in the README runs as it is printed there, in the order in which it is printed."""

import json
import re
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", README, re.DOTALL)

LOOP = """\
import gym
import torch

from rlplay.engine.rollout.threaded import rollout

actor = Actor()  # a torch module with .reset and .step
optim = torch.optim.SGD(actor.parameters(), lr=1e-2)

# an infinite feed; each fragment is 120 steps long, from a batch of eight environments
feed = rollout([gym.make("CartPole-v1") for _ in range(8)], actor, n_steps=120)

for j, fragment in zip(range(100), feed):  # stop after 100 fragments
    loss, info = rl_algorithm_loss(fragment, actor)
    optim.zero_grad()
    loss.backward()
    optim.step()
"""
"""The loop that the project promises, word for word."""


@pytest.mark.parametrize("library", ["gym", "gymnasium"])
@pytest.mark.parametrize("engine", ["threaded", "same"])
def test_the_first_program_runs_as_it_is_printed_and_learns(library, engine, capsys):
    pytest.importorskip(library)
    assert LOOP in BLOCKS[0]
    program = BLOCKS[0].replace("import gym\n", f"import {library} as gym\n")
    torch.manual_seed(0)
    names = {}
    exec(program.replace("rollout.threaded", f"rollout.{engine}"), names)
    assert names["j"] == 99
    assert names["fragment"].state.obs.shape == (121, 8, 4)
    assert names["feed"].steps == 100 * 120 * 8
    names["feed"].close()
    first, last = map(int, re.findall(r"(\d+) steps at first, (\d+) at the end", capsys.readouterr().out)[0])
    assert 15 < first < 35
    assert last > 3 * first


def test_all_blocks_run_in_order(tmp_path, monkeypatch, capsys):
    pytest.importorskip("matplotlib")
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = {}
    for block in BLOCKS:
        exec(block, names)
        capsys.readouterr() if block is not BLOCKS[-1] else None
    assert {event["name"] for event in json.loads(Path("run.json").read_text())["traceEvents"]} >= {"training"}
    assert Path("run.png").stat().st_size
    assert "steps/s" in capsys.readouterr().out
    names["feed"].close()


def test_the_table_of_engines_has_their_defaults_of_lag():
    rows = re.findall(r"^\| `(\w+)`[^|]*\| (\d) \|", README, re.MULTILINE)
    assert {name for name, _ in rows} == {"same", "threaded", "single", "multi", "cluster"}
    for name, lag in rows:
        module = __import__(f"rlplay.engine.rollout.{name}", fromlist=["rollout"])
        assert module.rollout.__kwdefaults__["lag"] == int(lag), name


def test_the_readme_is_short():
    assert len(README.split()) < 1750


def test_the_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)]+)\)", README):
        name, _, anchor = target.partition("#")
        if target.startswith("http"):
            continue
        text = (ROOT / name).read_text(encoding="utf-8") if name.endswith(".md") else README
        titles = {re.sub(r"[^a-z0-9]+", "-", title.lower()) for title in re.findall(r"^#+ (.*)$", text, re.MULTILINE)}
        assert (ROOT / name).exists(), target
        assert not anchor or anchor in titles, target
