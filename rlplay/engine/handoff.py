"""Handing things from one thread to another, in order: the only file that imports ``queue``.

Values and errors take the same way. Closing wakes whoever waits. Knows neither torch nor reinforcement learning.
"""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Generic, TypeVar, cast

__all__ = ["Channel", "Closed", "Failure", "Gate", "Late"]

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


class Gate:
    """Where the collector passes between two steps, and where it can be made to stand still, or to stop for good.

    ``shut`` is all that a step has to look at.
    """

    def __init__(self) -> None:
        """Open the gate, with nobody under way."""
        self.shut = False
        """Whether somebody wants the collector to stand still, or to stop: see :meth:`stand`."""
        self.closed = False
        """Whether it is to stop for good. Never unset."""
        self._change = threading.Condition()
        self._moving = False
        self._holders: list[int] = []
        self.hurry: list[Callable[[], None]] = []
        """What makes a collector that is stuck give up, if anything does. Called from another thread."""
        self.insiders: list[threading.Thread] = []
        """Threads that collecting is done in: they must not wait for it."""
        self.told: list[Callable[[bool], None]] = []
        """Who else wants to know of ``shut``, in whichever thread it changes."""

    def enter(self) -> None:
        """Set out, as soon as nobody objects. Raises :class:`Closed`."""
        with self._change:
            self._change.wait_for(lambda: self.closed or not self._holders)
            if self.closed:
                raise Closed
            self._moving = True

    def leave(self) -> None:
        """Have arrived: nothing moves until the next :meth:`enter`."""
        with self._change:
            self._moving = False
            self._change.notify_all()

    def stand(self, settle: Callable[[], None]) -> None:
        """Stand still for as long as somebody wishes it, after ``settle()``. Raises :class:`Closed`."""
        if self.closed:
            raise Closed
        settle()
        self.leave()
        self.enter()

    @contextmanager
    def held(self, timeout: float, stuck: Callable[[], str]) -> Iterator[None]:
        """Keep the collector still inside the ``with`` block. Blocks may be nested.

        Raises
        ------
        TimeoutError
            If it does not come to a step's boundary within ``timeout`` seconds; ``stuck()`` says where it is.
        """
        with self._change:
            self._holders.append(threading.get_ident())
            self._shut(True)
        try:
            with self._change:
                if not self._change.wait_for(lambda: self.closed or not self._moving, timeout):
                    raise TimeoutError(f"cannot pause: no end of a step for {timeout:g} s; {stuck()}.")
            yield
        finally:
            with self._change:
                self._holders.remove(threading.get_ident())
                self._shut(self.closed or bool(self._holders))
                self._change.notify_all()

    def _shut(self, shut: bool) -> None:
        self.shut = shut
        for tell in self.told:
            tell(shut)

    def holds_me(self) -> bool:
        """Whether the calling thread itself keeps the collector still, so that waiting for it would be for ever."""
        return threading.get_ident() in self._holders

    def close(self) -> None:
        """Stop the collector at its next boundary, for good."""
        self.closed = True
        self._shut(True)
        with self._change:  # a re-entrant lock: a finalizer may run inside any other method here
            self._change.notify_all()
