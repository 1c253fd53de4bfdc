"""What an actor keeps in its attributes goes on after a resume, or is refused."""

from __future__ import annotations

import collections
import random
import types

import numpy as np
import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same
from tests.support.assertions import assert_same_bytes
from tests.support.noisy import Noisy
from tests.support.saving import through_torch


class Keeps(BaseActorModule):
    """Its info is what a function returns for each step that is carried out; the function may change the actor."""

    def __init__(self, build, answer):
        super().__init__()
        build(self)
        self.answer = answer

    def forward(self, obs, *, fin, hx=None, virtual=False, **ignored):
        answer = torch.zeros(fin.shape) if virtual else torch.full(fin.shape, float(self.answer(self)))
        return torch.zeros(fin.shape, dtype=torch.int64), (), {"answer": answer}


def saved_and_expected(make):
    feed = same.rollout([Noisy(), Noisy()], make(), 4, seed=0)
    next(feed)
    saved = through_torch(feed.state_dict())
    return saved, [next(feed) for _ in range(2)]


def resumed(make, saved):
    feed = same.rollout([Noisy(), Noisy()], make(), 4, state=saved)
    return [next(feed) for _ in range(2)]


def kept(value):
    def build(actor):
        actor.kept = value()

    return build


def appended(actor):
    actor.kept.append(1.5)
    return sum(actor.kept)


def noise(actor):
    actor.kept = torch.ones(1) if actor.kept is None else 0.9 * actor.kept + 1
    return actor.kept


def grown(actor):
    actor.kept = torch.cat([actor.kept, torch.ones(1)])
    return actor.kept.sum()


def more_tensors(actor):
    actor.kept["all"].append(torch.ones(len(actor.kept["all"])))
    return sum(x.sum() for x in actor.kept["all"])


def added_to_array(actor):
    actor.kept += 1
    return actor.kept.sum()


def made_later(actor):
    actor.later = getattr(actor, "later", torch.zeros(2)) + 1
    return actor.later.sum()


def counted(actor):
    actor.kept.n["steps"] += 1
    return actor.kept.n["steps"]


def two_names(actor):
    actor.kept = [[0]]
    actor.same = actor.kept[0]


def added_to_one(actor):
    actor.same[0] += 1
    return actor.kept[0][0]


def view_of_weight(actor):
    actor.weight = torch.nn.Parameter(torch.zeros(1))
    actor.kept = [actor.weight, 0]


def counted_beside_weight(actor):
    actor.kept[1] += 1
    return actor.kept[1] + actor.kept[0] + 10 * (actor.kept[0] is actor.weight)


def in_a_closure(actor):
    generator = actor.kept = np.random.default_rng(0)
    actor.draw = lambda: generator.random()


CASES = {
    "Generator": (kept(lambda: np.random.default_rng(0)), lambda actor: actor.kept.random()),
    "Philox": (kept(lambda: [np.random.Generator(np.random.Philox(0))]), lambda actor: actor.kept[0].random()),
    "RandomState": (kept(lambda: np.random.RandomState(0)), lambda actor: actor.kept.normal()),
    "Random": (kept(lambda: (random.Random(0),)), lambda actor: actor.kept[0].gauss(0, 1)),
    "closure": (in_a_closure, lambda actor: actor.draw()),
    "torch": (
        kept(lambda: {"a": torch.Generator().manual_seed(0)}),
        lambda actor: torch.rand((), generator=actor.kept["a"]),
    ),
    "list": (kept(list), appended),
    "deque": (kept(lambda: collections.deque(maxlen=3)), appended),
    "tensor": (kept(lambda: None), noise),
    "growing tensor": (kept(lambda: torch.zeros(0)), grown),
    "more tensors": (kept(lambda: {"all": []}), more_tensors),
    "array": (kept(lambda: np.zeros(3)), added_to_array),
    "later": (kept(lambda: None), made_later),
    "object": (kept(lambda: types.SimpleNamespace(n={"steps": 0})), counted),
    "two names": (two_names, added_to_one),
    "weight": (view_of_weight, counted_beside_weight),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_an_actor_keeps_in_attributes_goes_on(case):
    saved, expected = saved_and_expected(lambda: Keeps(*case))
    assert_same_bytes(resumed(lambda: Keeps(*case), saved), expected)


def test_tensors_that_changed_their_shapes_beside_what_cannot_be_saved_are_refused():
    def build(actor):
        actor.kept = {"rule": lambda x: x + 1, "state": torch.zeros(0)}

    def answer(actor):
        actor.kept["state"] = torch.cat([actor.kept["state"], torch.ones(1)])
        return actor.kept["rule"](0)

    saved, _ = saved_and_expected(lambda: Keeps(build, answer))
    with pytest.raises(ValueError, match=r"the tensors in its 'kept' had other shapes.* attribute of their own"):
        resumed(lambda: Keeps(build, answer), saved)


def test_an_attribute_of_which_the_new_copy_has_no_generator_is_refused():
    saved, _ = saved_and_expected(lambda: Keeps(*CASES["torch"]))
    with pytest.raises(ValueError, match="its 'kept' is no generator any more"):
        resumed(lambda: Keeps(kept(list), CASES["list"][1]), saved)
