"""Measures in turns: contestants, limits that no engine can beat, and their spreads."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch
from torch import Tensor

from ..engine.memory.lane import Lane
from ..zoo.actors import ActorCritic
from .works import Work

__all__ = [
    "Contestant",
    "Spread",
    "Turn",
    "count_for",
    "efficiency",
    "race",
    "rates",
    "times",
    "Limit",
    "forward_pass",
    "step_all",
]


class Turn(NamedTuple):
    """One window of one turn, measured."""

    fragments: int
    """How many fragments were received, trained on, or both; for a limit, as many times ``T`` steps were made."""
    steps: int
    """Transitions, of all environments together; 0 if nothing was collected."""
    seconds: float
    """Wall-clock time."""
    places: dict[str, float]
    """Where the collector's seconds went."""


class Contestant(Protocol):
    """Whoever is measured."""

    def warm_up(self) -> None:
        """Do all once, unmeasured, and settle how much makes a turn."""

    def turn(self) -> None:
        """Be measured once more, while all others stand still."""


class Spread(NamedTuple):
    """A few measurements of the same thing."""

    values: list[float]
    """In the order in which they were taken."""

    @property
    def median(self) -> float:
        """Their median."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)


def race(contestants: Sequence[Contestant], repeats: int, tick: Callable[[], object]) -> None:
    """Let all warm up, then take turns: one each, ``repeats`` times over. ``tick`` is called after each of them."""
    for contestant in contestants:
        contestant.warm_up()
        tick()
    for _ in range(repeats):
        for contestant in contestants:
            contestant.turn()
            tick()


def count_for(seconds: float, each: float) -> int:
    """Tell how often to do what takes ``each`` seconds so that it lasts ``seconds``: at least once."""
    return max(1, round(seconds / each))


def rates(turns: Iterable[Turn]) -> Spread:
    """Transitions per second."""
    return Spread([turn.steps / turn.seconds for turn in turns])


def times(turns: Iterable[Turn]) -> Spread:
    """Seconds per fragment."""
    return Spread([turn.seconds / turn.fragments for turn in turns])


def efficiency(collecting: Iterable[Turn], training: Iterable[Turn], both: Iterable[Turn]) -> float:
    """How well training and collection overlap: the longer one's time alone, over the time that both take together."""
    return max(times(collecting).median, times(training).median) / times(both).median


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
