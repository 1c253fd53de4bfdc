"""Proximal policy optimisation (PPO): several epochs over each fragment, with running normalisation.

Run ``python -m rlplay.zoo.pages.ppo --env CartPole-v1 --seed 0``.
It takes environments with a flat Box of observations, and actions of a Discrete, MultiDiscrete, MultiBinary or flat
Box space, or of a Dict or Tuple of these.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from rlplay.algo import ReturnNorm, RunningNorm, ppo
from rlplay.engine.rollout import threaded
from rlplay.zoo.actors import mlp
from rlplay.zoo.heads import AnyActorCritic, head_for

from . import Training, make, run


def train(env: str = "CartPole-v1", seed: int = 0, steps: int = 100_000) -> Training:
    """Train by proximal policy optimisation (PPO)."""
    torch.manual_seed(seed)
    envs = make(env, 8)
    n_obs, space = envs[0].observation_space.shape[0], envs[0].action_space

    norm, scale = RunningNorm((n_obs,)), ReturnNorm(8, gamma=0.99)
    policy = nn.Sequential(mlp(n_obs, 64, 64), nn.Tanh())
    actor = AnyActorCritic(policy, head_for(space, 64), mlp(n_obs, 64, 64, 1), body=norm)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=steps // (8 * 128))

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=128, lag=0, seed=seed, final=True) as feed:
        for fragment in feed:
            scale.update(fragment)
            options: Any = {"gamma": 0.99, "C": 0.95, "n_epochs": 8, "n_minibatches": 8, "entropy_weight": 0.0}
            for loss, _ in ppo.losses(scale(fragment), actor, max_kl=0.03, **options):
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
                optim.step()
            decay.step()
            norm.update(fragment.state.obs[:-1], fragment.env.valid)  # for the next fragment

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="CartPole-v1", steps=100_000, every=10_000)
