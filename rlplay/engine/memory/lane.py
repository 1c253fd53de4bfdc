"""Lanes: the verbs for moving data between the host, the actor's device and the consumer's device.

The engine is written in these verbs and does not depend on the kind of lane. This module must not name streams of any
particular kind of device.

Nine edges protect memory from being read or written at the wrong time. Each is named in a comment (``# edge: ...``) at
the line that draws it:

called -> made
    The host waits for what the caller's stream has done so far, such as the copy of the actor and the memory of
    environments that the caller has made, before environments are reset and the actor runs on the collector's stream.
filled -> copy
    A host row is filled in before its copy is asked for.
copied -> refill
    A host slot is not filled in again before the last copy out of it is done. In a ring of rows, a row is not filled in
    again before its upload is done: the host has waited for the actions of the row behind it, which come down later.
copied -> read
    The consumer's stream waits for the copies into a fragment before it reads the fragment.
read -> reuse
    The consumer's stream copies the staged rows of ``final`` out of the collector's memory. That memory is not used
    again before this copy is done.
ready -> first write
    The collector's stream waits for the snapshot's copy before it reads the snapshot. It waits for the earlier readers
    of the blank fragment's memory before it writes there.
started -> first step
    The stream of a turn waits for the collector's stream, which loads the weights, before it runs the first step.
stepped -> put together
    The collector's stream waits for the streams of all turns before it copies the fragment out of the rows.
dropped -> released
    Memory that never reaches the consumer is released only after the host has waited for the streams of the collector
    and of the turns.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from enum import Enum, auto
from time import perf_counter
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ... import nested
from ...contexts import contextmanager
from ...nested import Nested
from .counters import Counters

__all__ = ["Lane", "Place"]


class Place(Enum):
    """Where memory is."""

    HOST = auto()
    """On the host. The memory is page-locked if an asynchronous lane copies it to a device."""
    ACTOR = auto()
    """On the device of the behaviour copy."""
    CONSUMER = auto()
    """On the device where fragments are delivered."""


class Lane:
    """The verbs, each with its promise. In this class the host is the only device, and every call is synchronous.

    On an asynchronous lane each thread has a *current stream*: the collector's inside :meth:`collecting`, or that of a
    turn (:meth:`use_turn`); otherwise the consumer's. Calls return at once; the work that they ask for is done later,
    in the order of the stream that was current. An *event* is a point of a stream, reached once all earlier work of
    that stream is done.

    Attributes
    ----------
    device : torch.device
        Where fragments are delivered.
    actor_device : torch.device
        Where the behaviour copy is.
    counters : Counters
        What an asynchronous lane has been asked for so far.
    """

    asynchronous = False
    """Whether calls return before the work that they ask for is done."""

    def __init__(self, device: torch.device, actor_device: torch.device) -> None:
        """Set the two devices."""
        self.device, self.actor_device = device, actor_device
        self.counters = Counters()
        self._thread = threading.local()  # what a lane keeps for each thread

    def shared(self, one: Place, other: Place) -> bool:
        """Return whether two places are on the same device, so that nothing need be copied between them."""
        return True

    @property
    def has_both_on_device(self) -> bool:
        """Whether actor and consumer are on one device, and not on the host. Then fragments are put together there."""
        return not self.shared(Place.ACTOR, Place.HOST) and self.shared(Place.ACTOR, Place.CONSUMER)

    def empty(self, place: Place, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate uninitialised memory, to be used on the current stream."""
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    def lock(self, memory: npt.NDArray[Any]) -> Tensor:
        """Return a tensor over existing host memory. It may be used like memory of ``Place.HOST``."""
        return torch.from_numpy(memory)

    def copy(self, target: Nested, source: Nested) -> None:
        """Copy each leaf, on the current stream. A source on the host must not change until the copy is done.

        Inside of work that is launched, the copy is a part of that work. Inside of work that is captured, it is made
        and counted at each replay.
        """
        targets, sources = nested.leaves(target), nested.leaves(source)
        if targets:
            torch._foreach_copy_(targets, sources, non_blocking=self.asynchronous)

    def clone(self, tree: Nested, place: Place) -> Nested:
        """Return a copy of each leaf in new memory, on the current stream. Otherwise like :meth:`copy`."""
        copies = nested.map(lambda x: self.empty(place, x.shape, x.dtype), tree)
        self.copy(copies, tree)
        return copies

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Return tensors with the present values, which do not change until a :meth:`copy` has read them."""
        return sources

    def launch(self, work: Callable[[], None]) -> None:
        """Run ``work``, whose operations are done on the actor's device, behind earlier work of the current stream."""
        work()

    def capture(
        self, work: Callable[[], None], generators: Sequence[torch.Generator], key: int = 0
    ) -> Callable[[], None]:
        """Record the device operations of ``work``, and return a callable that replays them on the current stream.

        Nothing is computed now. Replays use the operations and addresses of the recording: all memory that is read or
        written must stay where it is for as long as the callable is used. The callable must be called inside
        :meth:`launch`. Each replay draws new random numbers from ``generators``. Recordings with different keys may be
        replayed side by side, on different streams. All earlier work of the current stream must be done when this
        method is called.

        Raises
        ------
        Exception
            What ``work`` raises. It fails if it reads a value of a tensor, which has none while it is recorded.
        """
        return work

    def _count_copy(self, n_bytes: int, *, to_host: bool, from_host: bool) -> None:
        """Count a copy: now, or inside of :meth:`_count_at_replay` at each replay."""
        counters: Counters = getattr(self._thread, "captured", self.counters)
        counters.count_copy(n_bytes, to_host=to_host, from_host=from_host)

    def _count_at_replay(self, capture: Callable[[], Callable[[], None]]) -> Callable[[], None]:
        """Capture, and return a callable that replays what was captured and counts its copies."""
        self._thread.captured = captured = Counters()
        try:
            replay = capture()
        finally:
            del self._thread.captured
        if captured == Counters():
            return replay

        def counted_replay() -> None:
            self.counters.add_copies(captured)
            replay()

        return counted_replay

    @property
    def current(self) -> Any:
        """The current stream, as an object that can be compared with ``==``."""
        return None

    def borrow(self, tree: Nested) -> None:
        """Declare that the current stream uses memory that was allocated on another stream.

        Once the memory is released, it is not used again before the work that the current stream has now is done.
        """

    def record(self, spent: Any = None) -> Any:
        """Return an event: this point of the current stream.

        ``spent`` is an event for which nobody waits any more. It may be used again.
        """
        return None

    def wait(self, event: Any) -> None:
        """Let later work of the current stream wait for an event. The host does not wait."""

    def host_wait(self, event: Any) -> None:
        """Let the host wait for an event. None is an event that has been reached."""

    def reached(self, event: Any) -> bool:
        """Return whether an event has been reached, without a wait. None is an event that has been reached."""
        return True

    def synchronize_collector(self) -> None:
        """Let the host wait until all work of the collector's stream and of the streams of turns is done."""

    def stamp(self, side: Place) -> Any:
        """Return an event with a time: of the collector's stream (``ACTOR``), or of the current one (``CONSUMER``).

        None if the side has no streams.
        """
        return None

    def seconds(self, one: Any, other: Any) -> float | None:
        """Return the seconds between two stamps of a stream, or None if either is not reached yet. Does not wait."""
        return None

    @property
    def now(self) -> float:
        """The present time of this thread, in seconds from an arbitrary start."""
        return perf_counter()

    def use_turn(self, turn: int | None) -> None:
        """Make the stream of one turn the current one of this thread, or the collector's own stream again (None).

        May be called inside :meth:`collecting` only. The streams of turns are made when they are first used.
        """

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's stream the current one of this thread, inside a ``with`` block."""
        yield
