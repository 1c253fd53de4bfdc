"""Statistics of a feed: how collector and learner spent their time, and what to change."""

from __future__ import annotations

from collections.abc import Sequence
from textwrap import fill
from typing import NamedTuple

from ... import interpreter
from ..memory.counters import Counters

__all__ = ["CollectorTime", "LearnerTime", "Stats", "advice", "engine_of"]

_WIDTH = 79
"""Length of the longest line of the advice."""

_NEGLIGIBLE_IDLE = 0.1
"""A side that is idle for at most this share of the time counts as busy all the time."""

_WORTH_OVERLAPPING = 0.25
"""Two sides that are each busy for at least this share of the time gain from being busy at once."""

_MORE_COLLECTORS = "more collectors (`n_actors`), if the cluster has room for them"
_FASTER_STEPS = {  # what to change if stepping is the bottleneck, by engine
    "same": "`multi`, or `threaded` with `workers`, steps them in several processes",
    "threaded": "`workers` if a step costs more than a message to a process and back, or `multi`",
    "workers": "more `workers`, up to one for each environment, if there are cores for them",
    "processes": "`multi` with more processes, if there are cores for them",
    "cluster": _MORE_COLLECTORS,
}
_REMEDIES = {  # what to change if the collector spends most of its time on another kind of work
    "inference": "more environments side by side, a smaller network, or another `actor_device`",
    "transfer": "smaller observations (such as uint8 instead of float32), or an actor on the device of the learner",
}
_OVERLAP = {  # how to collect while the learner trains, by engine
    "same": "`single`, `multi`, or `threaded` if steps release the interpreter lock",
    "threaded": "`lag=1`",
    "workers": "`lag=1`",
    "processes": "`lag=1`",
    "cluster": "`lag=1`",
}
_LOCK = (
    ". They share the interpreter lock, and time spent waiting for it counts as work: if steps are Python, compare the "
    "steps per second with those of "
)
_FASTER_STEPS_WITHOUT_LOCK = {
    "same": "`threaded` with `workers` and `worker='thread'`: the interpreter lock is off, threads step side by side",
    "threaded": "`workers` with `worker='thread'`: the interpreter lock is off, threads step side by side",
    "workers": "more `workers`, up to one for each environment, if there are cores for them; the interpreter lock is "
    "off, so `worker='thread'` will do",
    "processes": "`multi` with more processes, if there are cores for them, or `threaded` with worker threads, which "
    "step side by side since the interpreter lock is off",
    "cluster": _MORE_COLLECTORS,
}
_OVERLAP_WITHOUT_LOCK = {**_OVERLAP, "same": "`threaded`, whose thread shares no interpreter lock here"}

# workers, and engines with processes, take single environments alone
_FASTER_VECTORS = {
    "vector": "if the vector environment steps its parts one after another, as `SyncVectorEnv` does, take one that "
    "steps them side by side, such as `AsyncVectorEnv`, or a list of single environments, which other engines step in "
    "processes; else make a step cheaper",
    "torch": "more parts in the vector environment, whose steps cost little more then",
}
_REMEDIES_IN_TORCH = {
    "inference": "more parts in the vector environment, or a smaller network",
    "transfer": "smaller observations, or a learner on the device of the environment",
}
_FASTER_STEPS_ON_ONE_CORE = (
    "there is only one core. Processes help only if steps wait, for example for a server. Otherwise make a step cheaper"
)
_STEP_AT_ONCE = ", or step many environments at once in a vector environment"
_ONLY_WHERE_ONE_WAITS = ", which gains only where one side waits, as for a device: there is one core"


class CollectorTime(NamedTuple):
    """Seconds that the collector has spent on each kind of work."""

    stepping: float
    """Stepping and resetting environments."""
    inference: float
    """Running the actor; on CUDA, including the wait for its actions, and the copies that captured steps make."""
    transfer: float
    """Copying rows to the actor's device, unless captured steps do, and the fragment to the consumer's device."""
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
    engine: str = "same"
    """Where collection runs: ``same``, ``threaded``, ``workers`` (``threaded`` with workers), ``processes``, or
    ``cluster``."""
    counters: Counters = Counters()
    """What this process has asked of devices so far: all zero if actor and consumer are on the host."""
    environments: str = "list"
    """``"list"``: single environments. ``"vector"``: vector environments. ``"torch"``: vector environments that give
    tensors of torch."""

    def __str__(self) -> str:
        """Describe the speed, how both sides spent their time, and what to change, in lines of less than 80 columns."""

        def shares(part: CollectorTime | LearnerTime) -> str:
            total = self.seconds or 1.0
            return ", ".join(f"{name} {100 * spent / total:.0f} %" for name, spent in part._asdict().items())

        said = advice(self.collector, self.learner, self.engine, self.environments, interpreter.usable_cores())
        return (
            f"{self.steps_per_second:,.0f} steps/s\n"
            f"collector: {shares(self.collector)}\n"
            f"learner:   {shares(self.learner)}\n"
            f"{_counted(self.counters)}"
            f"{fill(said[:1].upper() + said[1:] + '.', _WIDTH, break_long_words=False, break_on_hyphens=False)}"
        )


