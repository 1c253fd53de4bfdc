"""What a feed has delivered so far, and how both sides have spent their time."""

from __future__ import annotations

import os
import warnings
from collections.abc import Mapping
from typing import Any

from ..collector.messages import Delivery
from ..collector.saving import pack_episodes, unpack_episodes
from ..concurrency.clock import TRAINING, WAITING, Clock
from ..concurrency.progress import Progress
from ..core import Episode
from ..memory.lane import Lane
from .driver import Driver, Inline
from .episode_log import EpisodeLog
from .stats import CollectorTime, LearnerTime, Stats, engine_of
from .timeline import Recorder, Trace

__all__ = ["Delivered", "stop_unreferenced"]


class Delivered:
    """What a feed has delivered so far. The base class of :class:`~rlplay.engine.feed.feed.Feed`."""

    def __init__(self, driver: Driver, lane: Lane, progress: Progress, lag: int) -> None:
        self._driver, self._lane, self._progress, self._lag = driver, lane, progress, lag
        self._ended = self._closed = False
        self._asked = self._n_delivered = 0
        self._steps = self._steps_before = 0
        self._version: int | tuple[int, ...] | None = None
        self._episodes = EpisodeLog()
        self._clock = Clock()
        self._recorder = Recorder(self._clock, progress, lane)
        self._note_times()

    def _note_times(self) -> None:
        """Note what :attr:`stats` tells: in one tuple, so that another thread reads the numbers of one moment."""
        learner = LearnerTime(self._clock.seconds[WAITING], self._clock.seconds[TRAINING])
        self._times = self._steps - self._steps_before, learner, CollectorTime(*self._progress.spent())

    def _count_delivery(self, delivery: Delivery) -> None:
        """Count the steps and episodes of a delivery."""
        self._version = delivery.version
        self._n_delivered += 1
        self._steps += delivery.steps
        self._episodes.add(delivery.episodes, delivery.late)

    def _counts(self) -> dict[str, Any]:
        """Return what has been counted, as numbers and a tensor."""
        return {"version": self._version, "steps": self._steps, "episodes": pack_episodes(self._episodes.kept())}

    def _continue_counts(self, asked: int, saved: Mapping[str, Any]) -> None:
        """Continue to count from ``asked`` fragments, which were all delivered, and what :meth:`_counts` returned."""
        self._asked = self._n_delivered = asked
        self._version, self._steps = saved["version"], saved["steps"]
        self._steps_before = self._steps
        self._episodes.add(unpack_episodes(saved["episodes"]))

    @property
    def version(self) -> int | tuple[int, ...] | None:
        """The number of the snapshot that collected the last delivered fragment (fragment ``k``: ``max(0, k - lag)``).

        None before the first delivery. A tuple with one number for each part of the fragment, if fragments are made of
        the parts that finish first (``multi`` and ``cluster`` with ``n_per_batch < n_actors``).
        """
        return self._version

    @property
    def steps(self) -> int:
        """The number of valid transitions delivered so far, over all environments; with those before a saved state.

        May wait for the last fragment, as :meth:`episodes` does.
        """
        return self._steps + self._episodes.late_steps()

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended in fragments delivered since the last call, in the order ``(t, env)``.

        At most the last 100 000 are kept between calls. Another thread may call ``next()`` meanwhile. Those of
        environments on a device are brought down behind each fragment: then this waits for the last fragment.
        """
        return self._episodes.take()

    @property
    def stats(self) -> Stats:
        """Steps per second, and how both sides spent their time, from the first ask to the last delivery.

        A feed that goes on from a saved state counts from there. May wait, as :attr:`steps` does.
        """
        steps, learner, collector = self._times
        steps += self._episodes.late_steps()
        return Stats(
            steps=steps,
            seconds=sum(learner),
            steps_per_second=steps / (sum(learner) or 1.0),
            collector=collector,
            learner=learner,
            engine=engine_of(isinstance(self._driver, Inline), [name for name, _ in self._progress.parts]),
            counters=self._lane.counters.copy(),
            environments=self._driver.collector.environments_are,
        )

    @property
    def open(self) -> bool:
        """True until the feed is closed or has ended: more fragments can be asked for."""
        return not (self._closed or self._ended)

    def trace(self, path: str | os.PathLike[str] | None = None) -> Trace:
        """Record what learner, collector and workers do, and when, from now on; write it to a file at the end.

        ``with feed.trace("run.json"):`` records a block. Without ``with``, the trace ends at its own ``close()``, or
        with the feed. It costs some microseconds for each step of the collector, and memory for each span: record a
        few hundred fragments rather than hours.

        Parameters
        ----------
        path : path, optional
            The file to write; an existing file is replaced. By default no file is written.

        Returns
        -------
        Trace
            The recording, which :func:`rlplay.plotting.timeline` draws.

        Raises
        ------
        RuntimeError
            The feed is closed, or is already being recorded.
        OSError
            The file cannot be written.
        """
        if not self.open:
            raise RuntimeError("the feed is closed.")
        return self._recorder.begin(path, self._n_delivered, None if isinstance(self._version, tuple) else self._lag)


def stop_unreferenced(driver: Driver, recorder: Recorder, pid: int) -> None:
    """Stop the driver of a feed that was dropped without ``close()``, unless this is a fork of the process ``pid``."""
    if os.getpid() != pid:
        return
    try:
        recorder.close()
    finally:
        for complaint in driver.stop():
            warnings.warn(complaint, RuntimeWarning, stacklevel=2)
