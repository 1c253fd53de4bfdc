"""Keeps the episodes that have ended until the user takes them. One thread may add while others take."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Collection
from contextlib import suppress

from ..collector.messages import Late
from ..core import Episode

__all__ = ["EpisodeLog"]

_KEPT_EPISODES = 100_000

_KEPT_LATE = 64
"""The number of fragments whose ends may be unread. The ends of earlier fragments are waited for even if nobody asks
for them."""


class EpisodeLog:
    """The last 100 000 episodes that have not been taken, in the order in which they were added.

    Those of environments in torch are many, so they are kept as the arrays of their fragment until they are taken. They
    may come down behind their fragment. Those that have come down are read when another fragment is added, since their
    memory on the host is needed again; those that have not are waited for when they are asked for, or when 64 later
    fragments have been added.

    Attributes
    ----------
    known_late_steps : int
        The number of valid transitions in those fragments whose number reached the host late and has been read.
    """

    def __init__(self) -> None:
        self._kept: deque[Episode] = deque(maxlen=_KEPT_EPISODES)
        # episodes of a fragment, and how many have been added by arrays until their end
        self._arrays: deque[tuple[int, Collection[Episode]]] = deque()
        self._n_added = 0
        self._late: deque[Late] = deque()
        self.known_late_steps = 0
        self._reading = threading.Lock()  # of `_late`, so that episodes stay in order
        self._error: Exception | None = None

    def add(self, episodes: Collection[Episode], late: Late | None = None) -> None:
        """Append some episodes, or those of a fragment that are still on their way to the host.

        Raises the error that came instead of the late episodes of a fragment, again at each later call, in any thread.
        """
        if self._error is not None:
            raise self._error
        if isinstance(episodes, list):
            self._kept.extend(episodes)
        else:
            self._add_arrays(episodes)
        if late is not None:
            self._late.append(late)
            self._read(_KEPT_LATE)

    def _add_arrays(self, episodes: Collection[Episode]) -> None:
        if not episodes:
            return
        self._n_added += len(episodes)
        self._arrays.append((self._n_added, episodes))
        with suppress(IndexError, ValueError):  # another thread has taken them meanwhile
            while self._n_added - (oldest := self._arrays[0])[0] >= _KEPT_EPISODES:
                self._arrays.remove(oldest)  # not `popleft`, which would drop the next ones

    def late_steps(self) -> int:
        """Return the number of valid transitions in the fragments whose number reaches the host late. May wait."""
        self._read(0)
        return self.known_late_steps

    def _read(self, left: int) -> None:
        """Read what comes late, but of the latest ``left`` fragments only what has arrived, in order."""
        if not self._late or not self._reading.acquire(blocking=len(self._late) > left):
            return  # another thread is reading, and there is no need to wait for it
        try:
            while self._late and (len(self._late) > left or self._late[0].arrived()):
                episodes, steps = self._late.popleft().result()
                self._add_arrays(episodes)
                self.known_late_steps += steps
        except Exception as error:
            self._error = error
            raise
        finally:
            self._reading.release()

    def kept(self) -> list[Episode]:
        """Return all episodes that were added as lists, and keep them. Another thread may take them meanwhile."""
        while True:
            with suppress(RuntimeError):  # without the interpreter lock, if another thread has just taken one
                return list(self._kept)

    def take(self) -> list[Episode]:
        """Return all episodes and forget them. Each episode is returned by one call, in whichever thread."""
        self._read(0)
        taken: list[Episode] = []
        with suppress(IndexError):
            while True:
                taken.extend(self._arrays.popleft()[1])
        del taken[:-_KEPT_EPISODES]
        # One by one: a deque cannot be iterated over while another thread adds to it, and whatever that thread added
        # between a copy of the deque and its clearing would be lost.
        with suppress(IndexError):
            while True:
                taken.append(self._kept.popleft())
        return taken
