"""An exception inside of the actor gets a note that tells what the actor was given."""

from __future__ import annotations

import warnings
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
from gym.spaces import Box, Dict, Discrete, Tuple
from torch import nn
from tqdm import tqdm

from rlplay.engine import BaseActorModule
from rlplay.engine.acting.actor_spec import form_in_words, note_obs
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


NOTE = "rlplay: obs['goal'] was 1 x 4 int64, values %d to 7; obs['position'] was 1 x 4 x 2 float32"
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
    assert sum("obs[" in note for note in caught.value.__notes__) == 1


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
    assert NOTE.replace("7", "3") % 3 in caught.value.__notes__


@pytest.mark.parametrize("dtype", [torch.uint8, torch.uint16, torch.int8, torch.bool, torch.bfloat16])
def test_any_dtype_can_be_told(dtype):
    name = str(dtype).removeprefix("torch.")
    values = ", values 1 to 1" if "int" in name else ""
    pair = torch.ones(2, 3).to(dtype), torch.ones(0).to(dtype)
    assert form_in_words(pair, "x") == f"x[0] was 2 x 3 {name}{values}; x[1] was 0 {name}"
    assert form_in_words(torch.ones(()).to(dtype), "x") == f"x was one {name}{values}"


def test_nothing_can_be_told_too():
    assert form_in_words({}, "obs") == "obs had no tensors"


class Named(NamedTuple):
    """An observation of the user's, whose `repr` is for tensors alone."""

    x: Any

    def __repr__(self) -> str:
        return f"{self.x.float().mean():.2f}"


class Fails(BaseActorModule):
    def forward(self, obs, **ignored):
        raise KeyError("mine")


def note_of(error, obs):
    note_obs(error, obs)
    return getattr(error, "__notes__", [])


def test_the_containers_of_the_user_are_not_asked():
    assert note_of(KeyError("mine"), Named(torch.ones(1, 4))) == ["rlplay: obs.x was 1 x 4 float32"]


class ManyEntries(ScriptedEnv):
    observation_space = Dict({f"entry {i}": Box(-1, 1, (), np.float32) for i in range(2000)})

    def _obs(self):
        return {f"entry {i}": np.float32(0) for i in range(2000)}


def test_of_many_entries_the_first_are_told():
    with pytest.raises(KeyError, match="mine") as caught:
        same.rollout([ManyEntries()], Fails(), 8)
    (note,) = [note for note in caught.value.__notes__ if "obs[" in note]
    assert len(note) < 500
    assert note.startswith("rlplay: obs['entry 0'] was 1 x 1 float32; ")
    assert note.count("float32") == 8
    assert note.endswith("; and 1992 more")


class NoName:
    """A key whose `repr` fails."""

    def __repr__(self) -> str:
        raise AttributeError("no name")


def test_an_observation_that_cannot_be_told_does_not_replace_the_error():
    assert note_of(KeyError("mine"), {NoName(): torch.ones(1, 4)}) == []


def test_a_named_tuple_comes_out_of_a_feed_with_its_error():
    class NamedEnv(ScriptedEnv):
        observation_space = Tuple((Box(-1, 1, (), np.float32),))

        def _obs(self):
            return Named(np.float32(0))

    with pytest.raises(KeyError, match="mine") as caught:
        same.rollout([NamedEnv()], Fails(), 8)
    assert any("obs.x was 1 x 1 float32" in note for note in caught.value.__notes__)
