"""A first-in-first-out channel between threads, what its ``get`` may raise, and the failure that is sent as an item.

The only module that imports ``queue``. Must not import torch.
"""

from __future__ import annotations

import queue
import threading
from contextlib import suppress
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

__all__ = ["Channel", "Closed", "Failure", "TimedOut"]

T = TypeVar("T")

_CLOSED = object()


class Closed(Exception):
    """The channel or gate that this thread was waiting for has been closed."""


class TimedOut(Exception):
    """No item arrived within the timeout."""


@dataclass(frozen=True)
class Failure:
    """An exception, with its traceback, that is sent to another thread in place of a value."""

    error: BaseException


class Channel(Generic[T]):
    """A first-in-first-out channel between threads, which either side may close, once.

    ``put`` never blocks: the channel is unbounded, and few tokens or deliveries exist at a time. Items are received in
    the order in which they were sent, failures included. After ``close`` every ``get`` raises :class:`Closed`; this
    includes a ``get`` that is already waiting.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        """Open the channel. A finalizer may close a ``reentrant`` one even if it interrupts a ``put`` of its thread."""
        self._queue: queue.Queue[object] | queue.SimpleQueue[object]
        self._queue = queue.SimpleQueue() if reentrant else queue.Queue()
        self._closed = False

    def put(self, item: T | Failure) -> None:
        """Send a value, or the failure to produce it."""
        self._queue.put(item)

    def get(self, timeout: float | None = None) -> T:
        """Wait for the next value and return it.

        Raises
        ------
        Closed
            If the channel is closed, even if items are left in it.
        TimedOut
            If nothing arrived for ``timeout`` seconds.
        BaseException
            The exception that was sent as a :class:`Failure`.
        """
        try:
            item = _CLOSED if self._closed else self._queue.get(timeout=timeout and min(timeout, threading.TIMEOUT_MAX))
        except queue.Empty:
            raise TimedOut from None
        except RuntimeError as error:
            # An interrupt during the wait can leave the queue's lock released. Releasing it again raises RuntimeError,
            # with the KeyboardInterrupt as its context.
            raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
        if item is _CLOSED or self._closed:
            self._queue.put(_CLOSED)  # wakes the next waiting thread, if any
            raise Closed
        if isinstance(item, Failure):
            try:
                raise item.error
            finally:
                del item  # breaks the reference cycle between this frame and the traceback
        return cast(T, item)

    def close(self) -> None:
        """Close the channel and wake every thread that waits in :meth:`get`."""
        self._closed = True
        self._queue.put(_CLOSED)

    def drain(self) -> None:
        """Close the channel, and drop the items that are left.

        An item that another thread sends during this call may stay in the channel until the channel is dropped.
        """
        self._closed = True
        with suppress(queue.Empty):
            while True:
                self._queue.get_nowait()
        self._queue.put(_CLOSED)
