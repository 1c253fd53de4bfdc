"""What the README shows runs as it stands there."""

import re
from pathlib import Path

import pytest
import torch

README = (Path(__file__).parent.parent / "README.md").read_text()
LOOP, ACTOR, REPLAY = re.findall(r"```python\n(.*?)```", README, re.DOTALL)


def loss_of(fragment, actor):
    _, _, info = actor(fragment.state.obs, hx=fragment.hx)
    return info["logits"].exp().mean() + info["value"].square().mean(), {}


@pytest.mark.parametrize("library", ["gym", "gymnasium"])
@pytest.mark.parametrize("engine", ["threaded", "same"])
def test_the_loop_of_the_readme_runs_word_for_word(library, engine):
    pytest.importorskip(library)
    names = {"torch": torch, "rl_algorithm_loss": loss_of}
    exec(ACTOR, names)
    loop = LOOP.replace("import gym\n", f"import {library} as gym\n").replace("rollout.threaded", f"rollout.{engine}")
    exec(loop, names)
    assert names["j"] == 99
    assert names["fragment"].state.obs.shape == (121, 8, 4)
    assert names["feed"].steps == 100 * 120 * 8
    names["feed"].close()

    if engine == "threaded":
        exec(REPLAY, names)
        assert len(names["buffer"]) == 20 * 32 * 8
        names["feed"].close()


def test_the_links_of_the_readme_lead_somewhere():
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (Path(__file__).parent.parent / target).exists(), target
