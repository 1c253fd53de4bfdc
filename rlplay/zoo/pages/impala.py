"""V-trace actor-critic (IMPALA): learning from fragments that an older policy has collected.

Run ``python -m rlplay.zoo.pages.impala --env CartPole-v1 --seed 0``.
It takes environments with a flat Box of observations and a Discrete space of actions. Collection runs two fragments
ahead.
"""

from __future__ import annotations

import torch
from torch import nn

from rlplay.algo import vtrace
from rlplay.engine.rollout import threaded
from rlplay.zoo.actors import ActorCritic, mlp

from . import Training, make, run


def train(env: str = "CartPole-v1", seed: int = 0, steps: int = 500_000) -> Training:
    """Train by V-trace actor-critic (IMPALA), at a lag of two fragments."""
    torch.manual_seed(seed)
    envs = make(env, 8)
    n_obs, n_act = envs[0].observation_space.shape[0], envs[0].action_space.n

    actor = ActorCritic(mlp(n_obs, 64, 64, n_act), mlp(n_obs, 64, 64, 1))
    optim = torch.optim.Adam(actor.parameters(), lr=2e-3, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=steps // (8 * 16))

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=16, lag=2, seed=seed, final=True) as feed:
        for fragment in feed:
            loss, _ = vtrace.loss(fragment, actor, gamma=0.99, value_weight=0.1)
            optim.zero_grad()
            loss.backward()
            nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
            optim.step()
            decay.step()

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="CartPole-v1", steps=500_000, every=10_000)
