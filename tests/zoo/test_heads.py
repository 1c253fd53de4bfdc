"""Heads: actions lie in their spaces, infos describe the distributions that the actions are drawn from."""

from __future__ import annotations

import gym
import numpy as np
import pytest
import torch
from gym import spaces

from rlplay import nested
from rlplay.algo import a2c
from rlplay.algo.policy import policy
from rlplay.engine.rollout import same, threaded
from rlplay.zoo.actors import mlp
from rlplay.zoo.heads import AnyActorCritic, head_for
from tests.support.assertions import assert_identical

SPACES = {
    "discrete": spaces.Discrete(3),
    "multi_discrete": spaces.MultiDiscrete([2, 3]),
    "multi_binary": spaces.MultiBinary(3),
    "box": spaces.Box(-1.0, 1.0, (2, 2)),
    "number": spaces.Box(-1.0, 1.0, ()),
    "dict": spaces.Dict(
        {"b": spaces.Discrete(2), "a": spaces.Tuple([spaces.MultiBinary(2), spaces.Box(-1.0, 1.0, (2,))])}
    ),
}
every = pytest.mark.parametrize("kind", SPACES)


class Endless(gym.Env):
    observation_space = spaces.Box(-1.0, 1.0, (3,), np.float32)

    def __init__(self, action_space):
        self.action_space = action_space

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action):
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), 1.0, False, bool(self.np_random.random() < 0.2), {}


def actor_for(space):
    torch.manual_seed(0)
    return AnyActorCritic(mlp(3, 8), head_for(space, 8), mlp(3, 1))


@every
def test_engines_accept_the_actions_and_losses_the_infos(kind):
    def run(engine):
        actor = actor_for(SPACES[kind])
        with engine.rollout([Endless(SPACES[kind]) for _ in range(3)], actor, 5, lag=1, seed=0, final=True) as feed:
            fragments = [next(feed) for _ in range(3)]
        loss, info = a2c.loss(fragments[-1], actor, gamma=0.9)
        loss.backward()
        assert info["entropy"].isfinite()
        assert all(p.grad is not None and p.grad.isfinite().all() for p in actor.parameters())
        return fragments

    assert_identical(run(same), run(threaded))


@every
def test_actions_are_drawn_from_the_distribution_of_the_info(kind):
    actor, n = actor_for(SPACES[kind]).double(), 40_000
    obs = torch.tensor([0.3, -0.5, 0.9], dtype=torch.float64).expand(1, n, 3)
    actor.generator = torch.Generator().manual_seed(0)
    act, _, info = actor(obs)
    found = policy(info, act, torch.ones(1, n, dtype=torch.bool))
    log_p = found.log_prob(act)
    # the entropy is the mean of -log p over the actions that are drawn
    error = (-log_p.mean() - found.entropy().mean()).abs()
    assert error <= 5 * log_p.std() / n**0.5
    for part in nested.leaves(act):
        assert part.shape[:2] == (1, n)


@every
def test_in_eval_mode_no_action_is_likelier(kind):
    actor = actor_for(SPACES[kind]).double()
    obs = torch.randn(1, 1000, 3, dtype=torch.float64)
    drawn, _, info = actor(obs)
    best, _, _ = actor.eval()(obs)
    found = policy(info, drawn, torch.ones(1, 1000, dtype=torch.bool))
    assert (found.log_prob(best) >= found.log_prob(drawn)).all()
    assert all(map(torch.equal, nested.leaves(best), nested.leaves(actor(obs)[0])))
