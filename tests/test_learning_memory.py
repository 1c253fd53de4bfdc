"""SAC and TD3 learn to remember: a number is shown first, and has to be given back some steps later."""

from __future__ import annotations

import copy

import gym
import numpy as np
import pytest
import torch
from gym import spaces
from torch import nn

from rlplay.algo import sac, td3
from rlplay.engine.rollout import same
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.replay import Uniform
from rlplay.zoo.actors import mlp
from rlplay.zoo.continuous import Critics, Deterministic, RecurrentCritics, SquashedGaussian

pytestmark = pytest.mark.learning
DELAY = 3
KINDS = {"SAC": (SquashedGaussian, sac, 2), "TD3": (Deterministic, td3, 1)}


class GiveBack(gym.Env):
    """The first observation shows -1 or 1, the others nothing. The last action is to be that number.

    The return is minus the square of the error: 0 at best, and -1 at best for an actor that does not remember.
    """

    observation_space, action_space = spaces.Box(-1.0, 1.0, (2,), np.float32), spaces.Box(-1.0, 1.0, (1,), np.float32)

    def reset(self, *, seed=None, options=None):
        super().reset(seed=seed)
        self.number, self.t = float(self.np_random.choice([-1, 1])), 0
        return np.array([self.number, 0], np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == DELAY
        reward = -((float(action[0]) - self.number) ** 2) if over else 0.0
        return np.array([0, self.t / DELAY], np.float32), reward, over, False, {}


def trained(kind, seed, *, recurrent):
    """Train over sequences; return the mean return of the policy's mean."""
    torch.manual_seed(seed)
    make, module, per_action = KINDS[kind]
    core, hidden = (nn.GRU(2, 32), 32) if recurrent else (None, 2)
    actor = make(mlp(hidden, 32, per_action), [-1.0], [1.0], core=core)
    critic = RecurrentCritics(nn.GRU(3, 32), 1, 32) if recurrent else Critics(3, 32)
    target, target_actor = copy.deepcopy(critic), copy.deepcopy(actor).eval()
    log_alpha = torch.tensor(-4.0)
    optims = [torch.optim.Adam(x.parameters(), lr=3e-3, fused=True) for x in (critic, actor)]
    buffer, options = Uniform(4000, sequences=True), {"log_alpha": log_alpha} if module is sac else {}
    bounds = {} if module is sac else {"low": -1.0, "high": 1.0}

    with same.rollout([GiveBack() for _ in range(16)], actor, 2 * DELAY, seed=seed) as feed:
        for k, fragment in zip(range(150), feed):  # noqa: B905
            buffer.commit(fragment)
            for _ in range(4 if k > 5 else 0):
                columns = buffer.sample_sequences(64).fragment
                chooser = actor if module is sac else target_actor
                loss, _ = module.sequence_critic_loss(
                    columns, chooser, critic, target=target, gamma=0.9, **options, **bounds
                )
                descend(optims[0], loss)
                descend(optims[1], module.sequence_actor_loss(columns, actor, critic, **options)[0])
                for slow, fast in ((target, critic), (target_actor, actor)):
                    for one, other in zip(slow.parameters(), fast.parameters(), strict=True):
                        one.data.lerp_(other.data, 0.05)
    rewards, _ = evaluate([GiveBack] * 100, actor.eval())
    return rewards.sum(axis=0).mean()


def descend(optim, loss):
    optim.zero_grad()
    loss.backward()
    optim.step()


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("kind", KINDS)
def test_recurrent_networks_learn_to_remember(kind, seed):
    assert trained(kind, seed, recurrent=True) >= -0.1


@pytest.mark.parametrize("kind", KINDS)
def test_networks_without_memory_do_not(kind):
    assert trained(kind, 0, recurrent=False) <= -0.8
