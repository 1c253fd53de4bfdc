"""Who turns the collector's crank: the consumer's own thread, or one in the background.

Knows threads and channels. Neither torch nor what is collected.
"""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from time import perf_counter

from ..collector.messages import Collecting, Delivery, Token
from ..concurrency.channel import Channel, Closed, Failure, Late
from ..concurrency.exceptions import add_note
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress

__all__ = ["Background", "Driver", "Inline", "noting"]

_PATIENCE = 5.0
"""Seconds for which closing waits for the environment's step that is under way."""

_GLANCE = 0.5
"""Seconds after which a consumer that waits looks up: an interrupt can slip in just before a wait, and be seen late."""


class Driver(ABC):
    """What a feed asks of whoever collects."""

    collector: Collecting
    ended = False
    """Whether the collector has come to its end."""
    stalled = False
    """Whether a consumer has given up waiting. The collector is to end then, but nobody has waited for it."""

    def __init__(self, progress: Progress, timeout: float) -> None:
        self._gate, self._progress, self._timeout = Gate(), progress, timeout

    @abstractmethod
    def give(self, token: Token) -> None:
        """Hand over a token. Never blocks."""

    @abstractmethod
    def take(self) -> Delivery:
        """Receive the next fragment. Raises what collecting it raised, or ``Closed``."""

    @abstractmethod
    def wake(self) -> None:
        """Wake a consumer that waits in :meth:`take`: the feed is being closed."""

    @abstractmethod
    def stop(self) -> list[str]:
        """End the collector, and say what went wrong with that. Safe in a finalizer, in whichever thread it may run."""

    def paused(self) -> AbstractContextManager[None]:
        """Make the collector stand still at a step's boundary, inside a ``with`` block."""
        return self._gate.held(self._timeout, lambda: str(self._progress))

    def hindrance(self) -> str | None:
        """Say why waiting for a fragment in this very thread would be for ever, if it would."""
        if self._gate.holds_me():
            return "the feed is paused by this very thread: leave the `with feed.pause():` block first."
        return None

    def _left_behind(self) -> str:
        return (
            f"the collector has not ended within {_PATIENCE:g} s, and is left behind: {self._progress}. A thread "
            "cannot be killed; it ends by itself once that call returns."
        )


class Inline(Driver):
    """Collects when it is asked, in the consumer's own thread."""

    def __init__(self, make: Callable[[Gate], Collecting], progress: Progress) -> None:
        """Make the collector."""
        super().__init__(progress, _PATIENCE)
        self._tokens: deque[Token] = deque()
        self._collecting = threading.RLock()
        self._left = False
        with noting(progress):
            self.collector = make(self._gate)

    def give(self, token: Token) -> None:
        """Keep the token for its turn."""
        self._tokens.append(token)

    def take(self) -> Delivery:
        """Collect the next fragment now."""
        with self._collecting:
            self._gate.enter()
            try:
                with noting(self._progress):
                    return self.collector.serve(self._tokens.popleft())
            finally:
                _served(self._progress)
                self._gate.leave()
                if self._left:
                    self._end()

    def wake(self) -> None:
        """Do nothing: a consumer in another thread comes to the next step's boundary."""

    def stop(self) -> list[str]:
        """Close the collector; if another thread is still busy with it, that one will."""
        self._gate.close()
        if self.ended:
            return []
        if not self._collecting.acquire(timeout=_PATIENCE):
            self._left = True
            if not self._collecting.acquire(blocking=False):  # or it has ended just before it could see that
                return [self._left_behind()]
        try:
            return self._end()
        finally:
            self._collecting.release()

    def _end(self) -> list[str]:
        self.ended = True
        self._tokens.clear()
        return self.collector.close()


