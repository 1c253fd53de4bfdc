"""Handing things from one thread to another, in order: the only file that imports ``queue``.

Values and errors take the same way. Closing wakes whoever waits. Knows neither torch nor reinforcement learning.
"""

from __future__ import annotations

import queue
import threading
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

__all__ = ["Channel", "Closed", "Failure", "Late"]

T = TypeVar("T")

_CLOSED = object()


class Closed(Exception):
    """The other end, or somebody else, has closed what this thread was waiting for."""


class Late(Exception):
    """Nothing came in time."""


@dataclass(frozen=True)
class Failure:
    """An exception on its way to another thread, with its traceback."""

    error: BaseException


class Channel(Generic[T]):
    """A first-in-first-out way between two threads, which either may close, once.

    Guarantees: ``put`` never blocks (what travels are tokens, and those are few); an item put before a failure is got
    before it; after ``close`` every ``get``, also one that waits, raises :class:`Closed`.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        """Open the channel. A ``reentrant`` one can be closed from a finalizer that interrupts its own ``put``."""
        self._queue: queue.Queue[object] | queue.SimpleQueue[object]
        self._queue = queue.SimpleQueue() if reentrant else queue.Queue()
        self._closed = False

    def put(self, item: T | Failure) -> None:
        """Send a value, or the failure to make one."""
        self._queue.put(item)

    def get(self, timeout: float | None = None) -> T:
        """Receive the next value, waiting for it.

        Raises
        ------
        Closed
            If the channel is closed, whatever may still be inside.
        Late
            If nothing came for ``timeout`` seconds.
        BaseException
            The failure that was sent.
        """
        try:
            item = _CLOSED if self._closed else self._queue.get(timeout=timeout and min(timeout, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise Late from None
        except RuntimeError as error:
            # an interrupt in the middle of a wait can leave its lock released, and comes behind the complaint
            raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
        if item is _CLOSED or self._closed:
            self._queue.put(_CLOSED)  # there may be others who wait
            raise Closed
        if isinstance(item, Failure):
            try:
                raise item.error
            finally:
                del item  # else the traceback would hold this frame, and this frame the traceback
        return cast(T, item)

    def close(self) -> None:
        """Close the channel, and wake whoever waits."""
        self._closed = True
        self._queue.put(_CLOSED)

    def drain(self) -> None:
        """Let go of what is still inside. Only when nobody puts any more."""
        while not self._queue.empty():
            self._queue.get()
        self._queue.put(_CLOSED)
