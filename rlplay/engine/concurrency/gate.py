"""The gate that the collector passes between two steps: where other threads pause or stop it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from .channel import Closed

__all__ = ["Gate"]


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
