"""The iterator that users hold: the consumer's side of the law, and how a feed comes to be and ends.

Knows neither how to step nor how to copy.
"""

from __future__ import annotations

import os
import threading
import warnings
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from types import TracebackType

import torch

from ... import nested
from ...nested import Nested
from ..acting.torch_context import TorchContext
from ..collector.messages import Delivery, Token
from ..concurrency.channel import Closed
from ..concurrency.clock import TRAINING, WAITING, Clock
from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress
from ..core import BaseActorModule, Episode, Final, Fragment
from ..memory.lane import Lane, Place
from .driver import Driver
from .stats import CollectorTime, LearnerTime, Stats
from .timeline import Trace

__all__ = ["Feed"]

_KEPT_EPISODES = 100_000


class Feed(Iterator[Fragment]):
    """An infinite iterator over fragments, and a context manager. Made by a ``rollout``.

    A feed ends, and with it its thread and whatever it made, by :meth:`close`, at the end of a ``with`` block, when
    the last reference to it goes, by a KeyboardInterrupt inside ``next()``, by an error, or with the interpreter.

    ``next()`` raises

    - what collecting raised, with its type and traceback and a note of where, after all fragments before it;
      from then on StopIteration. (A StopIteration of an environment comes as a RuntimeError.)
    - TimeoutError if an environment or the actor makes no progress (``threaded`` only);
    - ValueError if the actor's parameters have changed their names, shapes or dtypes; nothing was asked for then,
      and the feed can go on;
    - RuntimeError if the feed is closed, paused by this very thread, or asked by its own environments.
    """

    def __init__(self, driver: Driver, actor: BaseActorModule, lane: Lane, lag: int, progress: Progress) -> None:
        """Begin with nothing asked for yet."""
        self._driver, self._actor, self._lane, self._lag = driver, actor, lane, lag
        self._progress = progress
        self._turn = threading.RLock()
        self._inside = False
        self._ended = self._closed = False
        self._asked = 0
        self._steps = 0
        self._version: int | tuple[int, ...] | None = None
        self._episodes: deque[Episode] = deque(maxlen=_KEPT_EPISODES)
        self._clock = Clock()
        self._collector_spent = progress.spent()
        self._traces: list[Trace] = []
        # holds on to the driver, not to the feed; also called when the interpreter exits
        self._forgotten = weakref.finalize(self, _stop_forgotten, driver, self._traces, os.getpid())

    def __iter__(self) -> Feed:
        """Return the feed itself: there is one stream of fragments."""
        return self

    def __next__(self) -> Fragment:
        """Ask for the next fragment, and wait for it. It is the caller's from then on; see the class for errors."""
        hindrance = self._driver.why_take_would_hang()
        if hindrance is not None and self.open:
            raise RuntimeError(hindrance)
        with self._turn:
            if self._inside:
                raise RuntimeError("next() was called inside next() of the same feed, as by one of its environments.")
            self._inside = True
            try:
                return self._next()
            finally:
                self._inside = False

    def _next(self) -> Fragment:
        if self._closed:
            raise RuntimeError("the feed is closed.")
        if self._ended:
            raise StopIteration
        self._clock.switch_to(WAITING)
        try:
            # memory that outlives this call must be neither inference tensors nor part of a graph
            with torch.inference_mode(False), torch.no_grad():
                self._ask()
                return self._receive(self._driver.take())
        except Closed:
            raise RuntimeError("the feed is closed.") from None
        except _NothingAsked as refusal:
            raise refusal.error from None
        except StopIteration as error:  # it would end the user's loop as if all were well
            self._end(error)
            raise RuntimeError(f"collecting a fragment raised {error!r}: {self._progress}.") from error
        except BaseException as error:
            self._end(error)
            raise
        finally:
            self._clock.switch_to(TRAINING)
            self._collector_spent = self._progress.spent()

    def _ask(self) -> None:
        """Put a token with the weights as they are now; the first ask puts ``lag`` more of the same."""
        collector = self._driver.collector
        try:
            if not self._asked:
                torch_context = TorchContext.here(self._lane.actor_device)
                if torch_context != collector.torch_context:
                    collector.prepare(torch_context)
            snapshot = collector.snapshot(self._actor)
        except Exception as error:
            raise _NothingAsked(error) from error
        for _ in range(1 if self._asked else 1 + self._lag):
            token = Token(self._asked, snapshot, collector.blank(), self._lane.current, self._lane.record())
            self._driver.give(token)
        self._asked += 1

    def _receive(self, delivery: Delivery) -> Fragment:
        self._lane.wait(delivery.copied)  # copied -> read
        if delivery.home != self._lane.current:  # the user has changed streams since the ask
            self._lane.borrow((delivery.fragment, delivery.snapshot.weights))
        blank = delivery.fragment
        fragment = blank._replace(env=blank.env._replace(final=self._own(delivery.staged)))
        self._version = delivery.version
        self._steps += delivery.steps
        self._episodes.extend(delivery.episodes)
        if delivery.complaint:
            warnings.warn(delivery.complaint, RuntimeWarning, stacklevel=4)
        return fragment

    def _own(self, staged: Nested) -> Nested:
        """Copy the staged rows of ``final`` into memory of the consumer's; on the host it may have them as they are."""
        if not isinstance(staged, Final) or self._lane.shared(Place.CONSUMER, Place.HOST):
            return staged
        own = nested.map(lambda x: self._lane.empty(Place.CONSUMER, x.shape, x.dtype), staged)
        self._lane.copy(own, staged)
        self._lane.borrow(staged)  # read -> reuse
        return own

    def _end(self, error: BaseException) -> None:
        self._ended = True
        if self._driver.stalled:
            return  # the consumer is to hear of it at once; `close` will wait a little for what is stuck
        for complaint in self._stop():
            add_note(error, complaint)

    def _stop(self) -> list[str]:
        """End the driver, and say what went wrong with it; what cannot be ended now is tried again later."""
        complaints = self._driver.stop()
        if self._driver.ended:
            self._forgotten.detach()
        for trace in self._traces:
            trace.close()
        return complaints

    def close(self) -> None:
        """End the feed: its thread, and what its factories made. May be called often, and from any thread.

        A ``next()`` that waits in another thread raises RuntimeError. Fragments that were received stay as they are.
        An environment that does not return from its step is waited for a short while, then warned about.
        """
        self._close(stacklevel=3)

    def _close(self, stacklevel: int) -> None:
        self._closed = True
        self._driver.wake()
        for complaint in self._stop():
            warnings.warn(complaint, RuntimeWarning, stacklevel=stacklevel)

    def __enter__(self) -> Feed:
        """Return the feed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the feed."""
        self._close(stacklevel=3)

    @contextmanager
    def pause(self) -> Iterator[None]:
        """Let the collector stand still at a step's boundary inside the ``with`` block; blocks may be nested.

        For what must not be disturbed by another thread: capturing a CUDA graph, compiling the learner.

        Raises
        ------
        TimeoutError
            If the collector does not come to a step's boundary within ``timeout`` seconds.
        """
        with self._driver.paused():  # and with a reference to the feed: it is not forgotten while it is paused
            yield

    def trace(self, path: str | os.PathLike[str] | None = None) -> Trace:
        """Record what learner, collector and workers do when, from now on, and write it to a file in the end.

        ``with feed.trace("run.json"):`` records a block. Without ``with``, it ends by its own ``close()``, or with the
        feed. It costs some microseconds for each step of the collector, and the memory for what is noted: record a
        few hundred fragments rather than hours.

        Parameters
        ----------
        path : path, optional
            Where to write; an older file is replaced. By default nowhere: what is returned can be drawn, too.

        Returns
        -------
        Trace
            For :func:`rlplay.plotting.timeline`.

        Raises
        ------
        RuntimeError
            The feed is closed, or is being recorded already.
        OSError
            The file cannot be written.
        """
        if not self.open:
            raise RuntimeError("the feed is closed.")
        if self._progress.traced:
            raise RuntimeError("the feed is being recorded already: end that trace first.")
        self._traces[:] = [Trace(path, self._clock, self._progress, self._lane)]
        return self._traces[0]

    @property
    def open(self) -> bool:
        """Whether more fragments can be asked for."""
        return not (self._closed or self._ended)

    @property
    def version(self) -> int | tuple[int, ...] | None:
        """The number of the snapshot that collected the last delivered fragment (fragment ``k``: ``max(0, k - lag)``).

        None before the first. A tuple, one for each part, if it is made of the parts that finish first (``multi``).
        """
        return self._version

    @property
    def steps(self) -> int:
        """The number of transitions delivered so far, over all environments; those that are not valid do not count."""
        return self._steps

    def episodes(self) -> list[Episode]:
        """Take the episodes that ended in fragments delivered since this was last asked, ordered by ``(t, env)``.

        At most the last 100 000 are kept.
        """
        taken = list(self._episodes)
        self._episodes.clear()
        return taken

    @property
    def stats(self) -> Stats:
        """Steps per second, and where the seconds went, from the first ask to the delivery of the last fragment."""
        learner = LearnerTime(self._clock.seconds[WAITING], self._clock.seconds[TRAINING])
        return Stats(
            steps=self._steps,
            seconds=sum(learner),
            steps_per_second=self._steps / (sum(learner) or 1.0),
            collector=CollectorTime(*self._collector_spent),
            learner=learner,
        )

    def __repr__(self) -> str:
        """Say what it has done, and whether it is open."""
        state = "closed" if self._closed else "ended" if self._ended else "open"
        return f"<Feed: {state}, {self._asked} fragments asked for, {self._steps} steps>"


def _stop_forgotten(driver: Driver, traces: list[Trace], pid: int) -> None:
    if os.getpid() != pid:
        return  # a fork, which has nothing of the feed but its memory
    for trace in traces:
        trace.close()
    for complaint in driver.stop():
        warnings.warn(complaint, RuntimeWarning, stacklevel=2)


class _NothingAsked(Exception):
    """An ask was refused before it had any effect."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = error
