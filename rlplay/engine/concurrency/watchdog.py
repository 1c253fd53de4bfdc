"""Detects that a collector or a child process makes no progress. Must not import torch."""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter

from .progress import Progress

__all__ = ["LONGEST_INTERVAL", "Watchdog"]

LONGEST_INTERVAL = 0.5
"""Seconds. An interrupt that arrives just before a wait begins is handled only when that wait has ended."""


class Watchdog:
    """Raises TimeoutError if a progress has not changed for ``timeout`` seconds.

    Parameters
    ----------
    progress : Progress
        Watched by its :meth:`~rlplay.engine.concurrency.progress.Progress.state`.
    timeout : float
        Seconds without any change, from construction on, after which :meth:`check` raises.
    describe : callable
        Returns what is being waited for, for the message.
    """

    def __init__(self, progress: Progress, timeout: float, describe: Callable[[], str]) -> None:
        self.interval = min(timeout / 8, LONGEST_INTERVAL)
        """Seconds to wait between two calls of :meth:`check`."""
        self._progress, self._timeout, self._describe = progress, timeout, describe
        self._state, self._changed = progress.state(), perf_counter()

    def check(self, *, paused: bool = False) -> None:
        """Raise TimeoutError if there has been no progress for too long. A ``paused`` call restarts the timeout."""
        state = self._progress.state()
        if state != self._state or paused:
            self._state, self._changed = state, perf_counter()
        elif perf_counter() - self._changed >= self._timeout:
            raise TimeoutError(f"no progress for {self._timeout:g} s: {self._describe()}.")
