"""The two limits: stepping alone, and stepping with the bare forward pass. :mod:`rlplay.benchmark` defines them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..engine.transfer import Lane
from ..zoo.actors import ActorCritic
from .measure import Turn, count_for
from .works import Work

__all__ = ["Limit", "forward_pass", "step_all"]

_READY = 1024
"""How many rows of actions are ready-made; after the last one comes the first."""


class Limit:
    """A limit, as one who takes turns with the engines.

    Parameters
    ----------
    work : Work
        Where the environments come from.
    n_envs, n_steps : int
        ``B`` and ``T``.
    react : callable, optional
        What to do with the list of observations before each step: :func:`forward_pass` for limit b, None for a.
    seconds : float
        How long a turn is to last, about.

    Attributes
    ----------
    turns : list of Turn
        What has been measured.
    """

    def __init__(
        self, work: Work, n_envs: int, n_steps: int, react: Callable[[list[Any]], object] | None, seconds: float
    ) -> None:
        self._n_steps, self._react, self._seconds = n_steps, react, seconds
        self._envs = [work.make_env() for _ in range(n_envs)]
        self._obs = [env.reset(seed=j)[0] for j, env in enumerate(self._envs)]
        n_actions = int(self._envs[0].action_space.n)
        self._actions = [list(row) for row in np.random.default_rng(0).integers(n_actions, size=(_READY, n_envs))]
        self._t = self._count = 0
        self.turns: list[Turn] = []

    def warm_up(self) -> None:
        """Step for a while, and settle for how long."""
        self._run(1)
        self._count = count_for(self._seconds, self._run(1).seconds)

    def turn(self) -> None:
        """Step for a turn."""
        self.turns.append(self._run(self._count))

    def _run(self, count: int) -> Turn:
        started = perf_counter()
        for _ in range(count * self._n_steps):
            if self._react is not None:
                self._react(self._obs)
            step_all(self._envs, self._actions[self._t % _READY], self._obs)
            self._t += 1
        return Turn(count, count * self._n_steps * len(self._envs), perf_counter() - started, {})

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()


def step_all(envs: Sequence[Any], actions: Sequence[Any], obs: list[Any]) -> None:
    """Step each environment once, and reset it if its episode has ended; put what it shows into ``obs``."""
    for j, env in enumerate(envs):
        seen, _, terminated, truncated, _ = env.step(actions[j])
        if terminated or truncated:
            seen, _ = env.reset()
        obs[j] = seen


def forward_pass(actor: ActorCritic, lane: Lane) -> Callable[[list[Any]], tuple[Tensor, Tensor]]:
    """Return what evaluates the actor's networks on a list of observations, on the lane's device, and waits for it."""
    body, policy, value = actor.body, actor.policy, actor.value

    @torch.no_grad()
    def react(obs: list[Any]) -> tuple[Tensor, Tensor]:
        features = body(torch.from_numpy(np.stack(obs)).to(lane.device)[None])
        answer = policy(features), value(features)
        lane.host_wait(lane.record())
        return answer

    return react
