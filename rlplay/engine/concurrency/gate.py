"""The gate that the collector passes between two steps: other threads pause or stop the collector there.

Must not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator

from ...contexts import contextmanager
from .channel import Closed

__all__ = ["Gate"]


class Gate:
    """Where the collector stops between two steps, for a pause or for good.

    The collector reads ``shut`` before each step and calls :meth:`wait_while_shut` if it is True; a step costs no more
    than that. All else is written with the lock ``_lock``. ``shut``, ``closed``, ``closing_time`` and the tuple of
    threads are read without it as well: each is one reference, which is replaced as a whole.
    """

    def __init__(self) -> None:
        """Open the gate. No fragment is being collected."""
        self.shut = False
        """True if the collector has to pause or to stop before its next step."""
        self.closed = False
        """True if the collector has to stop for good. Never reset."""
        self.closing_time = 0.0
        """Seconds that the collecting thread may take to end its processes, after it has left its step."""
        # not `with self._change`: it takes the same lock, but an interrupt could end that block without releasing it
        self._lock = threading.RLock()
        self._change = threading.Condition(self._lock)
        self._collecting = False
        self._holders: list[tuple[int, object]] = []
        """For each pause: the identifier of the thread that keeps the collector paused, and an object of its own."""
        self._threads: tuple[threading.Thread, ...] = ()
        self._give_up_callbacks: list[Callable[[], None]] = []
        self._change_callbacks: list[Callable[[bool], None]] = []
        self._close_callbacks: list[Callable[[], None]] = []

    def add_thread(self, thread: threading.Thread) -> None:
        """Register a thread in which collecting is done; such a thread must not wait for the collector."""
        with self._lock:
            self._threads = (*self._threads, thread)

    def is_inside(self) -> bool:
        """Return True if the calling thread is one in which collecting is done."""
        return threading.current_thread() in self._threads

    def on_give_up(self, callback: Callable[[], None]) -> None:
        """Register a callback that ends the work of a stuck collector. It is called from another thread."""
        with self._lock:
            self._give_up_callbacks.append(callback)

    def on_change(self, callback: Callable[[bool], None]) -> None:
        """Register a callback for changes of ``shut``; it is called with the new value, in the thread that sets it."""
        with self._lock:
            self._change_callbacks.append(callback)

    def on_close(self, callback: Callable[[], None], seconds: float) -> None:
        """Register a callback for when the gate is closed; if it is closed already, call it now.

        The thread that collects may take ``seconds`` to end after that. The callback may be called twice.
        """
        with self._lock:  # so that either this method sees `closed`, or `close` sees the callback
            self._close_callbacks.append(callback)
            self.closing_time = max(self.closing_time, seconds)
            closed = self.closed
        if closed:
            callback()

    def remove_give_up(self, callback: Callable[[], None]) -> None:
        """Remove a callback of :meth:`on_give_up`, so that the gate keeps its owner alive no longer."""
        with self._lock:
            self._give_up_callbacks.remove(callback)

    def remove_change(self, callback: Callable[[bool], None]) -> None:
        """Remove a callback of :meth:`on_change`: it is not called any more when this method has returned."""
        with self._lock:
            self._change_callbacks.remove(callback)

    @property
    def can_give_up(self) -> bool:
        """Whether :meth:`give_up` has any effect."""
        return bool(self._give_up_callbacks)

    def give_up(self) -> None:
        """End the work of a stuck collector where that is possible (processes can be killed, threads cannot)."""
        with self._lock:
            callbacks = tuple(self._give_up_callbacks)
        for callback in callbacks:  # without the lock: a callback may wait
            callback()

    def enter(self) -> None:
        """Begin to collect, once no thread keeps the collector paused. Raises :class:`Closed`.

        Returns at once if something is being collected already, since a thread that pauses waits for that to stop.
        """
        with self._lock:
            self._change.wait_for(lambda: self.closed or self._collecting or not self._holders)
            if self.closed:
                raise Closed
            self._collecting = True

    def leave(self) -> None:
        """End collecting: nothing is written until the next :meth:`enter`."""
        with self._lock:
            self._collecting = False
            self._change.notify_all()

    def wait_while_shut(self, finish_work: Callable[[], None]) -> None:
        """Call ``finish_work()``, then wait until no thread keeps the collector paused. Raises :class:`Closed`."""
        if self.closed:
            raise Closed
        finish_work()
        self.leave()
        self.enter()

    @contextmanager
    def held(self, timeout: float, describe: Callable[[], str]) -> Iterator[None]:
        """Keep the collector paused inside the ``with`` block. Blocks may be nested, and may end in another thread.

        Raises
        ------
        TimeoutError
            If the collector does not reach the end of a step within ``timeout`` seconds. The message contains
            ``describe()``, which says what the collector is doing.
        """
        limit = min(timeout, threading.TIMEOUT_MAX)
        holder = threading.get_ident(), object()
        try:
            with self._lock:
                self._holders.append(holder)
                self._update()
                if not self._change.wait_for(lambda: self.closed or not self._collecting, limit):
                    raise TimeoutError(f"cannot pause: no end of a step for {timeout:g} s; {describe()}.")
            yield
        finally:
            with self._lock:
                if holder in self._holders:  # an interrupt may have come before
                    self._holders.remove(holder)
                self._update()
                self._change.notify_all()

    def is_held_by_this_thread(self) -> bool:
        """Return True if the calling thread keeps the collector paused: waiting for a fragment would never end."""
        with self._lock:  # another thread that leaves its block meanwhile would shift the entries of the list
            return any(thread == threading.get_ident() for thread, _ in self._holders)

    def close(self) -> None:
        """Stop the collector before its next step, for good."""
        self.closed = True
        with self._lock:  # reentrant: a finalizer may call this method during any other method of the same thread
            self._update()
            callbacks = tuple(self._close_callbacks)
        for callback in callbacks:
            callback()
        with self._lock:
            self._change.notify_all()

    def _update(self) -> None:
        """Set ``shut`` anew, and tell the callbacks. To be called with the lock."""
        self.shut = self.closed or bool(self._holders)
        if self.closed:  # a finalizer may have called `close` between the reading and the setting
            self.shut = True
        for callback in tuple(self._change_callbacks):
            callback(self.shut)
