"""The progress of a collector in a Ray actor, in the consumer's process."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from concurrent.futures import TimeoutError as NotYet
from contextlib import suppress
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

    @classmethod
    def of(cls, progress: Progress) -> Report:
        """Read the progress of a collector in this process; in any thread."""
        return cls(progress.doing, progress.env, progress.row, progress.fragment, progress.elapsed())


class ReportedProgress(Progress):
    """What was last reported of a collector elsewhere. It asks for a report whenever it is looked at.

    Reports also come with each fragment and with each error. No spans of a trace are among them, since the clocks of
    different machines do not agree.
    """

    __slots__ = ("_ask", "_before", "_report")

    def __init__(self, ask: Callable[[], Future[Report]]) -> None:
        """Take the function that asks for a report; it may raise, and the report may fail to come."""
        super().__init__()
        self._ask = ask
        self._report: Future[Report] | None = None
        self._before = list(self.seconds)

    def begin_anew(self, doing: str) -> None:
        """Begin with a new collector, which counts its seconds from zero."""
        self._report, self._before = None, list(self.seconds)
        self.doing, self.env, self.row = doing, -1, 0

    def load(self, report: Report) -> None:
        """Note a report."""
        self._report = None
        self.doing, self.env, self.row, self.fragment, seconds = report
        self.seconds = [before + new for before, new in zip(self._before, seconds, strict=True)]

    def state(self) -> tuple[Any, ...]:
        """Return a value that differs from earlier ones as soon as there is progress."""
        self._look(0.0)
        return super().state()

    def __str__(self) -> str:
        self._look(_PATIENCE)
        return super().__str__()

    def _look(self, patience: float) -> None:
        """Note the report that was asked for, if it comes within some seconds; ask for one if none is under way."""
        report, self._report = self._report, None
        with suppress(Exception):  # the collector has died, or Ray has: whoever waits for a fragment is told
            report = report or self._ask()
            try:
                self.load(report.result(patience))
            except NotYet:
                self._report = report
