"""Hindsight experience replay (HER): Q-learning towards goals, relabelled by what was achieved.

Run ``python -m rlplay.zoo.pages.her --env BitFlip --seed 0``.
It takes goal environments with flat observations and goals, and a Discrete space of actions. An episode terminates,
with a reward of 0 instead of -1, where the achieved goal equals the desired one.
"""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn

from rlplay.algo import dqn
from rlplay.engine.rollout import episodic
from rlplay.replay import Hindsight
from rlplay.zoo.actors import QNetwork, mlp

from . import Training, make, run

FRACTION = 0.8  # of the transitions get a goal in hindsight; 0: plain Q-learning


class Flat(nn.Module):
    """Makes one vector of observation and goal."""

    def forward(self, obs: dict[str, Tensor]) -> Tensor:
        """Join ``(..., O)`` and ``(..., G)`` to ``(..., O + G)``."""
        return torch.cat([obs["observation"], obs["desired_goal"]], dim=-1)


def outcome(achieved: Tensor, desired: Tensor) -> tuple[Tensor, Tensor]:
    """Return rewards and terminations of transitions, given goals ``(N, G)``."""
    reached = (achieved == desired).all(dim=-1)
    return reached.float() - 1, reached


def train(env: str = "BitFlip", seed: int = 0, steps: int = 100_000, fraction: float = FRACTION) -> Training:
    """Train by Q-learning with hindsight experience replay (HER)."""
    torch.manual_seed(seed)
    envs = make(env, 16)
    n_obs = sum(envs[0].observation_space[key].shape[0] for key in ("observation", "desired_goal"))

    actor = QNetwork(mlp(n_obs, 128, envs[0].action_space.n, activation=nn.ReLU), body=Flat(), epsilon=0.2)
    target = copy.deepcopy(actor)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3, fused=True)
    buffer = Hindsight(100_000, outcome=outcome, fraction=fraction)

    with episodic.rollout(envs, actor, batch_size=16, seed=seed) as feed:
        for episodes in feed:
            for episode in episodes:
                buffer.commit(episode)
            actor.epsilon.fill_(max(0.02, 0.2 * (1 - 2 * feed.steps / steps)))
            for _ in range(40):
                batch = buffer.sample(128, gamma=0.98)
                loss, _ = dqn.replayed(batch, actor, target=target)
                optim.zero_grad()
                loss.backward()
                optim.step()
            for slow, fast in zip(target.parameters(), actor.parameters(), strict=True):
                slow.data.lerp_(fast.data, 0.2)

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="BitFlip", steps=100_000, every=5000)
