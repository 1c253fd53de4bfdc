"""Rainbow: C51, double and duelling, with noisy layers, several steps and prioritized replay.

Run ``python -m rlplay.zoo.pages.rainbow --env CartPole-v1 --seed 0``.
It takes environments with a flat Box of observations and a Discrete space of actions.

Hessel et al. (2018), "Rainbow: Combining Improvements in Deep Reinforcement Learning".
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlplay.algo import c51
from rlplay.engine.rollout import threaded
from rlplay.replay import Prioritized
from rlplay.zoo.actors import Duelling, mlp
from rlplay.zoo.distributional import CategoricalQNetwork, NoisyLinear, resample

from . import Training, make, run


def train(env: str = "CartPole-v1", seed: int = 0, steps: int = 100_000) -> Training:
    """Train by Rainbow."""
    torch.manual_seed(seed)
    envs = make(env, 8)
    n_obs, n_act = envs[0].observation_space.shape[0], int(envs[0].action_space.n)

    atoms = torch.linspace(0, 100, 51)  # the returns that are possible, with rewards of 1 and a discount of 0.99
    body = nn.Sequential(mlp(n_obs, 128, activation=nn.ReLU), nn.ReLU())
    value, advantage = (
        nn.Sequential(NoisyLinear(128, 128), nn.ReLU(), NoisyLinear(128, n * 51), nn.Unflatten(-1, (n, 51)))
        for n in (1, n_act)
    )
    actor = CategoricalQNetwork(Duelling(value, advantage, dim=-2), atoms, epsilon=0.0, body=body)
    target = copy.deepcopy(actor)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=steps // (8 * 16))
    buffer = Prioritized(50_000)

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=16, seed=seed, final=True) as feed:
        for k, fragment in enumerate(feed):
            buffer.commit(fragment)
            done = min(1.0, feed.steps / steps)
            if k % 2 == 0:
                target.load_state_dict(actor.state_dict())
            for _ in range(32):  # one update for four steps
                resample(actor)  # also for the behaviour copy, which explores by this noise
                resample(target)
                batch = buffer.sample(128, n_steps=5, gamma=0.99, beta=0.4 + 0.6 * done)
                loss, info = c51.replayed(batch, actor, target=target, atoms=actor.atoms)
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 10.0)
                optim.step()
                buffer.update(batch.ids, info["kl"])
            decay.step()

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="CartPole-v1", steps=100_000, every=5000)
