"""Runs the collector in a background thread. Must not import torch."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from contextlib import AbstractContextManager, suppress
from typing import Any

from ..collector.messages import Collecting, Delivery, Token
from ..concurrency.channel import Channel, Closed, Failure, TimedOut
from ..concurrency.exceptions import add_note
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress, note_progress
from ..concurrency.watchdog import Watchdog
from .driver import Driver, T

__all__ = ["Background"]

_HAS_FAILED = (
    "collecting has failed, so there is no state to save: `next()` raises the error, after the fragments that were "
    "completed before."
)


class Background(Driver):
    """Collects fragments in a background thread, as many in advance as there are tokens."""

    def __init__(
        self, make: Callable[[Gate], Collecting], progress: Progress, *, timeout: float, start_timeout: float
    ) -> None:
        """Start the thread, which makes the collector, and wait for the collector.

        Raises
        ------
        TimeoutError
            If that takes more than ``start_timeout`` seconds.
        """
        super().__init__(progress, timeout)
        self._pid = os.getpid()
        self._complaints: list[str] = []
        self._tokens: Channel[Token | _Call | None] = Channel(reentrant=True)
        self._deliveries: Channel[Delivery | _Call] = Channel()
        made: Channel[Collecting] = Channel()
        self._thread = threading.Thread(
            target=_work,
            args=(make, made, self._tokens, self._deliveries, self._gate, progress, self._complaints),
            name="rlplay-collector",
            daemon=True,  # the interpreter would wait for another thread before it calls its exit handlers
        )
        self._gate.add_thread(self._thread)
        try:
            self._thread.start()
            self.collector = made.get(start_timeout)
        except TimedOut:
            failure = TimeoutError(f"the collector has not started within {start_timeout:g} s: {progress}.")
            self._give_up()
            for complaint in self.stop() if self._gate.closing_time else []:
                add_note(failure, complaint)
            raise failure from None
        except BaseException as error:
            for complaint in self.stop():
                add_note(error, complaint)
            raise

    def give(self, token: Token) -> None:
        """Send the token to the thread."""
        self._tokens.put(token)

    def call(self, work: Callable[[Collecting], T]) -> tuple[T, list[Delivery], list[Token]]:
        """Let the thread collect a fragment for each token that it has, and then call ``work(collector)``.

        The fragments are kept for :meth:`take`. No token waits then.
        """
        if any(isinstance(one, Failure) for one in self._early):
            raise RuntimeError(_HAS_FAILED)
        call = _Call(work)
        self._tokens.put(call)
        while not call.done:  # answers come in order: deliveries first, and those of calls that were interrupted
            try:
                answer = self._receive()
            except (Closed, TimedOut):
                raise
            except Exception as error:
                if self.stalled:
                    raise
                self._early.append(Failure(error))
                raise RuntimeError(_HAS_FAILED) from error
            if isinstance(answer, _Call):
                answer.done = True
            else:
                self._early.append(answer)
        if call.error is not None:
            raise call.error
        return call.result, self._not_taken(), []

    def _take(self) -> Delivery:
        """Wait for the next delivery, for as long as there is progress."""
        while isinstance(delivery := self._receive(), _Call):
            pass  # the answer to a call that was interrupted
        return delivery

    def _receive(self) -> Delivery | _Call:
        """Wait for the next message of the thread, for as long as there is progress.

        Raises
        ------
        TimeoutError
            If there is no progress for ``timeout`` seconds, although the collector is not paused.
        """
        watchdog = Watchdog(self._progress, self._timeout, lambda: str(self._progress))
        while True:
            try:
                return self._deliveries.get(watchdog.interval)
            except TimedOut:
                try:
                    watchdog.check(paused=self._gate.shut and not self._gate.closed)
                except TimeoutError as error:
                    self._give_up()
                    raise TimeoutError(f"{error} If a step may take so long, raise `timeout`.") from None

    def wake(self) -> None:
        """Wake a consumer that waits."""
        self._deliveries.close()

    def why_take_would_hang(self) -> str | None:
        """Return why :meth:`take` would wait for ever in the calling thread; None if it would not."""
        if os.getpid() != self._pid:
            return (
                f"the feed belongs to process {self._pid}, and this is a fork of it, which has neither the feed's "
                "thread nor its processes: call `rollout` in this process."
            )
        if self.is_inside():
            return "next() was called by one of the feed's own environments, or by its actor."
        return super().why_take_would_hang()

    def paused(self) -> AbstractContextManager[None]:
        """Do as the base class does. Raises RuntimeError in a fork of the process that has made the feed."""
        if os.getpid() != self._pid:
            raise RuntimeError(self.why_take_would_hang())
        return super().paused()

    def _give_up(self) -> None:
        """Request that the collector ends, without waiting for it: it may be stuck. It ends its processes."""
        self.stalled = True
        self._request_end()
        if not self._gate.closing_time:
            self._gate.give_up()

    def _request_end(self) -> None:
        self._gate.close()
        self._tokens.close()

    def _patience(self) -> float:
        """Return the seconds that the thread has to end by itself."""
        if self._gate.closing_time:  # it does not wait for the step under way, but for the end of its processes
            return self.stop_timeout + self._gate.closing_time
        return 0.0 if self.stalled and self._gate.can_give_up else self.stop_timeout

    def stop(self) -> list[str]:
        """Have the thread end before its next step, and wait for its end, though not for long."""
        self._request_end()
        if self._gate.is_inside():
            return []  # called by an environment, or by a finalizer that runs in such a thread: it cannot be waited for
        if self._thread.ident is None:  # an interrupt came while the thread was being started: it ends by itself
            return []
        self._thread.join(self._patience())
        if self._thread.is_alive():
            self._gate.give_up()
            self._thread.join(self.stop_timeout)
        if self._thread.is_alive():
            return [self._left_behind()]
        self.ended = True
        # the collector has waited for all copies, so memory that never reached the consumer can be released
        self._tokens.drain()
        self._deliveries.drain()
        complaints: list[str] = []
        with suppress(IndexError):  # one by one: of two threads that stop the driver, one gets each complaint
            while True:
                complaints.append(self._complaints.pop(0))
        return complaints


class _Call:
    """A function that the collector's thread is asked to call, and what it has returned."""

    def __init__(self, work: Callable[[Collecting], Any]) -> None:
        self._work = work
        self.done = False
        self.result: Any = None
        self.error: BaseException | None = None

    def run(self, collector: Collecting) -> None:
        try:
            self.result = self._work(collector)
        except BaseException as error:
            self.error = error


