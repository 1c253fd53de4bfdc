"""The progress of a collector in a Ray actor, in the consumer's process."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
from math import inf
from time import monotonic
from typing import Any, NamedTuple

from ..concurrency.progress import Progress

__all__ = ["Report", "ReportedProgress"]

_PATIENCE = 1.0
"""Seconds for which a message waits for a report."""


class Report(NamedTuple):
    """What a collector is doing, and the seconds that each kind of work has taken."""

    doing: str
    env: int
    row: int
    fragment: int
    seconds: list[float]
    at: float
    """When it was made, by a clock of the collector's machine."""

    @classmethod
    def of(cls, progress: Progress) -> Report:
        """Read the progress of a collector in this process; in any thread."""
        at = monotonic()
        return cls(progress.doing, progress.env, progress.row, progress.fragment, progress.elapsed(), at)


class ReportedProgress(Progress):
    """What was last reported of a collector elsewhere. It asks for a report whenever it is looked at.

    Reports also come with each fragment and with each error. No spans of a trace are among them, since the clocks of
    different machines do not agree. Reports may arrive in several threads; one that is older than the last is ignored.
    """

    __slots__ = ("_ask", "_before", "_latest", "_noting", "_report")

    def __init__(self, ask: Callable[[], Future[Report]]) -> None:
        """Take the function that asks for a report; it may raise, and the report may fail to come."""
        super().__init__()
        self._ask = ask
        self._noting = threading.RLock()  # reentrant: a finalizer may word a message in any thread
        self._report: tuple[list[float], Future[Report]] | None = None
        """A report that has been asked for; the list ``_before`` of that moment tells which collector was asked."""
        self._before = list(self.seconds)
        """The seconds of all earlier collectors. Each new collector gets a list of its own."""
        self._latest = -inf

    def begin_anew(self, doing: str) -> None:
        """Begin with a new collector, which counts its seconds from zero."""
        with self._noting:
            self._report, self._before, self._latest = None, list(self.seconds), -inf
            self.doing, self.env, self.row = doing, -1, 0

    def load(self, report: Report) -> None:
        """Note a report of the present collector, unless it is older than the last one."""
        self._note(report, self._before)

    def _note(self, report: Report, before: list[float]) -> None:
        with self._noting:
            if before is self._before and report.at >= self._latest:
                self._report = None
                self.doing, self.env, self.row, self.fragment, seconds, self._latest = report
                self.seconds = [earlier + new for earlier, new in zip(before, seconds, strict=True)]

    def state(self) -> tuple[Any, ...]:
        """Return a value that differs from earlier ones as soon as there is progress."""
        self._look(0.0)
        return super().state()

    def __str__(self) -> str:
        self._look(_PATIENCE)
        return super().__str__()

    def _look(self, patience: float) -> None:
        """Note the report that was asked for, if it comes within some seconds; ask for one if none is under way."""
        asked, self._report = self._report, None
        with suppress(Exception):  # the collector has died, or Ray has: whoever waits for a fragment is told
            before, report = asked = asked or (self._before, self._ask())
            try:
                self._note(report.result(patience), before)
            except NotYet:
                self._report = asked
