"""Clocks that charge every second to one kind of work; they always run. Must not import torch."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple, Protocol

__all__ = [
    "COLLECTING",
    "INFERENCE",
    "KINDS",
    "NOTHING",
    "STEPPING",
    "TRAINING",
    "TRANSFER",
    "WAITING",
    "Clock",
    "Log",
    "Span",
]

KINDS = ("stepping", "inference", "transfer", "waiting", "collecting", "training")
"""The kinds of work. ``collecting`` is the time in which a remote collector waits for its collector processes."""
STEPPING, INFERENCE, TRANSFER, WAITING, COLLECTING, TRAINING = range(len(KINDS))
NOTHING = -1
"""The kind of a clock that has not been switched yet."""


class Span(NamedTuple):
    """An interval of time in which one kind of work was done."""

    kind: int
    """Index into :data:`KINDS`."""
    start: float
    """Seconds of ``perf_counter``, which on Linux is the same clock in all processes of a machine."""
    end: float


class Log(Protocol):
    """Receives the spans of a clock: a list, or an object with the same ``append``."""

    def append(self, span: tuple[int, float, float], /) -> None:
        """Add a span that has just ended."""


class Clock:
    """Charges every moment to exactly one kind of work.

    One thread switches the clock; other threads may read it, and set the log. No lock is taken: a span goes into the
    log and into ``seconds`` first, and only then does ``current`` change. So whoever has read ``current`` finds all
    earlier spans in the log, unless the log was taken away before.
    """

    __slots__ = ("current", "log", "seconds")

    def __init__(self) -> None:
        self.seconds: list[float] = [0.0] * len(KINDS)
        """Seconds spent on each kind of work; without the span that has not ended."""
        self.current = NOTHING, 0.0
        """The kind of the span that has not ended, and its start."""
        self.log: Log | None = None
        """Receives every span that ends, while a trace is recorded."""

    def switch_to(self, kind: int) -> None:
        """End the current span and begin one of another kind; do nothing if the kind is the same."""
        was, since = self.current
        if kind == was:
            return
        now = perf_counter()
        if was != NOTHING:
            log = self.log
            if log is not None:
                log.append((was, since, now))
            self.seconds[was] += now - since
        self.current = kind, now

    def elapsed(self) -> list[float]:
        """Return the seconds spent on each kind of work so far, with those of the span under way; in any thread.

        The thread that switches the clock may end a span meanwhile: then all is read again. In the moment between its
        last two stores the span that it ends counts twice.
        """
        while True:
            current = self.current
            seconds = list(self.seconds)
            if self.current is current:
                break
        kind, since = current
        if kind != NOTHING:
            seconds[kind] += perf_counter() - since
        return seconds

    def log_to(self, log: Log | None) -> None:
        """Append every span that ends from now on to ``log``; None ends that."""
        self.log = log

    def drain(self) -> int:
        """Move the spans of another process into the log; return how many were lost. Here there are none."""
        return 0
