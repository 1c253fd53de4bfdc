"""Recurrent replay (R2D2): stored recurrent states, burn-in, rescaled values and priorities of sequences.

Run ``python -m rlplay.zoo.pages.r2d2 --env Recall --seed 0``.
It takes environments with a flat Box of observations and a Discrete space of actions. In ``Recall`` a cue has to be
remembered for longer than the burn-in.
"""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from rlplay.algo import dqn, r2d2
from rlplay.engine.rollout import threaded
from rlplay.replay import Prioritized
from rlplay.zoo.actors import QNetwork

from . import Training, make, run

BURN_IN = 4


def train(env: str = "Recall", seed: int = 0, steps: int = 60_000) -> Training:
    """Train by recurrent replay (R2D2)."""
    torch.manual_seed(seed)
    envs = make(env, 16)
    n_obs, n_act = envs[0].observation_space.shape[0], envs[0].action_space.n

    actor = QNetwork(nn.Linear(32, n_act), core=nn.GRU(n_obs, 32), epsilon=0.2)
    target = copy.deepcopy(actor)
    optim = torch.optim.Adam(actor.parameters(), lr=5e-3, fused=True)
    buffer = Prioritized(20_000, sequences=True)

    # `final`: an episode that a time limit ends is bootstrapped from its true last observation
    with threaded.rollout(envs, actor, n_steps=28, seed=seed, final=True) as feed:
        for fragment in feed:
            buffer.commit(fragment)
            target.load_state_dict(actor.state_dict())
            actor.epsilon.fill_(max(0.01, 0.2 * (1 - 2 * feed.steps / steps)))
            for _ in range(4):
                columns, ids, weight = buffer.sample_sequences(16, beta=0.6)
                options: Any = {"gamma": 0.99, "n_lookahead": 5, "burn_in": BURN_IN, "rescale": 1e-3}
                loss, info = dqn.loss(columns, actor, target=target, weight=weight, **options)
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 10.0)
                optim.step()
                buffer.update(ids, r2d2.priority(info["td_error"], columns.env.valid[BURN_IN:]))

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="Recall", steps=60_000, every=5000)
