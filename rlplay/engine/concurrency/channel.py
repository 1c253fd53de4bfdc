"""A first-in-first-out channel between threads, what its ``get`` may raise, and the failure that is sent as an item.

The only module that imports ``queue``. Must not import torch.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Generic, TypeVar, cast

from ...contexts import contextmanager

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


class _Queue(queue.Queue[object]):
    """A queue whose lock a thread can release if an interrupt has left it locked.

    An interrupt (Ctrl-C) may be raised right after ``put`` or ``get`` has taken the lock, or right before it releases
    the lock. Its ``with`` block then leaves the lock taken, and every thread would wait for it for ever.
    """

    def __init__(self) -> None:
        super().__init__()
        lock: Any = threading.RLock()  # this kind of lock knows which thread holds it
        self.mutex = lock
        self.not_empty, self.not_full, self.all_tasks_done = (threading.Condition(lock) for _ in range(3))

    def release(self) -> None:
        """Release the lock, if this thread holds it."""
        with suppress(RuntimeError):  # this thread does not hold it (any more)
            while True:
                self.mutex.release()


class Channel(Generic[T]):
    """A first-in-first-out channel between threads, which either side may close, once.

    ``put`` never blocks: the channel is unbounded, and few tokens or deliveries exist at a time. Items are received in
    the order in which they were sent, failures included. After ``close`` every ``get`` raises :class:`Closed`; this
    includes a ``get`` that is already waiting.
    """

    def __init__(self, *, reentrant: bool = False) -> None:
        """Open the channel. A finalizer may close a ``reentrant`` one even if it interrupts a ``put`` of its thread."""
        self._queue: _Queue | queue.SimpleQueue[object] = queue.SimpleQueue() if reentrant else _Queue()
        self._closed = False

    def put(self, item: T | Failure) -> None:
        """Send a value, or the failure to produce it."""
        self._put(item)

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
            with self._released():
                longest = timeout and min(timeout, threading.TIMEOUT_MAX)
                item = _CLOSED if self._closed else self._queue.get(timeout=longest)
        except queue.Empty:
            raise TimedOut from None
        except RuntimeError as error:
            # An interrupt during the wait can leave the queue's lock released. Releasing it again raises RuntimeError,
            # with the KeyboardInterrupt as its context.
            raise (error.__context__ if isinstance(error.__context__, KeyboardInterrupt) else error) from None
        if item is _CLOSED or self._closed:
            self._put(_CLOSED)  # wakes the next waiting thread, if any
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
        self._put(_CLOSED)

    def drain(self) -> None:
        """Close the channel, and drop the items that are left.

        An item that another thread sends during this call may stay in the channel until the channel is dropped.
        """
        self._closed = True
        with suppress(queue.Empty), self._released():
            while True:
                self._queue.get_nowait()
        self._put(_CLOSED)

    def _put(self, item: object) -> None:
        with self._released():
            self._queue.put(item)

    @contextmanager
    def _released(self) -> Iterator[None]:
        """Release the queue's lock if an interrupt ends this ``with`` block."""
        try:
            yield
        except queue.Empty:
            raise  # no interrupt; the thread may hold the lock for a `put` that a finalizer has interrupted
        except BaseException:
            if isinstance(self._queue, _Queue):
                self._queue.release()
            raise
