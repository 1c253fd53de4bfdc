"""The feed: the iterator over fragments that users hold. It is the consumer's side of a rollout.

``rlplay.engine.collector.collector`` describes the exchange of tokens and deliveries. This module neither steps
environments nor runs the actor.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from ... import nested
from ...nested import Nested
from ..collector.messages import Delivery, Token
from ..concurrency.channel import Closed
from ..concurrency.clock import TRAINING, WAITING, Clock
from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress
from ..core import BaseActorModule, Episode, Final, Fragment
from ..memory.lane import Lane, Place
from .driver import Driver, Inline
from .episode_log import EpisodeLog
from .stats import CollectorTime, LearnerTime, Stats, engine_of
from .timeline import Trace

__all__ = ["Feed"]


class Feed(Iterator[Fragment]):
    """An infinite iterator over fragments, and a context manager. Returned by every ``rollout``.

    The feed, its thread, its processes and the environments that its factories made end at :meth:`close`, at the end of
    a ``with`` block, when the last reference to the feed is dropped, at a KeyboardInterrupt inside ``next()``, at an
    error, or at the interpreter's exit.

    ``next()`` raises

    - the error that collecting a fragment raised, with its type, its traceback, and a note that says where, after all
      fragments completed before; from then on StopIteration. (An environment's StopIteration becomes a RuntimeError.)
    - TimeoutError if neither the environments nor the actor make progress (not in ``same``);
    - ValueError if the names, shapes or dtypes of the actor's parameters have changed, RuntimeError if torch's default
      dtype or device has at the first call; no fragment was asked for then, and the feed remains usable;
    - RuntimeError if the feed is closed, is paused by the calling thread, or is called by its own environments.
    """

    def __init__(self, driver: Driver, actor: BaseActorModule, lane: Lane, lag: int, progress: Progress) -> None:
        """Construct the feed of a driver. No fragment is asked for yet."""
        self._driver, self._actor, self._lane, self._lag = driver, actor, lane, lag
        self._progress = progress
        self._next_lock = threading.RLock()
        self._in_next = False
        self._ended = self._closed = False
        self._asked = self._steps = 0
        self._version: int | tuple[int, ...] | None = None
        self._episodes = EpisodeLog()
        self._clock = Clock()
        self._collector_spent = progress.spent()
        self._traces: list[Trace] = []
        # called when the feed is garbage-collected and at the interpreter's exit; must not refer to the feed itself
        self._finalizer = weakref.finalize(self, _stop_unreferenced, driver, self._traces, os.getpid())

    def __iter__(self) -> Feed:
        """Return the feed itself: there is one stream of fragments."""
        return self

    def __next__(self) -> Fragment:
        """Ask for the next fragment, wait for it, and return it. The caller owns it; the class lists the errors."""
        hindrance = self._driver.why_take_would_hang()
        if hindrance is not None and self.open:
            raise RuntimeError(hindrance)
        with self._next_lock:
            if self._in_next:
                raise RuntimeError("next() was called inside next() of the same feed, as by one of its environments.")
            self._in_next = True
            try:
                return self._next_fragment()
            finally:
                self._in_next = False

    def _next_fragment(self) -> Fragment:
        if self._closed:
            raise RuntimeError("the feed is closed.")
        if self._ended:
            raise StopIteration
        self._clock.switch_to(WAITING)
        try:
            # tensors that outlive this call must be neither inference tensors nor part of an autograd graph
            with torch.inference_mode(False), torch.no_grad():
                self._give_tokens()
                return self._fragment_of(self._driver.take())
        except Closed:
            raise RuntimeError("the feed is closed.") from None
        except _NotAskedError as refusal:
            raise refusal.error from None
        except StopIteration as error:  # unchanged, it would end the user's `for` loop without an error
            self._end_after(error)
            raise RuntimeError(f"collecting a fragment raised {error!r}: {self._progress}.") from error
        except BaseException as error:
            self._end_after(error)
            raise
        finally:
            self._clock.switch_to(TRAINING)
            self._collector_spent = self._progress.spent()

    def _give_tokens(self) -> None:
        """Give the driver a token with a snapshot of the present weights; at the first ask, ``lag`` more of them."""
        collector = self._driver.collector
        try:
            if not self._asked:
                torch_context = collector.torch_context.at_first_ask()
                if torch_context != collector.torch_context:
                    collector.prepare(torch_context)
            snapshot = collector.snapshot(self._actor)
        except Exception as error:
            raise _NotAskedError(error) from error
        for _ in range(1 if self._asked else 1 + self._lag):
            token = Token(self._asked, snapshot, collector.blank(), self._lane.current, self._lane.record())
            self._driver.give(token)
        self._asked += 1

    def _fragment_of(self, delivery: Delivery) -> Fragment:
        """Return the fragment of a delivery, safe to read on the current stream, and count its steps and episodes."""
        self._lane.wait(delivery.copied)  # edge: copied -> read
        if delivery.consumer_stream != self._lane.current:  # the user has changed the current stream since the ask
            self._lane.borrow((delivery.fragment, delivery.snapshot.weights))
        blank = delivery.fragment
        fragment = blank._replace(env=blank.env._replace(final=self._copy_of_final(delivery.final)))
        self._version = delivery.version
        self._steps += delivery.steps
        self._episodes.add(delivery.episodes, delivery.late)
        if delivery.warning:
            warnings.warn(delivery.warning, RuntimeWarning, stacklevel=4)
        return fragment

    def _copy_of_final(self, staged: Nested) -> Nested:
        """Copy ``final`` into memory of the consumer's. On the host return it as is: the collector drops its memory."""
        if not isinstance(staged, Final) or self._lane.shared(Place.CONSUMER, Place.HOST):
            return staged
        final = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), staged)
        self._lane.copy(final, staged)
        self._lane.borrow(staged)  # edge: read -> reuse
        return final

    def _end_after(self, error: BaseException) -> None:
        """End the feed after an error, and add to the error, as notes, what went wrong in ending it."""
        self._ended = True
        if self._driver.stalled:
            return  # the TimeoutError is raised without a further wait; `close` waits for the stuck thread
        for complaint in self._stop_driver():
            add_note(error, complaint)

    def _stop_driver(self) -> list[str]:
        """Stop the driver and close the traces; return what went wrong."""
        complaints = self._driver.stop()
        if self._driver.ended:  # else the finalizer tries again
            self._finalizer.detach()
        for trace in self._traces:
            trace.close()
        return complaints

    def close(self) -> None:
        """End the feed, its thread and its processes, and close the environments that its factories made.

        May be called repeatedly, and from any thread. A ``next()`` that waits in another thread raises RuntimeError.
        Delivered fragments stay valid. An environment that does not return from its step within a few seconds is left
        behind, or killed with its process and what this has started; a RuntimeWarning names it.
        """
        self._close()

    def _close(self) -> None:
        self._closed = True
        self._driver.wake()
        for complaint in self._stop_driver():
            warnings.warn(complaint, RuntimeWarning, stacklevel=3)

    def __enter__(self) -> Feed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._close()

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Keep the collector standing still, between two steps, inside the ``with`` block. Blocks may be nested.

        For work that another thread must not disturb, such as capturing a CUDA graph or compiling the learner.

        Raises
        ------
        TimeoutError
            If the collector does not complete its current step within ``timeout`` seconds.
        """
        with self._driver.paused():  # this generator refers to the feed, which thus lives as long as the block
            yield

    def trace(self, path: str | os.PathLike[str] | None = None) -> Trace:
        """Record what learner, collector and workers do, and when, from now on; write it to a file at the end.

        ``with feed.trace("run.json"):`` records a block. Without ``with``, the trace ends at its own ``close()``, or
        with the feed. It costs some microseconds for each step of the collector, and memory for each span: record a
        few hundred fragments rather than hours.

        Parameters
        ----------
        path : path, optional
            The file to write; an existing file is replaced. By default no file is written.

        Returns
        -------
        Trace
            The recording, which :func:`rlplay.plotting.timeline` draws.

        Raises
        ------
        RuntimeError
            The feed is closed, or is already being recorded.
        OSError
            The file cannot be written.
        """
        if not self.open:
            raise RuntimeError("the feed is closed.")
        if self._progress.traced:
            raise RuntimeError("the feed is being recorded already: end that trace first.")
        lag = None if isinstance(self._version, tuple) else self._lag
        self._traces[:] = [Trace(path, self._clock, self._progress, self._lane, self._asked, lag)]
        return self._traces[0]

    @property
    def open(self) -> bool:
        """True until the feed is closed or has ended: more fragments can be asked for."""
        return not (self._closed or self._ended)

    @property
    def version(self) -> int | tuple[int, ...] | None:
        """The number of the snapshot that collected the last delivered fragment (fragment ``k``: ``max(0, k - lag)``).

        None before the first delivery. A tuple with one number for each part of the fragment, if fragments are made of
        the parts that finish first (``multi`` with ``n_per_batch < n_actors``).
        """
        return self._version

    @property
    def steps(self) -> int:
        """The number of valid transitions delivered so far; may wait for the last fragment, as `episodes` does."""
        return self._steps + self._episodes.late_steps()

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended in fragments delivered since the last call, in the order ``(t, env)``.

        At most the last 100 000 are kept between calls. Another thread may call ``next()`` meanwhile. Those of
        environments on a device are brought down behind each fragment: then this waits for the last fragment.
        """
        return self._episodes.take()

    @property
    def stats(self) -> Stats:
        """Steps per second, and how both sides spent their time, until the last delivery; may wait, as `steps` does."""
        learner = LearnerTime(self._clock.seconds[WAITING], self._clock.seconds[TRAINING])
        return Stats(
            steps=(steps := self.steps),
            seconds=sum(learner),
            steps_per_second=steps / (sum(learner) or 1.0),
            collector=CollectorTime(*self._collector_spent),
            learner=learner,
            engine=engine_of(isinstance(self._driver, Inline), [name for name, _ in self._progress.parts]),
            counters=self._lane.counters.copy(),
        )

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended else "open"
        steps = self._steps + self._episodes.known_late_steps
        return f"<Feed: {state}, {self._asked} fragments asked for, {steps} steps>"


def _stop_unreferenced(driver: Driver, traces: list[Trace], pid: int) -> None:
    """Stop the driver of a feed that was dropped without ``close()``."""
    if os.getpid() != pid:
        return  # a forked child has a copy of the memory, but neither the thread nor the processes
    for trace in traces:
        trace.close()
    for complaint in driver.stop():
        warnings.warn(complaint, RuntimeWarning, stacklevel=2)


class _NotAskedError(Exception):
    """No snapshot could be taken, so no fragment was asked for. ``error`` is the reason."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error