class Background(Driver):
    """Collects ahead, in a thread of its own, as far as its tokens go."""

    def __init__(
        self, make: Callable[[Gate], Collecting], progress: Progress, *, timeout: float, start_timeout: float
    ) -> None:
        """Start the thread, and let it make the collector.

        Raises
        ------
        TimeoutError
            If that takes more than ``start_timeout`` seconds.
        """
        super().__init__(progress, timeout)
        self._complaints: list[str] = []
        self._tokens: Channel[Token] = Channel(reentrant=True)
        self._deliveries: Channel[Delivery] = Channel()
        made: Channel[Collecting] = Channel()
        self._thread = threading.Thread(
            target=_work,
            args=(make, made, self._tokens, self._deliveries, self._gate, progress, self._complaints),
            name="rlplay-collector",
            daemon=True,  # a thread that is not would keep the interpreter from even calling its exit handlers
        )
        self._gate.insiders.append(self._thread)
        self._thread.start()
        try:
            self.collector = made.get(start_timeout)
        except Late:
            raise self._stall(f"the collector has not started within {start_timeout:g} s: {progress}.") from None
        except BaseException as error:
            for complaint in self.stop():
                add_note(error, complaint)
            raise

    def give(self, token: Token) -> None:
        """Send the token to the thread."""
        self._tokens.put(token)

    def take(self) -> Delivery:
        """Wait for the next fragment, for as long as there is progress.

        Raises
        ------
        TimeoutError
            If there is none for ``timeout`` seconds, although nobody has paused the collector.
        """
        moment, moved = self._progress.moment(), perf_counter()
        while True:
            try:
                return self._deliveries.get(min(self._timeout / 8, _GLANCE))
            except Late:
                now = self._progress.moment()
                if now != moment or self._gate.shut:
                    moment, moved = now, perf_counter()
                elif perf_counter() - moved >= self._timeout:
                    raise self._stall(
                        f"no progress for {self._timeout:g} s: {self._progress}. If a step may take so long, raise "
                        "`timeout`."
                    ) from None

    def wake(self) -> None:
        """Wake a consumer that waits."""
        self._deliveries.close()

    def hindrance(self) -> str | None:
        """Say why waiting for a fragment in this very thread would be for ever, if it would."""
        if threading.current_thread() in self._gate.insiders:
            return "next() was called by one of the feed's own environments, or by its actor."
        return super().hindrance()

    def _stall(self, why: str) -> TimeoutError:
        """Give up waiting, which is at once: what is stuck ends by itself if ever it returns."""
        self.stalled = True
        self._give_notice()
        for give_up in self._gate.hurry:
            give_up()
        return TimeoutError(why)

    def _give_notice(self) -> None:
        self._gate.close()
        self._tokens.close()

    def stop(self) -> list[str]:
        """Let the thread end at its next step's boundary, and wait for it a short while."""
        self._give_notice()
        if threading.current_thread() in self._gate.insiders:
            return []  # an environment, or a finalizer that happened to run there; the threads end by themselves
        self._thread.join(0 if self.stalled and self._gate.hurry else _PATIENCE)
        if self._thread.is_alive():
            for give_up in self._gate.hurry:
                give_up()
            self._thread.join(_PATIENCE)
        if self._thread.is_alive():
            return [self._left_behind()]
        self.ended = True
        # all copies have been waited for: what never reached the consumer can be let go
        self._tokens.drain()
        self._deliveries.drain()
        complaints, self._complaints = self._complaints, []
        return complaints


def _work(
    make: Callable[[Gate], Collecting],
    made: Channel[Collecting],
    tokens: Channel[Token],
    deliveries: Channel[Delivery],
    gate: Gate,
    progress: Progress,
    complaints: list[str],
) -> None:
    """Collect a fragment for each token, until closed: the whole life of the collector's thread.

    It holds no reference to the feed, so that a forgotten one can be found and closed.
    """
    collector: Collecting | None = None
    try:
        with noting(progress):
            collector = make(gate)
        made.put(collector)
        progress.doing = "waiting for the learner"  # which counts from the first fragment on
        while True:
            token = tokens.get()
            gate.enter()
            with noting(progress):
                delivery = collector.serve(token)
            gate.leave()
            _served(progress)
            deliveries.put(delivery)
            del token, delivery  # the consumer's now
    except Closed:
        pass
    except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
        (made if collector is None else deliveries).put(Failure(error))
    finally:
        gate.leave()
        if collector is not None:
            complaints += collector.close()


def _served(progress: Progress) -> None:
    """Spend the time on waiting, until the next token is served."""
    if progress.gather is not None:
        progress.gather()
    progress.begin("waiting for the learner")


@contextmanager
def noting(progress: Progress) -> Iterator[None]:
    """Note on an exception where it happened."""
    try:
        yield
    except Closed:
        raise
    except BaseException as error:
        add_note(error, str(progress))
        raise
