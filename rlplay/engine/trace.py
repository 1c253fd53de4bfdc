"""Where the collector stands, and where the seconds went on both sides: counters that are always on.

Knows nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["CollectorTime", "LearnerTime", "Posted", "Progress", "Stats", "note"]


def note(error: BaseException, text: str) -> None:
    """Add a note to an exception, as ``add_note`` does, which Python 3.10 does not have."""
    vars(error).setdefault("__notes__", []).append(f"rlplay: {text}")


def _word(k: int, of: str = "_words") -> Any:
    return property(lambda self: getattr(self, of)[k].item(), lambda self, x: getattr(self, of).__setitem__(k, x))


class Progress:
    """Where the collector stands, kept by plain stores: for the notes on errors, and for whoever waits for it.

    Written by the collector alone. Readers in other threads see each number whole, though not all of one moment,
    which is enough to tell whether anything moves.
    """

    __slots__ = ("busy", "doing", "env", "fragment", "inference", "row", "stepping", "transfer", "waiting")

    def __init__(self) -> None:
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
        self.stepping = self.inference = self.transfer = self.waiting = 0.0

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


class Posted(Progress):
    """A progress in memory that two processes share: written in the one, read in the other."""

    SIZE = 72
    """How many bytes it takes."""

    _DOINGS = (
        "starting", "env.make", "checking the spaces", "env.reset", "getting ready", "env.step",
        "actor.step", "actor.reset", "the hand-over", "waiting for the learner",
    )  # fmt: skip

    __slots__ = ("_seconds", "_words")

    def __init__(self, memory: npt.NDArray[np.uint8]) -> None:
        """Look at memory that is all zeros at first."""
        self._words = memory[: self.SIZE].view(np.int64)
        self._seconds = self._words.view(np.float64)
        self.busy = ()

    doing = property(
        lambda self: self._DOINGS[self._words[0]],
        lambda self, doing: self._words.__setitem__(0, self._DOINGS.index(doing)),
    )
    env, row, fragment = (_word(k) for k in (1, 2, 3))
    halted = _word(4)
    """Whether the collector is to stand still at its next step: the one word that is written on the other side."""
    stepping, inference, transfer, waiting = (_word(k, "_seconds") for k in (5, 6, 7, 8))


class CollectorTime(NamedTuple):
    """Seconds that the collector has spent in each place."""

    stepping: float
    """In the environments."""
    inference: float
    """In the actor; on CUDA, waiting for its actions included."""
    transfer: float
    """Putting the fragment together on the consumer's device."""
    waiting: float
    """For the next snapshot, which is to say for the learner."""


class LearnerTime(NamedTuple):
    """Seconds that the learner has spent in each place."""

    waiting: float
    """Inside ``next()``, for a fragment. (In ``same`` this is the whole of the collection.)"""
    training: float
    """Between two calls of ``next()``."""


class Stats(NamedTuple):
    """What a feed has done since its first fragment was asked for."""

    steps: int
    """Transitions delivered."""
    seconds: float
    """Wall-clock time since the first fragment was asked for."""
    steps_per_second: float
    """Their ratio."""
    collector: CollectorTime
    learner: LearnerTime

    def __str__(self) -> str:
        def shares(part: CollectorTime | LearnerTime) -> str:
            total = self.seconds or 1.0
            return ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in part._asdict().items())

        rate = f"{self.steps_per_second:.0f} steps/s"
        return f"{rate}; collector: {shares(self.collector)}; learner: {shares(self.learner)}"
