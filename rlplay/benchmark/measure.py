"""Measurements: one timed window, the interleaving of all cases, their statistics, and the two limits.

The cases that run an engine are in ``runs``.
"""

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
    "Case",
    "Limit",
    "Measurement",
    "Spread",
    "forward_pass",
    "measure_interleaved",
    "overlap_efficiency",
    "repetitions",
    "seconds_per_fragment",
    "steps_per_second",
]

_N_ACTION_ROWS = 1024
"""Number of steps whose actions a limit draws in advance; it uses them again and again."""


class Measurement(NamedTuple):
    """The result of one timed window."""

    fragments: int
    """Number of fragments collected, trained on, or both. For a limit: the number of times that T steps were made."""
    steps: int
    """Number of transitions of all environments together; 0 if nothing was collected."""
    seconds: float
    """Wall-clock time."""
    collector_seconds: dict[str, float]
    """Seconds of the collector by activity (the fields of ``CollectorTime``); empty for limits and for training."""


class Case(Protocol):
    """A limit or an engine that the benchmark measures."""

    def warm_up(self) -> None:
        """Run everything once without recording it, and choose how many fragments fill a window."""

    def measure(self) -> None:
        """Record one more measurement. All other cases are paused meanwhile."""


def measure_interleaved(cases: Sequence[Case], repeats: int, on_progress: Callable[[], object]) -> None:
    """Warm up all cases, then measure each of them once per round, for ``repeats`` rounds.

    ``on_progress`` is called after each warm-up and after each measurement.
    """
    for case in cases:
        case.warm_up()
        on_progress()
    for _ in range(repeats):
        for case in cases:
            case.measure()
            on_progress()


def repetitions(seconds: float, seconds_each: float) -> int:
    """Return how many repetitions of ``seconds_each`` last about ``seconds`` in total: at least one."""
    return max(1, round(seconds / seconds_each))


class Spread(NamedTuple):
    """Repeated measurements of one quantity."""

    values: list[float]
    """In the order in which they were measured."""

    @property
    def median(self) -> float:
        """The median value."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The smallest value."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The largest value."""
        return max(self.values)


def steps_per_second(measurements: Iterable[Measurement]) -> Spread:
    """Return the transitions per second of each measurement."""
    return Spread([each.steps / each.seconds for each in measurements])


def seconds_per_fragment(measurements: Iterable[Measurement]) -> Spread:
    """Return the seconds per fragment of each measurement."""
    return Spread([each.seconds / each.fragments for each in measurements])


def overlap_efficiency(
    collection: Iterable[Measurement], training: Iterable[Measurement], both: Iterable[Measurement]
) -> float:
    """Return the longer of the two times alone, divided by the time of both together (medians, per fragment)."""
    alone = max(seconds_per_fragment(collection).median, seconds_per_fragment(training).median)
    return alone / seconds_per_fragment(both).median


class Limit:
    """A plain loop over the environments: limit a or limit b of the benchmark.

    Parameters
    ----------
    work : Work
        Makes the environments.
    n_envs, n_steps : int
        ``B`` and ``T``.
    before_step : callable or None
        Called with the list of observations before each step: :func:`forward_pass` for limit b, None for limit a.
    seconds : float
        Approximate duration of one measurement.

    Attributes
    ----------
    measurements : list of Measurement
        One for each call of :meth:`measure`.
    """

    def __init__(
        self, work: Work, n_envs: int, n_steps: int, before_step: Callable[[list[Any]], object] | None, seconds: float
    ) -> None:
        self._n_steps, self._before_step, self._seconds = n_steps, before_step, seconds
        self._envs = [work.make_env() for _ in range(n_envs)]
        self._obs = [env.reset(seed=j)[0] for j, env in enumerate(self._envs)]
        n_actions = int(self._envs[0].action_space.n)
        actions = np.random.default_rng(0).integers(n_actions, size=(_N_ACTION_ROWS, n_envs))
        self._actions = [list(row) for row in actions]
        self._t, self._n_fragments = 0, 1
        self.measurements: list[Measurement] = []

    def warm_up(self) -> None:
        """Step without recording, and choose how many fragments a measurement has."""
        self._step_fragments(1)
        self._n_fragments = repetitions(self._seconds, self._step_fragments(1).seconds)

    def measure(self) -> None:
        """Record one more measurement."""
        self.measurements.append(self._step_fragments(self._n_fragments))

    def _step_fragments(self, n_fragments: int) -> Measurement:
        """Make the steps of ``n_fragments`` fragments."""
        started = perf_counter()
        for _ in range(n_fragments * self._n_steps):
            if self._before_step is not None:
                self._before_step(self._obs)
            _step_all(self._envs, self._actions[self._t % _N_ACTION_ROWS], self._obs)
            self._t += 1
        steps = n_fragments * self._n_steps * len(self._envs)
        return Measurement(n_fragments, steps, perf_counter() - started, {})

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()


def _step_all(envs: Sequence[Any], actions: Sequence[Any], observations: list[Any]) -> None:
    """Step each environment once, reset those whose episode ended, and replace their ``observations``."""
    for j, env in enumerate(envs):
        obs, _, terminated, truncated, _ = env.step(actions[j])
        if terminated or truncated:
            obs, _ = env.reset()
        observations[j] = obs


def forward_pass(actor: ActorCritic, lane: Lane) -> Callable[[list[Any]], tuple[Tensor, Tensor]]:
    """Return a function that evaluates the actor's networks on a list of observations.

    The function runs on the lane's device, waits for the device, and returns the policy's and the value's outputs for
    the batch ``(1, B, ...)``.
    """
    body, policy, value = actor.body, actor.policy, actor.value

    @torch.no_grad()
    def evaluate(observations: list[Any]) -> tuple[Tensor, Tensor]:
        features = body(torch.from_numpy(np.stack(observations)).to(lane.device)[None])
        outputs = policy(features), value(features)
        lane.host_wait(lane.record())
        return outputs

    return evaluate
