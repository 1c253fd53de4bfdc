"""Taking turns, and what comes of it: medians, ranges, ratios. Knows neither engines nor torch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from statistics import median
from typing import NamedTuple, Protocol

__all__ = ["Contestant", "Spread", "Turn", "count_for", "efficiency", "race", "rates", "times"]


class Turn(NamedTuple):
    """One window of one turn, measured."""

    fragments: int
    """How many fragments were received, trained on, or both; for a limit, as many times ``T`` steps were made."""
    steps: int
    """Transitions, of all environments together; 0 if nothing was collected."""
    seconds: float
    """Wall-clock time."""
    places: dict[str, float]
    """Where the collector's seconds went."""


class Contestant(Protocol):
    """Whoever is measured."""

    def warm_up(self) -> None:
        """Do all once, unmeasured, and settle how much makes a turn."""

    def turn(self) -> None:
        """Be measured once more, while all others stand still."""


class Spread(NamedTuple):
    """A few measurements of the same thing."""

    values: list[float]
    """In the order in which they were taken."""

    @property
    def median(self) -> float:
        """Their median."""
        return median(self.values)

    @property
    def low(self) -> float:
        """The least."""
        return min(self.values)

    @property
    def high(self) -> float:
        """The greatest."""
        return max(self.values)


def race(contestants: Sequence[Contestant], repeats: int, tick: Callable[[], object]) -> None:
    """Let all warm up, then take turns: one each, ``repeats`` times over. ``tick`` is called after each of them."""
    for contestant in contestants:
        contestant.warm_up()
        tick()
    for _ in range(repeats):
        for contestant in contestants:
            contestant.turn()
            tick()


def count_for(seconds: float, each: float) -> int:
    """Tell how often to do what takes ``each`` seconds so that it lasts ``seconds``: at least once."""
    return max(1, round(seconds / each))


def rates(turns: Iterable[Turn]) -> Spread:
    """Transitions per second."""
    return Spread([turn.steps / turn.seconds for turn in turns])


def times(turns: Iterable[Turn]) -> Spread:
    """Seconds per fragment."""
    return Spread([turn.seconds / turn.fragments for turn in turns])


def efficiency(collecting: Iterable[Turn], training: Iterable[Turn], both: Iterable[Turn]) -> float:
    """How well training and collection overlap: the longer one's time alone, over the time that both take together."""
    return max(times(collecting).median, times(training).median) / times(both).median
