"""What an actor keeps in its attributes goes on after a resume, or is refused."""

from __future__ import annotations

import collections
import random
import types

import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.acting.compile import inductor
from rlplay.engine.rollout import same
from rlplay.testing import LaggingLane
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


def one_tensor_thrice(actor):
    actor.kept = collections.deque([torch.zeros(1)] * 3, maxlen=3)


def pushed(actor):
    actor.kept.append(actor.kept[-1] + 1)
    return actor.kept[0] + 10 * actor.kept[1] + 100 * actor.kept[2]


def one_array_thrice(actor):
    actor.kept = collections.deque([np.zeros(1)] * 3, maxlen=3)


def view_at_first(actor):
    actor.kept = torch.zeros(4)
    actor.head = actor.kept[:2]


def view_no_more(actor):
    actor.head = actor.head + 1
    return 100 * actor.kept.sum() + actor.head.sum()


def view_later(actor):
    actor.kept, actor.head = torch.zeros(2, 2), torch.zeros(2)


def becomes_view(actor):
    actor.kept += 1
    if actor.kept[0, 0] == 2:
        actor.head = actor.kept.t()[:, 1]
    return actor.head.sum()


def view_of_weight_later(actor):
    actor.weight = torch.nn.Parameter(torch.zeros(2))
    actor.kept = torch.zeros(1)


def becomes_view_of_weight(actor):
    actor.kept = actor.weight.detach()[1:] if actor.kept[0] > 1 else actor.kept + 1
    with torch.no_grad():
        actor.weight += 1
    return actor.kept[0]


def transposed(actor):
    actor.kept = torch.rand(33, 65, generator=torch.Generator().manual_seed(0)).t()


def multiplied(actor):
    actor.kept = (actor.kept.clone() @ torch.ones(33, 33)).t().contiguous().t() / 33
    return actor.kept.sum() + actor.kept.is_contiguous()


def drawn_from_one_made_later(actor):
    if actor.kept is None:
        actor.kept = [torch.Generator().manual_seed(0)] * 2
    return sum(torch.rand((), generator=generator) for generator in actor.kept)


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
    "torch later": (kept(lambda: None), drawn_from_one_made_later),
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
    "one tensor thrice": (one_tensor_thrice, pushed),
    "one array thrice": (one_array_thrice, lambda actor: pushed(actor)[0]),
    "view at first": (view_at_first, view_no_more),
    "view later": (view_later, becomes_view),
    "view of a weight later": (view_of_weight_later, becomes_view_of_weight),
    "transposed": (transposed, multiplied),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_what_an_actor_keeps_in_attributes_goes_on(case):
    saved, expected = saved_and_expected(lambda: Keeps(*case))
    assert_same_bytes(resumed(lambda: Keeps(*case), saved), expected)


class Projects(BaseActorModule):
    """Has random numbers in attributes, which its step uses and does not change."""

    def __init__(self):
        super().__init__()
        self.held = {"factor": random.random(), "table": torch.rand(1)}

    def forward(self, obs, *, fin, hx=None, **ignored):
        answer = obs.flatten(2).sum(-1) * self.held["table"] + self.held["factor"]
        return torch.zeros(fin.shape, dtype=torch.int64), (), {"answer": answer}


@pytest.mark.usefixtures("no_monitor")
@pytest.mark.parametrize(
    "options", [{"compile": True}, {"compile": True, "device": LaggingLane(haste=1.0)}], ids=["host", "device"]
)
def test_a_compiled_step_goes_on_with_what_the_saved_actor_had_in_attributes(options, monkeypatch):
    monkeypatch.setattr(inductor, "compile_graph", lambda graph: lambda operands: graph(*operands))  # takes no seconds
    with same.rollout([Noisy(), Noisy()], Projects(), 4, seed=0, **options) as feed:
        saved = through_torch(feed.state_dict())
        expected = nested.map(torch.clone, next(feed))
    with same.rollout([Noisy(), Noisy()], Projects(), 4, state=saved, **options) as feed:
        assert_same_bytes(next(feed), expected)


class Endless(Noisy):
    """A reset would make the recurrent state contiguous."""

    def step(self, action):
        obs, rew, _, _, info = super().step(action)
        return obs, rew, False, False, info


class BatchFirst(BaseActorModule):
    """Keeps its recurrent state transposed; the last bits of a product depend on that."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(64, 64)

    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = torch.zeros(2, fin.shape[1], 64) if hx is None else hx
        h = torch.tanh(self.linear(hx.transpose(0, 1)) + obs[0].sum(-1)[:, None, None])
        told = {"h": h[None], "contiguous": torch.full(fin.shape, hx.transpose(0, 1).is_contiguous())}
        return torch.zeros(fin.shape, dtype=torch.int64), h.transpose(0, 1), told


@pytest.mark.parametrize("device", [None, LaggingLane])
def test_a_recurrent_state_keeps_its_strides(device):
    torch.manual_seed(0)
    actor = BatchFirst()

    def feed(**options):
        lane = device and device()
        return same.rollout([Endless() for _ in range(5)], actor, 4, device=lane, **options), lane

    def collected(feed, lane):
        fragment = next(feed)
        if lane is not None:
            lane.synchronize()
        return nested.map(torch.clone, fragment)

    one, lane = feed(seed=0)
    collected(one, lane)
    saved = one.state_dict()
    expected = collected(one, lane)
    assert expected.actor["contiguous"].all()
    assert_same_bytes(collected(*feed(state=saved)), expected)


def test_tensors_that_changed_their_shapes_beside_what_cannot_be_saved_are_refused():
    def build(actor):
        actor.kept = {"rule": lambda x: x + 1, "state": torch.zeros(0)}

    def answer(actor):
        actor.kept["state"] = torch.cat([actor.kept["state"], torch.ones(1)])
        return actor.kept["rule"](0)

    saved, _ = saved_and_expected(lambda: Keeps(build, answer))
    with pytest.raises(ValueError, match=r"the tensors in its 'kept' had other shapes.* attribute of their own"):
        resumed(lambda: Keeps(build, answer), saved)


def test_tensors_that_no_longer_share_memory_beside_what_cannot_be_saved_are_refused():
    def build(actor):
        actor.kept = {"rule": lambda x: x + 1, "state": [torch.zeros(1)] * 2}

    def answer(actor):
        actor.kept["state"][0] = actor.kept["state"][0] + 1
        return actor.kept["rule"](0)

    saved, _ = saved_and_expected(lambda: Keeps(build, answer))
    with pytest.raises(ValueError, match=r"the tensors in its 'kept' .* shared other memory"):
        resumed(lambda: Keeps(build, answer), saved)
