"""The form of the recurrent state is that of the fresh one, and its memory is its own: all else is an error."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, same, single, threaded
from rlplay.nested import Nested
from tests.support.scripted import ScriptedEnv


def count(width, dtype=torch.float32):
    return torch.zeros(1, width, 1, dtype=dtype)


class Remembers(BaseActorModule):
    """Returns a fresh recurrent state in a virtual step without one; else what `later` returns."""

    def __init__(self, fresh: Callable[[int], Nested], later: Callable[[int, bool], Nested]) -> None:
        super().__init__()
        self.fresh, self.later = fresh, later

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        width = fin.shape[1]
        new = self.fresh(width) if hx is None and virtual else self.later(width, virtual)
        return torch.zeros_like(fin, dtype=torch.int64), new, {"seen": fin.float()}


CHANGES = {
    "none in virtual steps": (lambda b: None, lambda b, virtual: None if virtual else count(b), "had no tensors"),
    "none in real steps": (count, lambda b, virtual: count(b) if virtual else None, "now it has no tensors"),
    "a leaf more": (lambda b: (count(b),), lambda b, virtual: (count(b), count(b)), r"now it has `hx\[0\].*hx\[1\]"),
    "a leaf less": (lambda b: (count(b), count(b)), lambda b, virtual: (count(b),), r"hx\[1\].*now it has `hx\[0\]"),
    "other names": (lambda b: {"h": count(b)}, lambda b, virtual: {"c": count(b)}, "'h'.*now it has.*'c'"),
    "another shape": (count, lambda b, virtual: count(b).expand(2, b, 1), r"\(1, 2, 1\).*now.*\(2, 2, 1\)"),
    "another kind of dtype": (lambda b: count(b, torch.int64), lambda b, virtual: count(b), "int64.*now.*float32"),
}


@pytest.mark.parametrize("engine", [same, threaded, episodic])
@pytest.mark.parametrize(("fresh", "later", "words"), CHANGES.values(), ids=CHANGES)
def test_a_recurrent_state_of_another_form_than_the_fresh_one_is_an_error(engine, fresh, later, words):
    options = {} if engine is episodic else {"n_steps": 8}
    with (
        engine.rollout([ScriptedEnv(), ScriptedEnv()], Remembers(fresh, later), **options) as feed,
        pytest.raises(ValueError, match=f"recurrent state has changed its form.*{words}.*`step` must return"),
    ):
        next(feed)


class KeepsItsState(BaseActorModule):
    """Writes its recurrent state into a tensor of its own, in an attribute or a buffer, and returns that."""

    def __init__(self, *, in_buffer):
        super().__init__()
        kept = torch.zeros(2, 1, 2)
        if in_buffer:
            self.register_buffer("kept", kept)
        else:
            self.kept = kept

    def forward(self, obs, *, fin, hx=None, **ignored):
        self.kept.copy_(1 if hx is None else hx["h"].mT + 1)
        return torch.zeros_like(fin, dtype=torch.int64), {"h": self.kept.mT}, ()


@pytest.mark.parametrize("in_buffer", [False, True])
@pytest.mark.parametrize("engine", [same, threaded])
def test_a_recurrent_state_that_later_steps_write_to_is_an_error(engine, in_buffer):
    with (
        engine.rollout([ScriptedEnv(), ScriptedEnv()], KeepsItsState(in_buffer=in_buffer), 8) as feed,
        pytest.raises(ValueError, match=r"returns as `hx` memory that it keeps.*as by `hx.clone\(\)`"),
    ):
        next(feed)


def test_a_recurrent_state_that_becomes_a_number_is_an_error():
    actor = Remembers(count, lambda b, virtual: 1.5)
    with (
        same.rollout([ScriptedEnv()], actor, n_steps=2) as feed,
        pytest.raises(ValueError, match="now it has `hx` that is no tensor"),
    ):
        next(feed)


def none_in_virtual_steps():
    return Remembers(lambda b: None, lambda b, virtual: None if virtual else count(b))


def test_the_step_of_an_actor_whose_recurrent_state_changes_its_form_is_not_compiled():
    with pytest.warns(RuntimeWarning, match="what it answers, remembers or keeps in buffers changes its"):
        feed = same.rollout([ScriptedEnv()], none_in_virtual_steps(), 8, compile=True)
    with feed, pytest.raises(ValueError, match="had no tensors"):
        next(feed)


def test_a_collector_process_tells_of_a_recurrent_state_that_changes_its_form():
    with (
        single.rollout(ScriptedEnv, none_in_virtual_steps(), 8, 1) as feed,
        pytest.raises(ValueError, match="had no tensors"),
    ):
        next(feed)


@pytest.mark.parametrize(
    ("fresh", "later"),
    [
        (lambda b: None, lambda b, virtual: ()),
        (lambda b: (count(b), count(b)), lambda b, virtual: [count(b), count(b)]),
        (count, lambda b, virtual: count(b, torch.float64)),
    ],
    ids=["nothing", "a list for a tuple", "another precision"],
)
def test_a_recurrent_state_may_differ_in_what_loses_no_number(fresh, later):
    with same.rollout([ScriptedEnv(), ScriptedEnv()], Remembers(fresh, later), 8) as feed:
        before, after = next(feed).hx, next(feed).hx
        assert type(before) is type(after)


class ResetsTo(BaseActorModule):
    """Its recurrent state is reset to a value, wrongly if `at` is a mask; a step replaces it by another value."""

    def __init__(self, value: float, dtype: torch.dtype) -> None:
        super().__init__()
        self.value, self.dtype = value, dtype

    def reset(self, hx, at):
        hx = hx.clone()
        hx[:, at].fill_(self.value)  # of a mask this changes a copy
        return hx

    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = torch.full((1, fin.shape[1], 1), self.value, dtype=self.dtype) if hx is None else hx
        after = torch.full_like(hx, 1 - self.value)
        return torch.zeros_like(fin, dtype=torch.int64), after, {"first": hx[..., 0] == self.value}


@pytest.mark.parametrize("n_envs", [1, 2, 3])
@pytest.mark.parametrize(
    ("value", "dtype"), [(True, torch.bool), (False, torch.bool), (1, torch.float32), (2, torch.int64)]
)
def test_a_reset_that_does_not_honour_a_mask_is_found_out_whatever_it_resets_to(n_envs, value, dtype):
    with pytest.warns(RuntimeWarning, match="does not honour a bool mask"):
        feed = same.rollout([ScriptedEnv() for _ in range(n_envs)], ResetsTo(value, dtype), 8)
    with feed:
        fragment = next(feed)
        assert torch.equal(fragment.actor["first"], fragment.state.fin)
