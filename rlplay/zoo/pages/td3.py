"""Twin delayed deep deterministic policy gradient (TD3): twin critics, smoothed targets, and a policy that waits.

Run ``python -m rlplay.zoo.pages.td3 --env Pendulum-v1 --seed 0``.
It takes environments with a flat Box of observations and a flat, bounded Box of actions. For DDPG, set ``NOISE = 0``,
``N_CRITICS = 1`` and ``DELAY = 1``.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlplay.algo import td3
from rlplay.engine.rollout import threaded
from rlplay.replay import Uniform
from rlplay.zoo.actors import mlp
from rlplay.zoo.continuous import Critics, Deterministic

from . import Training, make, run

NOISE, N_CRITICS, DELAY = 0.2, 2, 2


def train(env: str = "Pendulum-v1", seed: int = 0, steps: int = 15_000) -> Training:
    """Train by twin delayed deep deterministic policy gradient (TD3)."""
    torch.manual_seed(seed)
    envs = make(env, 1)
    n_obs, space = envs[0].observation_space.shape[0], envs[0].action_space
    n_act, low, high = space.shape[0], torch.tensor(space.low), torch.tensor(space.high)

    actor = Deterministic(mlp(n_obs, 128, 128, n_act, activation=nn.ReLU), space.low, space.high, noise_std=1.0)
    critic = Critics(n_obs + n_act, 128, 128, n=N_CRITICS)
    target_actor, target = copy.deepcopy(actor), copy.deepcopy(critic)
    optim_actor, optim_critic = (torch.optim.Adam(x.parameters(), lr=1e-3, fused=True) for x in (actor, critic))
    buffer, n_updates = Uniform(200_000), 0

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=16, seed=seed, final=True) as feed:
        for fragment in feed:
            buffer.commit(fragment)
            if feed.steps >= 1000:
                actor.noise_std = 0.1  # at first much noise, so that the buffer holds all kinds of actions
                for _ in range(16):  # one update for each step
                    batch = buffer.sample(128, gamma=0.99)
                    n_updates += 1

                    loss, _ = td3.critic_loss(
                        batch, target_actor, critic, target=target, low=low, high=high, noise=NOISE
                    )
                    optim_critic.zero_grad()
                    loss.backward()
                    optim_critic.step()

                    if n_updates % DELAY == 0:
                        loss, _ = td3.actor_loss(batch, actor, critic)
                        optim_actor.zero_grad()
                        loss.backward()
                        optim_actor.step()

                        for slow_module, module in ((target_actor, actor), (target, critic)):
                            for slow, fast in zip(slow_module.parameters(), module.parameters(), strict=True):
                                slow.data.lerp_(fast.data, 0.005)

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="Pendulum-v1", steps=15_000)
