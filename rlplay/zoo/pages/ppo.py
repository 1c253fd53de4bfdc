"""Proximal policy optimisation (PPO): several epochs over each fragment, with running normalisation.

Run ``python -m rlplay.zoo.pages.ppo --env CartPole-v1 --seed 0``.
It takes environments with a flat Box of observations, and actions of a Discrete, MultiDiscrete, MultiBinary or flat
Box space, or of a Dict or Tuple of these.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from rlplay.algo import ReturnNorm, RunningNorm, ppo
from rlplay.engine.rollout import threaded
from rlplay.zoo.actors import mlp, orthogonal_
from rlplay.zoo.heads import AnyActorCritic, head_for

from . import Training, make, run


def train(
    env: str = "CartPole-v1",
    seed: int = 0,
    steps: int = 100_000,
    *,
    n_envs: int = 8,
    n_steps: int = 128,
    n_epochs: int = 8,
    n_minibatches: int = 8,
    gamma: float = 0.99,
    gae_lambda: float = 0.95,
    lr: float = 1e-3,
    clip: float = 0.2,
    last: float = 0.05,  # learning rate and clip decrease linearly to this fraction
    entropy_weight: float = 0.0,
    value_weight: float = 0.5,
    max_norm: float = 0.5,  # of the gradient
    max_kl: float | None = 0.03,
    hidden: tuple[int, ...] = (64, 64),
    activation: Callable[[], nn.Module] = nn.Tanh,
    orthogonal: bool = True,  # initial weights
    log_std: float = 0.0,  # of real actions, at first
    normalise: bool = True,  # observations and rewards
) -> Training:
    """Train by proximal policy optimisation (PPO)."""
    torch.manual_seed(seed)
    envs = make(env, n_envs, clip=True)
    n_obs, space = envs[0].observation_space.shape[0], envs[0].action_space

    norm, scale = RunningNorm((n_obs,)), ReturnNorm(n_envs, gamma=gamma)
    policy = nn.Sequential(mlp(n_obs, *hidden, activation=activation), activation())
    value = mlp(n_obs, *hidden, 1, activation=activation)
    actor = AnyActorCritic(policy, head_for(space, hidden[-1]), value, body=norm if normalise else None)
    if orthogonal:
        orthogonal_(actor, gain=2**0.5)
        orthogonal_(actor.head, gain=0.01)  # nearly uniform actions at first
        orthogonal_(value[-1], gain=1.0)
    for name, parameter in actor.named_parameters():
        if name.endswith("log_std"):
            nn.init.constant_(parameter, log_std)
    optim = torch.optim.Adam(actor.parameters(), lr=lr, eps=1e-5, fused=True)
    options: Any = {"gamma": gamma, "gae_lambda": gae_lambda, "n_epochs": n_epochs, "n_minibatches": n_minibatches}
    options |= {"entropy_weight": entropy_weight, "value_weight": value_weight, "max_kl": max_kl}

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    left = 1.0
    with threaded.rollout(envs, actor, n_steps=n_steps, lag=0, seed=seed, final=True) as feed:
        for fragment in feed:
            scale.update(fragment)
            for group in optim.param_groups:
                group["lr"] = lr * left
            scaled = scale(fragment) if normalise else fragment
            for loss, _ in ppo.losses(scaled, actor, clip=clip * left, normalise="minibatch", **options):
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), max_norm)
                optim.step()
            norm.update(fragment.state.obs[:-1], fragment.env.valid)  # for the next fragment
            left = 1 - (1 - last) * feed.steps / steps

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="CartPole-v1", steps=100_000, every=10_000)
