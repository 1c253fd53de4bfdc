"""Soft actor-critic: twin critics, a squashed Gaussian policy, and a temperature that adapts.

Run ``python -m rlplay.zoo.pages.sac --env Pendulum-v1 --seed 0``.
It takes environments with a flat Box of observations and a flat, bounded Box of actions.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlplay.algo import sac
from rlplay.engine.rollout import threaded
from rlplay.replay import Uniform
from rlplay.zoo.actors import mlp
from rlplay.zoo.continuous import Critics, SquashedGaussian

from . import Training, make, run


def train(
    env: str = "Pendulum-v1",
    seed: int = 0,
    steps: int = 15_000,
    *,
    n_steps: int = 16,  # and as many updates after them
    warm_up: int = 1000,  # steps before the first update
    batch_size: int = 128,
    capacity: int = 200_000,  # of the replay buffer
    gamma: float = 0.99,
    tau: float = 0.005,  # how far the targets follow in each update
    lr: float = 1e-3,
    hidden: tuple[int, ...] = (128, 128),
) -> Training:
    """Train by soft actor-critic (SAC)."""
    torch.manual_seed(seed)
    envs = make(env, 1)
    n_obs, space = envs[0].observation_space.shape[0], envs[0].action_space
    n_act = space.shape[0]

    actor = SquashedGaussian(mlp(n_obs, *hidden, 2 * n_act, activation=nn.ReLU), space.low, space.high)
    critic = Critics(n_obs + n_act, *hidden)
    target = copy.deepcopy(critic)
    log_alpha = nn.Parameter(torch.zeros(()))
    optim_actor, optim_critic = (torch.optim.Adam(x.parameters(), lr=lr, fused=True) for x in (actor, critic))
    optim_alpha = torch.optim.Adam([log_alpha], lr=lr)
    buffer = Uniform(capacity)

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=n_steps, seed=seed, final=True) as feed:
        for fragment in feed:
            buffer.commit(fragment)
            if feed.steps >= warm_up:
                for _ in range(n_steps):  # one update for each step
                    batch = buffer.sample(batch_size, gamma=gamma)

                    loss, _ = sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)
                    optim_critic.zero_grad()
                    loss.backward()
                    optim_critic.step()

                    loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
                    optim_actor.zero_grad()
                    loss.backward()
                    optim_actor.step()

                    loss = sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-n_act)
                    optim_alpha.zero_grad()
                    loss.backward()
                    optim_alpha.step()

                    for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
                        slow.data.lerp_(fast.data, tau)

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="Pendulum-v1", steps=15_000)