def _work(
    make: Callable[[Gate], Collecting],
    made: Channel[Collecting],
    tokens: Channel[Token | _Call | None],
    deliveries: Channel[Delivery | _Call],
    gate: Gate,
    progress: Progress,
    complaints: list[str],
) -> None:
    """Run the collector's thread: make the collector, collect a fragment for each token until closed, close it.

    The thread holds no reference to the feed, so a feed that the user has dropped is garbage-collected and closed.
    """
    collector: Collecting | None = None
    try:
        with note_progress(progress):
            collector = make(gate)
        made.put(collector)
        progress.doing = "waiting for the learner"  # without starting its clock, which runs from the first fragment on
        gate.on_change(lambda shut: tokens.put(None))
        while True:
            _serve_next(collector, tokens, deliveries, gate, progress)
    except Closed as closed:  # while the collector was being made, its notes say what went wrong in ending that
        complaints += [note.removeprefix("rlplay: ") for note in getattr(closed, "__notes__", ())]
    except BaseException as error:  # SystemExit too: the consumer has to receive it
        (made if collector is None else deliveries).put(Failure(error))
    finally:
        try:
            # the processes of an AsyncVectorEnv get Ctrl-C as well, and it raises the interrupt of its processes here;
            # the consumer's thread raises its own
            with suppress(KeyboardInterrupt):
                if collector is not None:
                    complaints += collector.close()
        finally:
            gate.leave()  # not earlier: after an error in one process, a pause would begin while others still step


def _serve_next(
    collector: Collecting,
    tokens: Channel[Token | _Call | None],
    deliveries: Channel[Delivery | _Call],
    gate: Gate,
    progress: Progress,
) -> None:
    """Wait for the next message and serve it.

    The local variables end with each message: during the wait for the next one they keep no memory of the consumer.
    """
    message = tokens.get()
    answer: Delivery | _Call | None = None
    if message is None:  # the gate has been shut or opened
        with note_progress(progress):
            collector.stand_still()
    elif isinstance(message, _Call):
        gate.enter()
        message.run(collector)
        answer = message
    else:
        gate.enter()
        with note_progress(progress):
            answer = collector.serve(message)
        progress.finish_fragment()
    if not collector.under_way:
        gate.leave()
    if answer is not None:
        deliveries.put(answer)
