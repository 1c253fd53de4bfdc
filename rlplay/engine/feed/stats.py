"""Where the seconds went on both sides, and what is to be changed about it. Knows nothing else."""

from __future__ import annotations

from typing import NamedTuple

__all__ = ["CollectorTime", "LearnerTime", "Stats", "advice"]

_FEW, _SOME = 0.1, 0.25
"""Shares of the time: of waiting that is not worth a word, and of work that is worth being overlapped."""

_REMEDIES = {
    "stepping": "more `workers` (where a step takes longer than waking one: 50 us), `multi`, or quicker environments",
    "inference": "more environments side by side, a smaller network, or another `actor_device`",
    "transfer": "smaller observations (such as uint8 instead of float32), or an actor on the device of the learner",
}


class CollectorTime(NamedTuple):
    """Seconds that the collector has spent on each kind of thing."""

    stepping: float
    """In the environments."""
    inference: float
    """In the actor; on CUDA, waiting for its actions included."""
    transfer: float
    """Bringing rows to the actor's device, and putting the fragment together on the consumer's."""
    waiting: float
    """For the next snapshot, which is to say for the learner; or because the feed is paused."""


class LearnerTime(NamedTuple):
    """Seconds that the learner has spent on each kind of thing."""

    waiting: float
    """Inside ``next()``, for a fragment. (In ``same`` this is the whole of the collection.)"""
    training: float
    """Between two calls of ``next()``."""


class Stats(NamedTuple):
    """What a feed has done, from the first ask to the delivery of the last fragment.

    There the clock stands until the next fragment is asked for. So what comes after a loop has been left does not
    count, unless it goes on: what lies between two calls of ``next()`` is training, as far as a feed can tell.
    """

    steps: int
    """Transitions delivered."""
    seconds: float
    """Wall-clock time."""
    steps_per_second: float
    """Their ratio."""
    collector: CollectorTime
    learner: LearnerTime

    def __str__(self) -> str:
        """Say in one line how fast it was, where the time went, and what to change."""

        def shares(part: CollectorTime | LearnerTime) -> str:
            total = self.seconds or 1.0
            return ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in part._asdict().items())

        rate = f"{self.steps_per_second:.0f} steps/s"
        return (
            f"{rate}; collector: {shares(self.collector)}; learner: {shares(self.learner)}; "
            f"{advice(self.collector, self.learner)}."
        )


def advice(collector: CollectorTime, learner: LearnerTime) -> str:
    """Say which side the other one waits for, and what to change.

    Parameters
    ----------
    collector, learner
        What both sides have spent the same time on, in seconds.

    Returns
    -------
    str
        A clause without a full stop.
    """
    total = sum(learner)
    if not total:
        return "nothing has been delivered yet"
    # the shares of time that both are busy; were they never busy at once, these would add up to 1 at most
    busy = 1 - min(1.0, collector.waiting / total)
    training = learner.training / total
    idle, idle_collector = 1 - training, 1 - busy
    waits = f"the learner waits {idle:.0%} of the time".replace("%", " %")
    both = f"{waits} and the collector {idle_collector:.0%}".replace("%", " %").replace("  ", " ")
    if max(idle, idle_collector) <= _FEW:
        return f"{both}: both are busy all the time, and neither is the bottleneck"
    if min(busy, training) >= _SOME and busy + training <= 1 + _FEW:
        engines = "`single`, `multi`, or `threaded` if steps release the interpreter lock"
        return f"{both}: they take turns; let them overlap, with `lag=1`: {engines}"
    if min(idle, idle_collector) > _FEW and max(idle, idle_collector) < 2 * min(idle, idle_collector):
        return f"{both}: each waits for the other now and then; a larger `lag` evens that out, or longer fragments"
    if training >= busy:
        return f"{both}: training is the bottleneck, and faster collection would change nothing"
    spent = collector._asdict()
    most = max(_REMEDIES, key=lambda kind: spent[kind])
    return f"{waits}: collection is the bottleneck, and most of it is {most}: {_REMEDIES[most]}"
