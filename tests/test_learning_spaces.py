"""PPO learns with every kind of action: seeded training runs on tasks of one step, whose optimum is known."""

from __future__ import annotations

from itertools import islice

import gym
import numpy as np
import pytest
import torch
from gym import spaces
from torch import nn

from rlplay import sampling
from rlplay.algo import ppo
from rlplay.engine.rollout import same
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.continuous import SquashedGaussian
from rlplay.zoo.heads import AnyActorCritic, head_for

learning = pytest.mark.learning
first_seed_always = pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=learning) for seed in (1, 2))])
N = 4


def near(x, target):
    return 1 - min(1.0, float(np.abs(x - target).mean()))


SPACES = {
    "multi_discrete": (spaces.MultiDiscrete([3, N]), lambda act, c: np.mean(act == [c % 3, c])),
    "multi_binary": (spaces.MultiBinary(3), lambda act, c: np.mean(act == [c > 1, c % 2, c == 0])),
    "dict": (
        spaces.Dict({"turn": spaces.Discrete(3), "aim": spaces.Box(-1.0, 1.0, (2,))}),
        lambda act, c: ((act["turn"] == c % 3) + near(act["aim"], c / N)) / 2,
    ),
    "tuple": (
        spaces.Tuple([spaces.MultiBinary(2), spaces.Discrete(N)]),
        lambda act, c: (np.mean(act[0] == [c > 1, c % 2]) + (act[1] == c)) / 2,
    ),
    "box": (spaces.Box(-1.0, 1.0, (2,)), lambda act, c: near(act, c / N)),
}


class Match(gym.Env):
    """The observation shows one of `N` contexts; the reward, at most 1, tells how well the action fits it."""

    def __init__(self, kind):
        self.action_space, self._reward = SPACES[kind]
        self.observation_space = spaces.Box(0.0, 1.0, (N,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._context = int(self.np_random.integers(N))
        return np.eye(N, dtype=np.float32)[self._context], {}

    def step(self, action):
        return np.zeros(N, np.float32), float(self._reward(action, self._context)), True, False, {}


class Masked(gym.Env):
    """Some of `N` actions are forbidden, and raise; of the others the last is right. The mask is observed."""

    observation_space, action_space = spaces.Box(0.0, 1.0, (N,), np.float32), spaces.Discrete(N)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self._allowed = np.zeros(N, np.float32)
        self._allowed[self.np_random.choice(N, size=self.np_random.integers(1, N + 1), replace=False)] = 1
        return self._allowed.copy(), {}

    def step(self, action):
        if not self._allowed[action]:
            raise ValueError(f"{action} is forbidden")
        right = action == self._allowed.nonzero()[0].max()
        return np.ones(N, np.float32), float(right), True, False, {}


class MaskedActor(ActorCritic):
    """Forbids what the observation says is forbidden."""

    def forward(self, obs, **ignored):
        logits = self.policy(obs).masked_fill(obs == 0, -torch.inf)
        act = sampling.categorical(logits, generator=self.generator) if self.training else logits.argmax(-1)
        return act, (), {"logits": logits, "value": self.value(obs).squeeze(-1)}


def train(make, actor, seed, n_fragments, **options):
    optim = torch.optim.Adam(actor.parameters(), lr=1e-2)
    with same.rollout([make() for _ in range(16)], actor, 16, seed=seed, final=True) as feed:
        for fragment in islice(feed, n_fragments):
            for loss, _ in ppo.losses(fragment, actor, gamma=0.9, **options):
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 1.0)
                optim.step()
    rewards, _ = evaluate([make] * 200, actor.eval())
    return rewards.sum(axis=0).mean()


@learning
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", SPACES)
def test_ppo_learns_with_every_space(kind, seed):
    torch.manual_seed(seed)
    actor = AnyActorCritic(mlp(N, 32), head_for(SPACES[kind][0], 32), mlp(N, 32, 1))
    assert train(lambda: Match(kind), actor, seed, 30, entropy_weight=0.0) >= 0.95


@first_seed_always
def test_ppo_learns_with_a_squashed_policy(seed):
    torch.manual_seed(seed)
    actor = SquashedGaussian(mlp(N, 32, 4), [-1.0] * 2, [1.0] * 2, value=mlp(N, 32, 1))
    assert train(lambda: Match("box"), actor, seed, 30, entropy_weight=0.0) >= 0.9


@learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_ppo_learns_with_masks_and_never_draws_what_is_forbidden(seed):
    torch.manual_seed(seed)
    actor = MaskedActor(mlp(N, 32, N), mlp(N, 32, 1))
    assert train(Masked, actor, seed, 60) >= 0.95


def test_a_space_without_a_head_is_named():
    with pytest.raises(ValueError, match=r"There is no head for the action space .*int"):
        head_for(spaces.Box(0, 5, (2,), np.int32), 3)
