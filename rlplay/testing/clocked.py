"""A simulated device with a virtual clock: how long collecting takes, computed instead of measured.

Each thread has a virtual time of its own, and so has each stream. A piece of work on a stream begins when a thread has
asked for it and the stream is free, and it takes as long as its code says by :meth:`ClockedLane.compute`. A thread that
waits for an event goes on when the event is reached. Environments and learners pass virtual time by
:meth:`ClockedLane.sleep`. All results depend on these durations alone, not on the machine.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import Any, NamedTuple

from .lagging import LaggingLane

__all__ = ["ClockedLane"]


class _TimedEvent(NamedTuple):
    """An event, and when it is reached; ``recorded`` is the time of the thread that has recorded it."""

    event: Any
    reached: float
    recorded: float


class ClockedLane(LaggingLane):
    """A lagging device whose work runs as soon as it can, with a virtual clock.

    Parameters
    ----------
    slowdown : float
        The factor by which work takes longer on the collector's streams than on the consumer's, as it would beside a
        learner on the same device.
    """

    def __init__(self, *, slowdown: float = 1.0) -> None:
        super().__init__(haste=1.0)
        self._slowdown = slowdown
        self._thread_times: dict[int, float] = {}
        self._free_at: dict[int, float] = {}  # by the id of a stream
        self._computed = 0.0

    @property
    def now(self) -> float:
        """The virtual time of this thread, in seconds."""
        return self._thread_times.get(threading.get_ident(), 0.0)

    def sleep(self, seconds: float) -> None:
        """Let this thread be busy for some virtual time."""
        self._thread_times[threading.get_ident()] = self.now + seconds

    def compute(self, seconds: float) -> None:
        """Let the piece of work that calls this take so much virtual time on its stream."""
        self._computed += seconds

    def launch(self, work: Callable[[], None]) -> None:
        """Run work, and let the current stream be busy for as long as the work says."""
        with self._lock:
            self._computed = 0.0
            super().launch(work)
            stream = self.current
            taken = self._computed * (1.0 if stream is self.consumer else self._slowdown)
            self._free_at[id(stream)] = max(self._free_at.get(id(stream), 0.0), self.now) + taken

    def record(self, spent: Any = None) -> Any:
        """Return an event behind all work of the current stream."""
        with self._lock:
            return _TimedEvent(super().record(), max(self._free_at.get(id(self.current), 0.0), self.now), self.now)

    def wait(self, event: Any) -> None:
        """Let the current stream wait for an event, which a thread has recorded before this one could know of it."""
        with self._lock:
            super().wait(event.event)
            stream = id(self.current)
            self._free_at[stream] = max(self._free_at.get(stream, 0.0), event.reached)
            self._thread_times[threading.get_ident()] = max(self.now, event.recorded)

    def host_wait(self, event: Any) -> None:
        """Let this thread wait for an event."""
        if event is not None:
            super().host_wait(event.event)
            self._thread_times[threading.get_ident()] = max(self.now, event.reached)

    def reached(self, event: Any) -> bool:
        """Return whether an event has been reached at the virtual time of this thread."""
        return event is None or (super().reached(event.event) and event.reached <= self.now)

    def synchronize_collector(self) -> None:
        """Wait for the collector's work, in no virtual time."""
        with self._lock:
            for stream in [*self.turns.values(), self.collector]:
                self._reach(stream.record())
