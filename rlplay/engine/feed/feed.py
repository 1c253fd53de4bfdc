"""The feed: the iterator over fragments that users hold. It is the consumer's side of a rollout.

``rlplay.engine.collector.collector`` describes the exchange of tokens and deliveries. This module neither steps
environments nor runs the actor.
"""

from __future__ import annotations

import atexit
import os
import threading
import warnings
import weakref
from collections.abc import Callable, Iterator
from types import TracebackType
from typing import Any, TypeVar

import torch

from ...contexts import contextmanager
from ...nested import Nested
from ..collector.messages import Delivery, Token
from ..concurrency.channel import Closed
from ..concurrency.clock import TRAINING, WAITING
from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress
from ..core import BaseActorModule, Final, Fragment
from ..memory.lane import Lane, Place
from .delivered import Delivered, stop_unreferenced
from .driver import Driver
from .saved_stream import SavedStream

__all__ = ["Feed"]

T = TypeVar("T")


class Feed(Delivered, Iterator[Fragment]):
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

    def __init__(
        self,
        driver: Driver,
        actor: BaseActorModule,
        lane: Lane,
        lag: int,
        progress: Progress,
        stream: SavedStream,
    ) -> None:
        """Construct the feed of a driver. No fragment is asked for yet."""
        super().__init__(driver, lane, progress, lag)
        self._actor = actor
        self._pid = os.getpid()
        self._next_lock = threading.RLock()
        self._in_next = False
        self._has_begun = False  # a feed that goes on from a saved state has asked before it begins
        self._stream = stream
        if stream.counts is not None:
            self._continue_counts(*stream.counts)
        # called when the feed is garbage-collected and at the interpreter's exit; must not refer to the feed itself
        self._finalizer = weakref.finalize(self, stop_unreferenced, driver, self._recorder, self._pid)

    def __iter__(self) -> Feed:
        """Return the feed itself: there is one stream of fragments."""
        return self

    def __next__(self) -> Fragment:
        """Ask for the next fragment, wait for it, and return it. The caller owns it; the class lists the errors."""
        return self._alone("next()", self._next_fragment)

    def _alone(self, what: str, work: Callable[[], T]) -> T:
        """Call ``work()`` while no other thread is inside this method; refuse a call that would wait for ever."""
        self.check_asking()
        with self._next_lock:
            if self._in_next:
                raise RuntimeError(f"{what} was called inside next() of the same feed, as by one of its environments.")
            try:
                self._in_next = True
                return work()
            finally:
                self._in_next = False

    def check_asking(self) -> None:
        """Raise RuntimeError if a ``next()`` of the calling thread would wait for ever, as while it has paused."""
        hindrance = self._driver.why_take_would_hang()
        if hindrance is not None and self.open:
            raise RuntimeError(hindrance)

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
            self._note_times()

    def _give_tokens(self) -> None:
        """Give the driver a token with a snapshot of the present weights; at the first ask, ``lag`` more of them."""
        collector = self._driver.collector
        try:
            if not self._has_begun:
                torch_context = self._stream.context(collector.torch_context.at_first_ask(), asks=True)
                if torch_context != collector.torch_context:
                    collector.prepare(torch_context)
            snapshot = collector.snapshot(self._actor)
        except Closed:
            raise
        except Exception as error:
            raise _NotAskedError(error) from error
        if not self._has_begun:
            self._stream.put_under_way(self._driver, self._lane)
        self._has_begun = True
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
        self._count_delivery(delivery)
        if delivery.warning:
            warnings.warn(delivery.warning, RuntimeWarning, stacklevel=5)
        return fragment

    def _copy_of_final(self, staged: Nested) -> Nested:
        """Copy ``final`` into memory of the consumer's. On the host return it as is: the collector drops its memory."""
        if not isinstance(staged, Final) or self._lane.shared(Place.CONSUMER, Place.HOST):
            return staged
        final = self._lane.clone(staged, Place.CONSUMER)
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
        """Stop the driver and end the trace; return what went wrong."""
        complaints = self._driver.stop()
        if self._driver.ended:  # else the finalizer tries again
            self._finalizer.detach()
        try:
            self._recorder.close()
        except OSError as error:
            complaints.append(f"the trace could not be written: {error}.")
        return complaints

    def state_dict(self, *, environments: str = "save") -> dict[str, Any]:
        """Return what the rest of the stream depends on; between two calls of ``next()``.

        ``rollout(..., state=saved)`` goes on from there, in this process or in another one: the fragments that follow
        are, bit for bit, those that would have followed. The actor, the optimiser and torch's global generator are
        yours to save: restore them before. The engine may be another one, but not the environments, the actor,
        ``lag``, ``groups``, ``n_steps`` and what else decides the fragments. The collector first finishes the fragments
        that it has been asked for; then the feed goes on as if nothing had been asked.

        What is saved of the behaviour copy is what no snapshot brings: numbers, strings, tensors, arrays, generators,
        and containers of these, in attributes. Other objects that the actor's step changes are not.

        Parameters
        ----------
        environments : "save" or "restart"
            ``"save"``: the state of each environment is part of it. The innermost environment's ``get_state`` and
            ``set_state``, or ``clone_state`` and ``restore_state``, are used, if it has them; of all else that it
            consists of, the attributes are pickled. ``"restart"``: episodes under way are given up. New ones begin at
            the first row that follows, where ``fin`` is True, with other seeds; so the stream is another one.

        Returns
        -------
        dict
            Of tensors on the host, numbers, strings, bytes, and lists and dicts of these: ``torch.load`` reads it with
            ``weights_only=True``. But ``rollout`` unpickles the environments in it: pass it only what you trust.

        Raises
        ------
        ValueError, TypeError
            ``environments`` is neither string. Or an environment cannot be saved: the message has its number, and the
            path to the part that cannot be saved; the feed goes on.
        NotImplementedError
            The environments are in torch.
        RuntimeError
            The feed is closed or has ended, collecting has failed, a worker or a collector process has died (the
            message names it), or this is called inside ``next()``.
        TimeoutError
            Saving makes no progress for ``timeout`` seconds, as in an environment that is stuck. The feed has ended.
        """
        if environments not in ("save", "restart"):
            raise ValueError(f"`environments` must be 'save' or 'restart', got {environments!r}.")
        return self._alone("state_dict()", lambda: self._save(environments))

    def _save(self, environments: str) -> dict[str, Any]:
        if not self.open:
            raise RuntimeError("the feed is closed, or has ended: there is nothing left to save.")
        try:
            with torch.inference_mode(False), torch.no_grad():
                return self._stream.save(self._driver, self._lane, self._asked, self._counts(), environments)
        except Closed:
            raise RuntimeError("the feed is closed.") from None
        except BaseException as error:
            if self._driver.stalled or not isinstance(error, Exception):
                self._end_after(error)
            raise

    def close(self) -> None:
        """End the feed, its thread and its processes, and close the environments that its factories made.

        May be called repeatedly, and from any thread. A ``next()`` that waits in another thread raises RuntimeError.
        Delivered fragments stay valid. An environment that does not return from its step within a few seconds is left
        behind, or killed with its process and what this has started; a RuntimeWarning names it.
        """
        self._close()

    def _close(self) -> None:
        if os.getpid() != self._pid:
            return  # a forked child has a copy of the memory, but neither the thread nor the processes
        self._closed = True
        self._driver.wake()
        for complaint in self._stop_driver():
            warnings.warn(complaint, RuntimeWarning, stacklevel=3)

    def close_first_at_exit(self) -> None:
        """Close the feed, at the interpreter's exit, before the libraries end that have been imported so far."""
        atexit.register(self._finalizer)

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
        TimeoutError, RuntimeError
            No end of the step within ``timeout`` seconds. This is called inside of a step, or in a fork.
        """
        with self._driver.paused():  # this generator refers to the feed, which thus lives as long as the block
            yield

    def __repr__(self) -> str:
        state = "closed" if self._closed else "ended" if self._ended else "open"
        steps = self._steps + self._episodes.known_late_steps
        return f"<Feed: {state}, {self._asked} fragments asked for, {steps} steps>"


class _NotAskedError(Exception):
    """No snapshot could be taken, so no fragment was asked for. ``error`` is the reason."""

    def __init__(self, error: Exception) -> None:
        super().__init__(error)
        self.error = RuntimeError(f"asking raised {error!r}.") if isinstance(error, StopIteration) else error
