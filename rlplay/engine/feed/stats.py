"""Statistics of a feed: how collector and learner spent their time, and what to change. Imports nothing of rlplay."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CollectorTime", "LearnerTime", "Stats", "advice"]

_NEGLIGIBLE_IDLE = 0.1
"""A side that is idle for at most this share of the time counts as busy all the time."""

_WORTH_OVERLAPPING = 0.25
"""Two sides that are each busy for at least this share of the time gain from being busy at once."""

_REMEDIES = {  # what to change if the collector spends most of its time on this kind of work
    "stepping": "more `workers` (where a step takes longer than waking one: 50 us), `multi`, or quicker environments",
    "inference": "more environments side by side, a smaller network, or another `actor_device`",
    "transfer": "smaller observations (such as uint8 instead of float32), or an actor on the device of the learner",
}


class CollectorTime(NamedTuple):
    """Seconds that the collector has spent on each kind of work."""

    stepping: float
    """Stepping and resetting environments."""
    inference: float
    """Running the actor; on CUDA, including the wait for its actions."""
    transfer: float
    """Copying rows to the actor's device, and the fragment to the consumer's device."""
    waiting: float
    """Waiting for the next token, that is for the learner; or standing still because the feed is paused."""


class LearnerTime(NamedTuple):
    """Seconds that the learner has spent on each kind of work."""

    waiting: float
    """Inside ``next()``. (In ``same`` this includes all of the collection.)"""
    training: float
    """Between two calls of ``next()``."""


class Stats(NamedTuple):
    """Statistics of a feed, from the first ask to the last delivery.

    The time after the last delivery does not count until the next ``next()``. All time between two calls of ``next()``
    counts as training.
    """

    steps: int
    """The number of valid transitions delivered."""
    seconds: float
    """Wall-clock time."""
    steps_per_second: float
    """``steps / seconds``."""
    collector: CollectorTime
    learner: LearnerTime

    def __str__(self) -> str:
        """Describe in one line the speed, how both sides spent their time, and what to change."""

        def shares(part: CollectorTime | LearnerTime) -> str:
            total = self.seconds or 1.0
            return ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in part._asdict().items())

        rate = f"{self.steps_per_second:.0f} steps/s"
        return (
            f"{rate}; collector: {shares(self.collector)}; learner: {shares(self.learner)}; "
            f"{advice(self.collector, self.learner)}."
        )


def advice(collector: CollectorTime, learner: LearnerTime) -> str:
    """Name the side that is the bottleneck, and what to change.

    Parameters
    ----------
    collector, learner
        Seconds that each side has spent on each kind of work, over the same period.

    Returns
    -------
    str
        A clause without a full stop.
    """
    total = sum(learner)
    if not total:
        return "nothing has been delivered yet"
    # The share of the time that each side is busy. If the sides never overlap, the two shares add up to at most 1.
    collecting = 1 - min(1.0, collector.waiting / total)
    training = learner.training / total
    idle, idle_collector = 1 - training, 1 - collecting
    waits = f"the learner waits {idle:.0%} of the time".replace("%", " %")
    both = f"{waits} and the collector {idle_collector:.0%}".replace("%", " %").replace("  ", " ")
    if max(idle, idle_collector) <= _NEGLIGIBLE_IDLE:
        return f"{both}: both are busy all the time, and neither is the bottleneck"
    if min(collecting, training) >= _WORTH_OVERLAPPING and collecting + training <= 1 + _NEGLIGIBLE_IDLE:
        engines = "`single`, `multi`, or `threaded` if steps release the interpreter lock"
        return f"{both}: they take turns; let them overlap, with `lag=1`: {engines}"
    if min(idle, idle_collector) > _NEGLIGIBLE_IDLE and max(idle, idle_collector) < 2 * min(idle, idle_collector):
        return f"{both}: each waits for the other now and then; a larger `lag` evens that out, or longer fragments"
    if training >= collecting:
        return f"{both}: training is the bottleneck, and faster collection would change nothing"
    seconds = collector._asdict()
    most = max(_REMEDIES, key=lambda kind: seconds[kind])
    return f"{waits}: collection is the bottleneck, and most of it is {most}: {_REMEDIES[most]}"
