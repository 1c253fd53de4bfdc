"""Runs the collector inline, in the consumer's own thread; and the interface that the background driver shares.

Must not import torch.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager
from typing import TypeVar

from ..collector.messages import Collecting, Delivery, Token
from ..concurrency.channel import Failure
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress, note_progress

__all__ = ["Driver", "Inline"]

T = TypeVar("T")


class Driver(ABC):
    """Runs a collector for a feed.

    Attributes
    ----------
    collector : Collecting
        Made by the constructor of the subclass.
    ended : bool
        Whether the collector has been closed.
    stalled : bool
        Whether a consumer has given up waiting because there was no progress. The collector has been requested to end
        then, but may not have ended.
    """

    collector: Collecting
    stop_timeout = 5.0
    """Seconds for which :meth:`stop` waits for the step of the environments that is under way."""

    def __init__(self, progress: Progress, timeout: float) -> None:
        self._gate, self._progress, self._timeout = Gate(), progress, timeout
        self.ended = self.stalled = False
        self._early: deque[Delivery | Failure] = deque()
        """What :meth:`take` returns before anything else."""

    @abstractmethod
    def give(self, token: Token) -> None:
        """Hand over a token. Never blocks."""

    def take(self) -> Delivery:
        """Return the next delivery. Raises what collecting raised, or ``Closed``."""
        if not self._early:
            return self._take()
        first = self._early.popleft()
        if isinstance(first, Failure):
            raise first.error
        return first

    @abstractmethod
    def _take(self) -> Delivery:
        """Return the next delivery of the collector."""

    def give_early(self, deliveries: Iterable[Delivery]) -> None:
        """Let :meth:`take` return these deliveries before those of the collector."""
        self._early.extend(deliveries)

    @abstractmethod
    def call(self, work: Callable[[Collecting], T]) -> tuple[T, list[Delivery], list[Token]]:
        """Call ``work(collector)`` in the collector's thread, between two fragments.

        Returns
        -------
        tuple
            The result; the deliveries that have not been taken; the tokens that wait. All three of one moment.

        Raises
        ------
        Exception
            What ``work`` raises.
        Closed
            The driver has been stopped.
        RuntimeError
            Collecting has failed. The error stays for :meth:`take`.
        """

    def _not_taken(self) -> list[Delivery]:
        return [one for one in self._early if not isinstance(one, Failure)]

    @abstractmethod
    def wake(self) -> None:
        """Wake a consumer that waits in :meth:`take`, since the feed is being closed."""

    @abstractmethod
    def stop(self) -> list[str]:
        """Close the collector; return what went wrong. May be called by a finalizer, in any thread."""

    def paused(self) -> AbstractContextManager[None]:
        """Return a context manager that keeps the collector paused between two steps inside its ``with`` block.

        Raises
        ------
        RuntimeError
            The collector itself would wait, as in a call by one of its environments.
        """
        if self.is_inside():
            raise RuntimeError(
                "pause() was called by one of the feed's own environments, or by its actor: the pause would begin at "
                "the end of that very step. Pause in the thread that calls next()."
            )
        return self._gate.held(self._timeout, lambda: str(self._progress))

    def is_inside(self) -> bool:
        """Return whether the calling thread is collecting at this moment, as inside of a step of an environment."""
        return self._gate.is_inside()

    def why_take_would_hang(self) -> str | None:
        """Return why :meth:`take` would wait for ever in the calling thread; None if it would not."""
        if self._gate.is_held_by_this_thread():
            return "the feed is paused by this very thread: leave the `with feed.pause():` block first."
        return None

    def _left_behind(self) -> str:
        return (
            f"the collector has not ended within {self.stop_timeout:g} s, and is left behind: {self._progress}. A "
            "thread cannot be killed; it ends by itself once that call returns."
        )


class Inline(Driver):
    """Collects a fragment inside :meth:`take`, in the consumer's own thread."""

    def __init__(self, make: Callable[[Gate], Collecting], progress: Progress) -> None:
        """Make the collector."""
        super().__init__(progress, self.stop_timeout)
        self._tokens: deque[Token] = deque()
        self._collecting = threading.RLock()
        self._collecting_thread: int | None = None
        self._handing_over = threading.RLock()
        self._close_after_take = False
        """Whether the thread that uses the collector has to close it afterwards, since :meth:`stop` timed out.
        Read and written with the lock ``_handing_over``."""
        with note_progress(progress):
            self.collector = make(self._gate)

    def give(self, token: Token) -> None:
        """Append the token to the queue."""
        self._tokens.append(token)

    def call(self, work: Callable[[Collecting], T]) -> tuple[T, list[Delivery], list[Token]]:
        """Call ``work(collector)`` in this thread. The tokens are left as they are."""
        return self._use_collector(lambda: (work(self.collector), self._not_taken(), list(self._tokens)))

    def _take(self) -> Delivery:
        """Collect the next fragment and return it."""
        return self._use_collector(self._collect)

    def _collect(self) -> Delivery:
        try:
            with note_progress(self._progress):
                return self.collector.serve(self._tokens.popleft())
        finally:
            self._progress.finish_fragment()

    def _use_collector(self, work: Callable[[], T]) -> T:
        """Call ``work()``, while no other thread uses the collector, nor has paused it; return the result.

        At the end close the collector, if :meth:`stop` has left that to this thread.
        """
        try:
            with self._collecting:
                try:
                    self._gate.enter()
                    self._collecting_thread = threading.get_ident()
                    return work()
                finally:
                    self._collecting_thread = None
                    self._gate.leave()
        finally:
            self._close_if_left()

    def is_inside(self) -> bool:
        """Return whether the calling thread is collecting at this moment, as inside of a step of an environment."""
        return self._collecting_thread == threading.get_ident()

    def wake(self) -> None:
        """Do nothing: a consumer in another thread stops before the next step."""

    def stop(self) -> list[str]:
        """Close the collector; if another thread goes on using the collector, have that thread close it."""
        self._gate.close()
        if not self._collecting.acquire(timeout=self.stop_timeout):
            with self._handing_over:
                self._close_after_take = True
            # The other thread reads the flag after it has released the lock: it sees the flag, or the lock is free now.
            if not self._collecting.acquire(blocking=False):
                return [self._left_behind()]
        try:
            return self._close()
        finally:
            self._collecting.release()

    def _close_if_left(self) -> None:
        """Close the collector if :meth:`stop` has left that to this thread, and no other thread is doing it."""
        with self._handing_over:
            left = self._close_after_take
        if left and self._collecting.acquire(blocking=False):
            try:
                self._close()
            finally:
                self._collecting.release()

    def _close(self) -> list[str]:
        """Close the collector unless it has been closed; return what went wrong. Called with ``_collecting``."""
        if self.ended:
            return []
        self.ended = True
        self._tokens.clear()
        return self.collector.close()
