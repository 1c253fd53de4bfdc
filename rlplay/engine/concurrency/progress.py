"""What the collector is doing at the moment, for error messages, the watchdog and the statistics."""

from __future__ import annotations

from collections.abc import Sequence
from time import perf_counter
from typing import Any

import numpy as np
import numpy.typing as npt

from .clock import _NOTHING, COLLECTING, INFERENCE, KINDS, STEPPING, TRANSFER, WAITING, Clock, Log

__all__ = ["SharedProgress", "Progress"]

_KIND_OF = {
    "env.step": STEPPING,
    "an upload": TRANSFER,
    "actor.reset": INFERENCE,
    "actor.step": INFERENCE,
    "the hand-over": TRANSFER,
    "its processes": COLLECTING,
    "a pause": WAITING,
    "waiting for the learner": WAITING,
    "waiting for the next step": WAITING,
}


_CODES = {doing: (1 + k, kind) for k, (doing, kind) in enumerate(_KIND_OF.items())}
"""What :class:`SharedProgress` writes for each activity: its code, and the kind of work that it counts as."""


class Progress(Clock):
    """Where the collector stands: for the notes on errors, for whoever waits for it, and for the statistics.

    Written by the collector alone. Readers in other threads see each number whole, though not all of one moment,
    which is enough to tell whether anything moves.
    """

    __slots__ = ("busy", "doing", "env", "fragment", "gather", "parts", "row")

    def __init__(self) -> None:
        super().__init__()
        self.doing = "starting"
        """What is under way: ``env.make``, ``env.reset``, ``env.step``, ``actor.step``, or the engine itself."""
        self.env = -1
        """The environment whose turn it is; -1 for all of a vector environment."""
        self.row = 0
        """The row of the fragment that is reacted to."""
        self.fragment = 0
        """The number of the fragment that is being collected."""
        self.busy: Sequence[tuple[str, Progress]] = ()
        """The workers that are under way, and where each of them stands."""
        self.parts: Sequence[tuple[str, Progress]] = ()
        """All who work for the collector, and where each of them stands."""
        self.gather: Any = None
        """What is to be called after each fragment, while there is a trace."""

    def begin(self, doing: str) -> None:
        """Say what is begun now, and spend the time on that."""
        self.doing = doing
        kind = _KIND_OF[doing]
        if kind != self.at[0]:
            self.turn_to(kind)

    def spent(self) -> list[float]:
        """Return the seconds spent so far: stepping, inference, transfer and waiting.

        Time for which others collected is divided as they have divided theirs.
        """
        seconds, (kind, since) = list(self.seconds), self.at
        if kind != _NOTHING:
            seconds[kind] += perf_counter() - since
        theirs = [sum(part.seconds[k] for _, part in self.parts) for k in (STEPPING, INFERENCE, TRANSFER)]
        for k, share in enumerate(theirs):
            seconds[k] += seconds[COLLECTING] * share / (sum(theirs) or 1.0)
        return seconds[: 1 + WAITING]

    def moment(self) -> tuple[Any, ...]:
        """Return something that differs as soon as there is progress."""
        return self.doing, self.env, self.row, self.fragment, *(at.moment() for _, at in self.busy)

    def __str__(self) -> str:
        if self.busy:
            return "; ".join(f"{name}: {at}" for name, at in self.busy)
        if self.doing.startswith("env."):
            who = "the vector environment" if self.env < 0 else f"environment {self.env}"
            return f"{who}, in {self.doing}, at step {self.row} of fragment {self.fragment}"
        return f"the collector, in {self.doing}, at step {self.row} of fragment {self.fragment}"


def _word(k: int) -> Any:
    return property(lambda self: self._words[k], lambda self, x: self._words.__setitem__(k, x))


class SharedProgress(Progress):
    """A progress in memory that two processes share: written in the one, read in the other.

    Spans travel on a ring there. Pages that nothing is ever written to take no memory.
    """

    _ROOM = 2**15
    """How many spans fit on the ring: those of a fragment should."""
    _HEAD = 8 + len(KINDS)
    SIZE = 8 * (_HEAD + 3 * _ROOM)
    """How many bytes it takes."""

    _DOINGS = ("starting", *_KIND_OF, "env.make", "checking the spaces", "env.reset", "getting ready")

    __slots__ = ("_heard", "_read", "_ring", "_words")

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        """Look at memory that is all zeros at first."""
        shared: Any = memory[: self.SIZE]
        self._words: Any = memoryview(shared).cast("q")
        numbers: Any = memoryview(shared).cast("d")
        self.seconds, self._ring = numbers[8 : self._HEAD], numbers[self._HEAD :]
        self.at = _NOTHING, 0.0
        self.busy = self.parts = ()
        self.gather = None
        self._heard: Any = None
        self._read = 0

    doing = property(
        lambda self: self._DOINGS[self._words[0]],
        lambda self, doing: self._words.__setitem__(0, self._DOINGS.index(doing)),
    )

    def begin(self, doing: str) -> None:
        """Say what is begun now, and spend the time on that."""
        self._words[0], kind = _CODES[doing]
        self.turn_to(kind)

    env, row, fragment = (_word(k) for k in (1, 2, 3))
    halted = _word(4)
    """Whether the collector is to stand still at its next step: written on the other side."""
    listened = _word(5)
    """Whether spans are to be noted: written on the other side."""
    noted = _word(6)
    """How many spans have been noted."""

    @property
    def log(self) -> Log | None:  # type: ignore[override]
        """The very object, while somebody listens on the other side."""
        return self if self._words[5] else None

    def append(self, span: tuple[int, float, float]) -> None:
        """Put a span onto the ring."""
        k = self._words[6]
        at = 3 * (k % self._ROOM)
        self._ring[at], self._ring[at + 1], self._ring[at + 2] = span
        self._words[6] = k + 1

    def listen(self, log: Log | None) -> None:
        """Note every span that ends there from now on in ``log``, whenever :meth:`drain` is called."""
        self._heard, self._read = log, self.noted
        self.listened = log is not None

    def drain(self) -> int:
        """Bring what has been noted there into the log; return how many spans were lost on the way."""
        noted: int = self.noted
        first = max(self._read, noted - self._ROOM)
        lost, self._read = first - self._read, noted
        for at in (3 * (k % self._ROOM) for k in range(first, noted)):
            self._heard.append((int(self._ring[at]), self._ring[at + 1], self._ring[at + 2]))
        return lost
