"""An exception inside of the actor gets a note that tells what the actor was given."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from gym.spaces import Box, Dict, Discrete
from torch import nn
from tqdm import tqdm

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from tests.support.scripted import ScriptedEnv


class Goals(ScriptedEnv):
    """The goal leaves its space at the third step of an episode."""

    observation_space = Dict({"goal": Discrete(7), "position": Box(-1, 1, (2,), np.float32)})

    def _obs(self):
        return {"goal": 7 if self._now[1] == self.late else 3, "position": np.zeros(2, np.float32)}

    late = 2


class AtOnce(Goals):
    late = 0


class Embeds(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.goals = nn.Embedding(7, 2)

    def forward(self, obs, *, hx=None, **ignored):
        logits = self.goals(obs["goal"])
        return logits.argmax(-1), hx, {"logits": logits}


class Wide(Embeds):
    """Its layer is for another number of inputs."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, obs, *, hx=None, **ignored):
        return self.layer(obs["position"]).argmax(-1), hx, ()


NOTE = "rlplay: obs was {'goal': 1 x 4 int64, values %d to 7, 'position': 1 x 4 x 2 float32}"
ENGINES = {
    "same": lambda kind: next(same.rollout([kind() for _ in range(4)], Embeds(), 8)),
    "threaded": lambda kind: next(threaded.rollout([kind() for _ in range(4)], Embeds(), 8, lag=0)),
    "final": lambda kind: next(same.rollout([kind(length=2) for _ in range(4)], Embeds(), 8, final=True)),
    "evaluate": lambda kind: evaluate([kind() for _ in range(4)], Embeds()),
}


@pytest.mark.parametrize("kind", [Goals, AtOnce])
@pytest.mark.parametrize("play", ENGINES.values(), ids=ENGINES)
def test_the_note_tells_shapes_dtypes_and_the_range_of_integers(play, kind):
    with pytest.raises(IndexError, match="index out of range in self") as caught:
        play(kind)
    assert NOTE % 7 in caught.value.__notes__
    assert sum("obs was" in note for note in caught.value.__notes__) == 1


def test_it_comes_out_of_a_process():
    with pytest.raises(IndexError) as caught:
        single.rollout(AtOnce, Embeds(), 8, n_envs=4)
    assert NOTE % 7 in caught.value.__notes__


def test_a_compiled_step_has_it_too(monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # the compiler's progress bars have a thread that does not end
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the step must not become eager
        feed = same.rollout([Goals() for _ in range(4)], Embeds(), 8, compile=True)
    with feed, pytest.raises(Exception, match="out of") as caught:
        next(feed)
    assert NOTE % 7 in caught.value.__notes__


def test_an_array_has_no_braces_and_numbers_no_range():
    class Flat(ScriptedEnv):
        observation_space = Box(-1, 1, (2,), np.float32)

    class Narrow(BaseActorModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 2)

        def forward(self, obs, *, hx=None, **ignored):
            return self.layer(obs).argmax(-1), hx, ()

    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        same.rollout([Flat()], Narrow(), 8)
    assert "rlplay: obs was 1 x 1 x 2 float32" in caught.value.__notes__
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied") as caught:
        same.rollout([Goals() for _ in range(4)], Wide(), 8)
    assert (
        "rlplay: obs was {'goal': 1 x 4 int64, values 3 to 3, 'position': 1 x 4 x 2 float32}" in caught.value.__notes__
    )


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int8, torch.bool, torch.bfloat16])
def test_any_dtype_can_be_told(dtype):
    from rlplay.engine.acting.actor_spec import shown

    name = str(dtype).removeprefix("torch.")
    values = ", values 1 to 1" if "int" in name else ""
    assert repr(shown((torch.ones(2, 3).to(dtype), torch.ones(0).to(dtype)))) == f"(2 x 3 {name}{values}, 0 {name})"
    assert repr(shown(torch.ones(()).to(dtype))) == f"one {name}{values}"