def _counted(counters: Counters) -> str:
    """Describe what a step takes on a device, fragments included; an empty string if no step was taken there."""
    if not counters.steps:
        return ""
    each = counters.per_step()
    return (
        f"device:    a step of a group takes {each['copies_up']:.2f} copies up ({each['bytes_up'] / 1e3:,.1f} kB),\n"
        f"           {each['copies_down']:.2f} down, {each['host_waits']:.2f} waits, {each['launches']:.2f} launches; "
        f"{counters.locked_bytes / 1e6:,.1f} MB page-locked\n"
    )


def advice(
    collector: CollectorTime, learner: LearnerTime, engine: str = "same", environments: str = "list", n_cores: int = 2
) -> str:
    """Name the side that is the bottleneck, and what to change, in an interpreter with or without its lock.

    Parameters
    ----------
    collector, learner
        Seconds that each side has spent on each kind of work, over the same period.
    engine, environments : str
        See :attr:`Stats.engine` and :attr:`Stats.environments`. Only what this engine has is recommended, or another
        engine that takes these environments.
    n_cores : int
        The number of cores that this process may use. Of the cores of a cluster it says nothing.

    Returns
    -------
    str
        One or more sentences without the last full stop.
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
    has_lock, on_one_core = interpreter.has_lock(), n_cores == 1 and engine != "cluster"
    # only the steps of `threaded` without workers need the interpreter lock of the learner's process
    share_lock = has_lock and engine == "threaded" and min(collecting, training) >= _WORTH_OVERLAPPING
    comparable = "`same` and `single`" if environments == "list" and n_cores > 1 else "`same`"
    lock = _LOCK + comparable if share_lock else ""
    if max(idle, idle_collector) <= _NEGLIGIBLE_IDLE:
        return f"{both}: both are busy all the time{lock or ', and neither is the bottleneck'}"
    if min(collecting, training) >= _WORTH_OVERLAPPING and collecting + training <= 1 + _NEGLIGIBLE_IDLE:
        return f"{both}: they take turns; let them overlap: {_overlap(engine, environments, has_lock, on_one_core)}"
    if min(idle, idle_collector) > _NEGLIGIBLE_IDLE and max(idle, idle_collector) < 2 * min(idle, idle_collector):
        remedy = f"a larger `lag` evens that out, or longer fragments{lock}"
        return f"{both}: each waits for the other now and then; {remedy}"
    if training >= collecting:
        return f"{both}: training is the bottleneck{lock or ', and faster collection would change nothing'}"
    remedies = {
        "stepping": _faster_steps(engine, environments, has_lock, on_one_core),
        **(_REMEDIES_IN_TORCH if environments == "torch" else _REMEDIES),
    }
    seconds = collector._asdict()
    most = max(remedies, key=lambda kind: seconds[kind])
    return f"{waits}: collection is the bottleneck, and most of it is {most}: {remedies[most]}{lock}"


def _faster_steps(engine: str, environments: str, has_lock: bool, on_one_core: bool) -> str:
    """Return what to change if stepping is the bottleneck."""
    if on_one_core and environments != "torch":
        return _FASTER_STEPS_ON_ONE_CORE + (_STEP_AT_ONCE if environments == "list" else "")
    if environments != "list":
        return _FASTER_VECTORS[environments]
    return (_FASTER_STEPS if has_lock else _FASTER_STEPS_WITHOUT_LOCK)[engine]


def _overlap(engine: str, environments: str, has_lock: bool, on_one_core: bool) -> str:
    """Return how to collect while the learner trains."""
    in_thread = "`threaded`" if engine == "same" else "`lag=1`"
    if on_one_core:
        return in_thread + _ONLY_WHERE_ONE_WAITS
    if environments == "torch":
        return in_thread
    if engine == "same" and environments == "vector" and has_lock:
        return "`threaded`, if steps release the interpreter lock"
    return (_OVERLAP if has_lock else _OVERLAP_WITHOUT_LOCK)[engine]


def engine_of(inline: bool, parts: Sequence[str]) -> str:
    """Return :attr:`Stats.engine`, by whether the consumer's thread collects and the names of workers or collectors.

    An inline collector without parts is ``same``.
    """
    if not parts:
        return "same" if inline else "threaded"
    if parts[0].startswith("worker"):
        return "workers"
    return "processes" if parts[0].startswith("collector process") else "cluster"
