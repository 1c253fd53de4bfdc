"""Categorical Q-learning (C51): the distribution of the return, on a fixed grid.

Run ``python -m rlplay.zoo.pages.c51 --env CartPole-v1 --seed 0``.
It takes environments with a flat Box of observations and a Discrete space of actions.
"""

from __future__ import annotations

import copy

import torch
from torch import nn

from rlplay.algo import c51
from rlplay.engine.rollout import threaded
from rlplay.replay import Uniform
from rlplay.zoo.actors import mlp
from rlplay.zoo.distributional import CategoricalQNetwork

from . import Training, make, run


def train(env: str = "CartPole-v1", seed: int = 0, steps: int = 100_000) -> Training:
    """Train by categorical Q-learning (C51)."""
    torch.manual_seed(seed)
    envs = make(env, 8)
    n_obs, n_act = envs[0].observation_space.shape[0], int(envs[0].action_space.n)

    atoms = torch.linspace(0, 100, 51)  # the returns that are possible, with rewards of 1 and a discount of 0.99
    logits = nn.Sequential(mlp(n_obs, 128, 128, n_act * 51, activation=nn.ReLU), nn.Unflatten(-1, (n_act, 51)))
    actor = CategoricalQNetwork(logits, atoms, epsilon=1.0)
    target = copy.deepcopy(actor)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=steps // (8 * 16))
    buffer = Uniform(50_000)

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=16, seed=seed, final=True) as feed:
        for k, fragment in enumerate(feed):
            buffer.commit(fragment)
            done = min(1.0, feed.steps / steps)
            actor.epsilon.fill_(max(0.02, 1 - 5 * done))
            if k % 2 == 0:
                target.load_state_dict(actor.state_dict())
            for _ in range(32):  # one update for four steps
                batch = buffer.sample(128, n_steps=5, gamma=0.99)
                loss, _ = c51.replayed(batch, actor, target=target, atoms=actor.atoms)
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 10.0)
                optim.step()
            decay.step()

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="CartPole-v1", steps=100_000, every=5000)
