"""Clocks that charge every second to one kind of work. Always on."""

from __future__ import annotations

from time import perf_counter
from typing import NamedTuple, Protocol

__all__ = ["COLLECTING", "INFERENCE", "KINDS", "STEPPING", "TRAINING", "TRANSFER", "WAITING", "Clock", "Log", "Span"]

KINDS = ("stepping", "inference", "transfer", "waiting", "collecting", "training")
"""What a second can be spent on. A collector whose processes do the rest is ``collecting``."""
STEPPING, INFERENCE, TRANSFER, WAITING, COLLECTING, TRAINING = range(len(KINDS))
_NOTHING = -1


class Span(NamedTuple):
    """Some seconds, spent on one thing."""

    kind: int
    """Index into :data:`KINDS`."""
    start: float
    """By ``perf_counter``, which is one clock for all the processes of a machine (on Linux)."""
    end: float


class Log(Protocol):
    """What spans are noted in: a list, or something like it."""

    def append(self, span: tuple[int, float, float], /) -> None:
        """Note a span that has just ended."""


class Clock:
    """Charges every moment to one kind of thing: nothing is left out, and nothing counts twice."""

    __slots__ = ("at", "log", "seconds")

    def __init__(self) -> None:
        self.seconds: list[float] = [0.0] * len(KINDS)
        """Those that are spent, of each kind."""
        self.at = _NOTHING, 0.0
        """What they are spent on now, and since when."""
        self.log: Log | None = None
        """Where every span is noted, while there is a trace."""

    def turn_to(self, kind: int) -> None:
        """Spend the time on something else, from now on."""
        was, since = self.at
        if kind == was:
            return
        now = perf_counter()
        self.at = kind, now
        if was != _NOTHING:
            self.seconds[was] += now - since
            log = self.log
            if log is not None:
                log.append((was, since, now))

    def listen(self, log: Log | None) -> None:
        """Note every span that ends from now on in ``log``; None: no more."""
        self.log = log

    def drain(self) -> int:
        """Bring what has been noted elsewhere into the log; return how many spans were lost on the way."""
        return 0
