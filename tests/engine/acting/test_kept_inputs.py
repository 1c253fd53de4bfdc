"""An actor may keep its inputs in attributes: where fragments are cut does not change them."""

from __future__ import annotations

import warnings
from collections import deque
from typing import Any, NamedTuple

import gymnasium
import pytest
import torch
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.acting.copying.kept_inputs import copy_kept_inputs
from rlplay.engine.rollout import same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import LaggingLane, LedgerEnv
from tests.support.assertions import assert_identical
from tests.support.tensors import Script


class Pair(NamedTuple):
    obs: Any
    rest: Any


class Keeps(BaseActorModule):
    """Keeps its last three observations, and reports the oldest."""

    def __init__(self, form):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.part = nn.Identity()
        self.put, self.get = FORMS[form]

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        found = self.get(self)
        oldest = obs if found is None else found
        info = oldest.reshape(obs.shape).clone() + 0 * self.weight
        if not virtual:
            self.put(self, obs)
        return torch.zeros_like(fin, dtype=torch.int64), (), info


def shift(actor, obs):
    actor.part.one, actor.two, actor.three = obs, getattr(actor.part, "one", None), getattr(actor, "two", None)


def append(actor, obs):
    actor.__dict__.setdefault("kept", deque(maxlen=3)).append(obs)


def append_in_dict(actor, obs):
    inside = actor.__dict__.setdefault("kept", {"inside": [[]]})["inside"]
    inside[0] = [*inside[0][-2:], obs[0]]


def nest(actor, obs):
    last = getattr(actor, "kept", None)
    actor.kept = Pair(obs, (last.obs, (last.rest[0],)) if last is not None else (None, (None,)))


FORMS = {
    "attributes": (shift, lambda actor: getattr(actor, "three", None)),
    "a deque": (append, lambda actor: next(iter(getattr(actor, "kept", ())), None)),
    "views in a dict": (
        append_in_dict,
        lambda actor: next(iter(getattr(actor, "kept", {"inside": [[]]})["inside"][0]), None),
    ),
    "named tuples": (nest, lambda actor: getattr(actor, "kept", Pair(0, (0, (None,)))).rest[1][0]),
}
LANES = {
    "host": dict,
    "compiled": lambda: {"compile": True},
    "a ring": lambda: {"device": LaggingLane(haste=0.3)},
    "two slots": lambda: {"device": LaggingLane(haste=0.3, consumer_on_host=True)},
    "actor on the host": lambda: {"device": LaggingLane(haste=0.3, actor_on_host=True)},
}


def told(engine, envs, form, n_steps, **options):
    """Return what the actor reports at 12 steps."""
    with warnings.catch_warnings(), engine.rollout(envs, Keeps(form), n_steps, seed=0, **options) as feed:
        fragments = [next(feed) for _ in range(12 // n_steps)]
        if "device" in options:
            options["device"].synchronize()
        return torch.cat([fragment.actor[:-1] for fragment in fragments])


def ledgers():
    return [LedgerEnv(gymnasium.spaces, j) for j in range(2)]


@pytest.mark.filterwarnings("ignore:`compile=True`. the actor's step runs eagerly")
@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("lane", LANES)
def test_where_fragments_are_cut_does_not_change_what_the_actor_has_kept(lane, form):
    expected = told(same, ledgers(), form, 12)
    assert len(expected.unique(dim=0)) > 3
    for n_steps in (1, 2, 3):
        for engine in (same, threaded):
            assert_identical(expected, told(engine, ledgers(), form, n_steps, lag=1, **LANES[lane]()))


def test_it_does_not_in_collector_processes_and_with_groups_and_tensors_either():
    make = lambda: LedgerEnv(gymnasium.spaces, 0)  # noqa: E731
    assert_identical(told(same, [make()], "a deque", 12), told(single, make, "a deque", 1, n_envs=1))
    grouped = told(same, ledgers(), "attributes", 12, groups=2)
    assert_identical(grouped, told(same, ledgers(), "attributes", 1, groups=2))
    assert_identical(told(same, Script(2), "a deque", 12), told(same, Script(2), "a deque", 1))


def test_evaluate_agrees_with_a_fragment():
    _, info = evaluate([LedgerEnv(gymnasium.spaces, 0, lengths=[12])], Keeps("a deque"))
    expected = told(same, [LedgerEnv(gymnasium.spaces, 0, lengths=[12])], "a deque", 1)
    assert_identical(expected[..., :4], torch.from_numpy(info)[:12, ..., :4])  # the other numbers tell the seed


class KeepsLasts(BaseActorModule):
    """Keeps what it reacts to virtually, and a copy of that; reports how many of these now differ."""

    def __init__(self):
        super().__init__()
        self.kept, self.copies = [], []

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        if virtual:
            self.kept.append(obs)
            self.copies.append(obs.clone())
        n = sum(not torch.equal(x, y) for x, y in zip(self.kept, self.copies, strict=True))
        return torch.zeros_like(fin, dtype=torch.int64), (), torch.full(fin.shape, n)


@pytest.mark.filterwarnings("ignore:`compile=True`. the actor's step runs eagerly")
@pytest.mark.parametrize("lane", LANES)
@pytest.mark.parametrize("envs", [ledgers, lambda: Script(2)], ids=["list", "tensors"])
def test_what_it_has_kept_of_last_observations_does_not_change(envs, lane):
    options = LANES[lane]()
    with same.rollout(envs(), KeepsLasts(), 20, final=True, **options) as feed:
        fragments = [next(feed) for _ in range(2)]
        if "device" in options:
            options["device"].synchronize()
        for fragment in fragments:
            assert len(fragment.env.final.t) > 1
            assert not fragment.actor.any()
            assert not fragment.env.final.actor.any()


def test_copies_are_made_of_inputs_alone_each_once_and_containers_stay_what_they_are():
    memory, other, module = torch.arange(6.0), torch.arange(6.0), nn.Module()
    row, around = memory[2:4], [0]
    around += [around, row, {"same": row, "other": other}, (1, "a")]
    module.around, module.number, module.kept, module.other, module.sparse = (
        around,
        3,
        row,
        other,
        torch.eye(2).to_sparse(),
    )
    module.register_buffer("buffer", row)
    copy_kept_inputs([module], {memory.untyped_storage().data_ptr()})
    memory.zero_()
    assert module.kept.tolist() == [2, 3]
    assert module.around is around is around[1]
    assert around[2] is module.kept is around[3]["same"]
    assert around[3]["other"] is module.other is other
    assert around[4:] == [(1, "a")]
    assert module.buffer is row
