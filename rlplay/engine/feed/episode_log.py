"""Keeps the episodes that have ended until the user takes them. One thread may add while others take."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable
from contextlib import suppress

from ..core import Episode

__all__ = ["EpisodeLog"]

_KEPT_EPISODES = 100_000


class EpisodeLog:
    """The last 100 000 episodes that have not been taken, in the order in which they were added."""

    def __init__(self) -> None:
        self._kept: deque[Episode] = deque(maxlen=_KEPT_EPISODES)

    def add(self, episodes: Iterable[Episode]) -> None:
        """Append some episodes."""
        self._kept.extend(episodes)

    def kept(self) -> list[list[float]]:
        """Return all episodes, as lists of numbers, and keep them."""
        return [list(episode) for episode in self._kept.copy()]

    def take(self) -> list[Episode]:
        """Return all episodes and forget them. Each episode is returned by one call, in whichever thread."""
        taken: list[Episode] = []
        # One by one: a deque cannot be iterated over while another thread adds to it, and whatever that thread added
        # between a copy of the deque and its clearing would be lost.
        with suppress(IndexError):
            while True:
                taken.append(self._kept.popleft())
        return taken
