"""The behaviour copy's modules skip the look for hooks, but where there are some."""

from __future__ import annotations

import copy

import cloudpickle
import gymnasium.spaces
import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.lean import make_lean
from rlplay.engine.rollout import same
from rlplay.testing import make_ledger


class Doubled(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.forward = lambda x: x + 1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ModuleDict({"a": nn.LSTM(4, 5)})["a"])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*:DeprecationWarning")
@pytest.mark.parametrize("make", [network, lambda: Doubled(3, 2), Own, lambda: torch.jit.script(nn.Linear(3, 2))])
def test_the_answers_are_the_same_bit_for_bit(make):
    plain = make()
    lean, x = copy.deepcopy(plain), torch.rand(2, 3, 3)
    make_lean(lean)
    pairs = zip(nested.leaves(plain(x)), nested.leaves(lean(x)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_modules_are_still_what_they_were():
    lean = network()
    make_lean(lean)
    make_lean(lean)  # a second time changes nothing
    assert isinstance(lean[0], nn.Linear)
    assert repr(lean) == repr(network())
    assert type(lean[0]).__mro__[1] is nn.Linear
    assert list(lean.state_dict()) == list(network().state_dict())
    for twin in (copy.deepcopy(lean), cloudpickle.loads(cloudpickle.dumps(lean))):
        assert torch.equal(twin(torch.ones(1, 3))[0], lean(torch.ones(1, 3))[0])


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_run(register):
    calls = []

    class Actor(BaseActorModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()
            getattr(self.layer, register)(lambda *args: calls.append(len(args)))

        def forward(self, obs, fin, **ignored):
            return self.layer(torch.zeros(fin.shape, dtype=torch.int64)), (), ()

    actor = Actor()
    with same.rollout([make_ledger(gymnasium.spaces, 0)], actor, n_steps=5) as feed:
        calls.clear()
        next(feed)
    assert len(calls) == 6


def test_the_actor_of_the_user_is_left_alone():
    actor = Named()
    with same.rollout([make_ledger(gymnasium.spaces, 0)], actor, n_steps=5) as feed:
        next(feed)
        assert type(actor) is Named
        assert type(actor.layer) is nn.Identity


class Named(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, obs, fin, **ignored):
        return self.layer(torch.zeros(fin.shape, dtype=torch.int64)), (), ()
