"""Where the collector stands, and where the seconds went on both sides: counters that are always on.

Knows nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

__all__ = ["CollectorTime", "LearnerTime", "Progress", "Stats", "note"]


def note(error: BaseException, text: str) -> None:
    """Add a note to an exception, as ``add_note`` does, which Python 3.10 does not have."""
    vars(error).setdefault("__notes__", []).append(f"rlplay: {text}")


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
        workers = [(name, progress.doing, progress.env) for name, progress in self.busy]
        return self.doing, self.env, self.row, self.fragment, workers

    def __str__(self) -> str:
        if self.doing.startswith("env.") and self.busy:
            where = "; ".join(f"{name}: environment {at.env}, in {at.doing}" for name, at in self.busy)
            return f"{where}, at step {self.row} of fragment {self.fragment}"
        if self.doing.startswith("env."):
            who = "the vector environment" if self.env < 0 else f"environment {self.env}"
            return f"{who}, in {self.doing}, at step {self.row} of fragment {self.fragment}"
        return f"the collector, in {self.doing}, at step {self.row} of fragment {self.fragment}"


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
