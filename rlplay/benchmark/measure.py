"""The measurements of the benchmark: timed windows, the rounds of all cases, statistics, and the two limits.

A *case* is a limit or an engine. A *window* is one timed run over a number of fragments, and a :class:`Measurement` is
its result. A *round* runs all windows of all cases once, one after the other.

The limits are plain loops without an engine: limit a is the plain loop that steps the environments, and limit b is the
same loop, which also runs the actor's networks before each step. The cases that run an engine are in ``runs``.
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
    "fragments_per_window",
    "measure_interleaved",
    "overlap_efficiency",
    "seconds_per_fragment",
    "steps_per_second",
]

_N_ACTION_ROWS = 1024
"""Number of action rows drawn in advance; the loop repeats them."""


class Measurement(NamedTuple):
    """The result of one window."""

    fragments: int
    """Number of fragments collected, trained on, or both. A limit counts T steps as a fragment."""
    steps: int
    """Number of transitions of all environments together; 0 in a window that only trains."""
    seconds: float
    """Wall-clock time of the window."""
    collector_seconds: dict[str, float]
    """Seconds of the collector by activity (the fields of ``CollectorTime``); empty for limits and for training."""


class Case(Protocol):
    """A limit or an engine that the benchmark measures."""

    def warm_up(self) -> None:
        """Run each window without storing a measurement, and choose the number of fragments in each window."""

    def measure(self) -> None:
        """Run each window once, and store its measurement.

        The other cases are between their measurements, and their feeds are paused.
        """


def measure_interleaved(cases: Sequence[Case], n_rounds: int, on_progress: Callable[[], object]) -> None:
    """Warm up all cases, then measure each of them once per round, for ``n_rounds`` rounds.

    ``on_progress`` is called after each warm-up and after each call of ``measure``.
    """
    for case in cases:
        case.warm_up()
        on_progress()
    for _ in range(n_rounds):
        for case in cases:
            case.measure()
            on_progress()


def fragments_per_window(window_seconds: float, fragment_seconds: float) -> int:
    """Return how many fragments of ``fragment_seconds`` each fill a window of ``window_seconds``; at least one."""
    return max(1, round(window_seconds / fragment_seconds))


class Spread(NamedTuple):
    """The values of one quantity in all rounds, with their median and range."""

    values: list[float]
    """One value for each round, in the order of the rounds."""

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
    """Return max(collection, training) / both: medians of seconds per fragment; 1 is perfect overlap."""
    longer = max(seconds_per_fragment(collection).median, seconds_per_fragment(training).median)
    return longer / seconds_per_fragment(both).median


class Limit:
    """A plain loop over the environments, without an engine: limit a or limit b.

    Limit a only steps the environments. Limit b also runs the actor's networks before each step.

    Parameters
    ----------
    work : Work
        Makes the environments.
    n_envs, n_steps : int
        ``B`` and ``T``.
    before_step : callable or None
        Called with the observations before each step. Limit a: None. Limit b: the function that
        :func:`forward_pass` returns.
    seconds : float
        Approximate duration of one window.

    Attributes
    ----------
    measurements : list of Measurement
        One for each call of :meth:`measure`.
    """

    def __init__(
        self, work: Work, n_envs: int, n_steps: int, before_step: Callable[[Any], object] | None, seconds: float
    ) -> None:
        self._n_steps, self._before_step, self._seconds = n_steps, before_step, seconds
        self._envs = _Vector(work.make_env(n_envs)) if work.vector else _Singles(work, n_envs)
        self._n_envs = n_envs
        actions = np.random.default_rng(0).integers(self._envs.n_actions, size=(_N_ACTION_ROWS, n_envs))
        self._actions = [row if work.vector else list(row) for row in actions]
        self._t, self._n_fragments = 0, 1
        self.measurements: list[Measurement] = []

    def warm_up(self) -> None:
        """Step without storing a measurement, and choose the number of fragments in a window."""
        self._step_fragments(1)
        self._n_fragments = fragments_per_window(self._seconds, self._step_fragments(1).seconds)

    def measure(self) -> None:
        """Run one window, and store its measurement."""
        self.measurements.append(self._step_fragments(self._n_fragments))

    def _step_fragments(self, n_fragments: int) -> Measurement:
        """Make ``n_fragments * T`` steps in all environments, and return their measurement."""
        started = perf_counter()
        for _ in range(n_fragments * self._n_steps):
            if self._before_step is not None:
                self._before_step(self._envs.obs)
            self._envs.step(self._actions[self._t % _N_ACTION_ROWS])
            self._t += 1
        steps = n_fragments * self._n_steps * self._n_envs
        return Measurement(n_fragments, steps, perf_counter() - started, {})

    def close(self) -> None:
        """Close the environments."""
        self._envs.close()


class _Singles:
    """Single environments, and the latest observation of each."""

    def __init__(self, work: Work, n_envs: int) -> None:
        self._envs = [work.make_env() for _ in range(n_envs)]
        self.n_actions = int(self._envs[0].action_space.n)
        self.obs = [env.reset(seed=j)[0] for j, env in enumerate(self._envs)]

    def step(self, actions: Sequence[Any]) -> None:
        """Step each environment once, and reset those whose episode ended."""
        for j, env in enumerate(self._envs):
            obs, _, terminated, truncated, _ = env.step(actions[j])
            if terminated or truncated:
                obs, _ = env.reset()
            self.obs[j] = obs

    def close(self) -> None:
        """Close the environments."""
        for env in self._envs:
            env.close()


class _Vector:
    """A vector environment, and its latest observations."""

    def __init__(self, env: Any) -> None:
        self._env, self.n_actions = env, int(env.single_action_space.n)
        self.obs = env.reset(seed=0)[0]

    def step(self, actions: Any) -> None:
        """Step the environment, which resets its parts by itself."""
        self.obs = self._env.step(actions)[0]

    def close(self) -> None:
        """Close the environment."""
        self._env.close()


def forward_pass(actor: ActorCritic, lane: Lane) -> Callable[[Any], tuple[Tensor, Tensor]]:
    """Return a function that runs the actor's networks on a list of observations, or on an array of them.

    The function copies the observations to the lane's device as one batch ``(1, B, ...)``, runs the networks there,
    waits for the device, and returns the outputs of the policy network and of the value network.
    """
    body, policy, value = actor.body, actor.policy, actor.value

    @torch.no_grad()
    def run_networks(observations: Any) -> tuple[Tensor, Tensor]:
        batch = observations if isinstance(observations, np.ndarray) else np.stack(observations)
        features = body(torch.from_numpy(batch).to(lane.device)[None])
        outputs = policy(features), value(features)
        lane.host_wait(lane.record())
        return outputs

    return run_networks
