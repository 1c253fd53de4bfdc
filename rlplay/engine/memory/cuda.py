"""The lane for CUDA devices. Of the engine, only this module and :mod:`.cuda_graphs` name ``torch.cuda``.

:class:`CudaLane` keeps the promises of :class:`~rlplay.engine.memory.lane.Lane` with CUDA streams: one that belongs to
the collector, one for each turn where turns may run side by side, and whichever stream is current in the consumer's
thread.

:mod:`rlplay.engine.memory.lane` lists the edges that protect memory.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from math import prod
from time import perf_counter
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from ...contexts import contextmanager
from ...nested import Nested, leaves
from .cuda_graphs import GraphCapture
from .lane import Lane, Place

__all__ = ["SPIN", "CudaLane", "lane_between", "parse_device"]

SPIN = 2e-3
"""Seconds. Beside a learner on the same GPU a step of an actor takes about as long; see BENCHMARKS.md."""

_PRIORITY = -1
"""Of the collector's streams and graphs. Of the blocks of kernels that wait, a GPU starts those of higher priority
first; the collector's are few and short."""

_Streams = dict[torch.device, torch.cuda.Stream]


class _Event(NamedTuple):
    """A point of the current stream of each device."""

    points: list[tuple[torch.device, torch.cuda.Event]]
    spins: bool
    """Whether a thread that waits for it keeps its core busy, instead of sleeping."""


class CudaLane(Lane):
    """The lane for CUDA. The collector has a stream of its own on each CUDA device that is used."""

    asynchronous = True

    def __init__(self, device: torch.device, actor_device: torch.device, *, spin: float | None = None) -> None:
        """Create the collector's streams. A feed makes one lane.

        Parameters
        ----------
        spin : float, optional
            While the host waits for an event, its thread keeps its core busy if the wait before this one took less than
            so many seconds. Otherwise the thread sleeps. To sleep and to wake up again takes some 50 us, as long as a
            small step of an actor. By default :data:`SPIN` on a machine with at least eight cores, else 0: there the
            learner needs the core.
        """
        super().__init__(device, actor_device)
        self._spin = spin if spin is not None else SPIN * ((os.cpu_count() or 1) >= 8)
        self._spins = self._spin > 0  # whether the next wait is expected to be short
        self._where = {Place.HOST: torch.device("cpu"), Place.ACTOR: actor_device, Place.CONSUMER: device}
        # the actor's device comes last, so that it is the current device inside `collecting`
        used = [d for d in dict.fromkeys((device, actor_device)) if d.type == "cuda"]
        self._streams: _Streams = {d: torch.cuda.Stream(d, priority=_PRIORITY) for d in used}
        self._turn_streams: dict[int, torch.cuda.Stream] = {}
        for d in used:  # the actor may just have been made on the default stream: it is copied on the current one
            torch.cuda.current_stream(d).wait_stream(torch.cuda.default_stream(d))
        self._graphs = GraphCapture(actor_device, _PRIORITY)

    def shared(self, one: Place, other: Place) -> bool:
        """Return whether two places are on the same device."""
        return self._where[one] == self._where[other]

    def empty(self, place: Place, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate uninitialised memory: on a device for the current stream, on the host page-locked."""
        where = self._where[place]
        self.counters.count_memory(prod(shape) * dtype.itemsize, on_host=where.type == "cpu")
        return torch.empty(tuple(shape), dtype=dtype, device=where, pin_memory=where.type == "cpu")

    def lock(self, memory: npt.NDArray[Any]) -> Tensor:
        """Page-lock existing host memory for as long as the array lives, and return a tensor over it."""
        runtime, address = torch.cuda.cudart(), memory.ctypes.data
        torch.cuda.check_error(runtime.cudaHostRegister(address, memory.nbytes, 0))
        weakref.finalize(memory, runtime.cudaHostUnregister, address)
        self.counters.count_memory(memory.nbytes, on_host=True)
        return torch.from_numpy(memory)

    @property
    def _current(self) -> _Streams:
        """The current stream of each device. :meth:`collecting` stores them, since torch takes 5 us to look one up."""
        streams: _Streams | None = getattr(self._thread, "streams", None)
        return {d: torch.cuda.current_stream(d) for d in self._streams} if streams is None else streams

    def copy(self, target: Nested, source: Nested) -> None:
        """Copy each leaf, on the current stream."""
        if isinstance(target, Tensor) and isinstance(source, Tensor):
            self._count_copy(target.nbytes, to_host=target.is_cpu, from_host=source.is_cpu)
            target.copy_(source, non_blocking=True)
            return
        for one, other in zip(leaves(target), leaves(source), strict=True):
            self._count_copy(one.nbytes, to_host=one.is_cpu, from_host=other.is_cpu)
        super().copy(target, source)

    def launch(self, work: Callable[[], None]) -> None:
        """Run ``work``: its operations are queued on the current stream."""
        self.counters.launches += 1
        work()

    def capture(
        self, work: Callable[[], None], generators: Sequence[torch.Generator], key: int = 0
    ) -> Callable[[], None]:
        """Capture the work as a CUDA graph: :class:`rlplay.engine.memory.cuda_graphs.GraphCapture`."""
        return self._count_at_replay(lambda: self._graphs.capture(work, generators, key))

    @property
    def current(self) -> Any:
        """The current stream of each device."""
        return list(self._current.values())

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Copy tensors on the host into page-locked memory. A tensor on a device changes in the order of its stream."""
        return [x if x.is_cuda else torch.empty_like(x, pin_memory=True).copy_(x) for x in sources]

    def borrow(self, tree: Nested) -> None:
        """Register the current stream with the caching allocator as a user of this memory."""
        for leaf in leaves(tree):
            if leaf.device.type == "cuda":
                leaf.record_stream(torch.cuda.current_stream(leaf.device))

    def record(self, spent: Any = None) -> Any:
        """Mark this point of the current stream, on each device. To make new events takes 5 us."""
        spins, event = self._spins, spent
        if event is None or event.spins != spins:
            event = _Event([(device, torch.cuda.Event(blocking=not spins)) for device in self._streams], spins)
        streams = self._current
        for device, point in event.points:
            point.record(streams[device])
        return event

    def wait(self, event: Any) -> None:
        """Let the current stream of each device wait for an event. The host does not wait."""
        streams = self._current
        for device, point in event.points:
            streams[device].wait_event(point)

    def host_wait(self, event: Any) -> None:
        """Let the host wait until an event is reached; see ``spin``. Other threads may run meanwhile.

        CUDA waits, not a loop in Python: a loop would take the interpreter lock at each look, and the learner, which
        releases it at each operation, would get it back later.
        """
        if event is None:
            return
        self.counters.host_waits += 1
        began = perf_counter()
        for _, point in event.points:
            point.synchronize()
        self._spins = perf_counter() - began < self._spin

    def reached(self, event: Any) -> bool:
        """Return whether an event has been reached, without a wait. Raises what work on the device has raised."""
        return event is None or all(point.query() for _, point in event.points)

    def synchronize_collector(self) -> None:
        """Let the host wait until the collector's streams and those of the turns are idle."""
        for stream in [*self._turn_streams.values(), *self._streams.values()]:
            stream.synchronize()

    def stamp(self, side: Place) -> Any:
        """Return an event with a time, of the collector's stream or of the consumer's current one."""
        device, stream = list(self._streams.items())[-1]
        if side is Place.CONSUMER:
            if self.device.type != "cuda":
                return None
            device = self.device
            stream = torch.cuda.current_stream(device)
        with torch.cuda.device(device):
            return stream.record_event(torch.cuda.Event(enable_timing=True))

    def seconds(self, one: Any, other: Any) -> float | None:
        """Return the seconds between two stamps, or None if either is not reached yet."""
        return one.elapsed_time(other) / 1e3 if one.query() and other.query() else None

    def use_turn(self, turn: int | None) -> None:
        """Make the stream of one turn the current one on the actor's device, or the collector's own stream again."""
        if turn is None:
            stream = self._streams[self.actor_device]
        elif turn in self._turn_streams:
            stream = self._turn_streams[turn]
        else:
            stream = self._turn_streams[turn] = torch.cuda.Stream(self.actor_device, priority=_PRIORITY)
        torch.cuda.set_stream(stream)
        self._thread.streams[self.actor_device] = stream

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's streams the current ones of this thread. A thread inherits neither stream nor device."""
        with ExitStack() as stack:
            for stream in self._streams.values():
                stack.enter_context(torch.cuda.stream(stream))
            before, self._thread.streams = getattr(self._thread, "streams", None), dict(self._streams)
            try:
                yield
            finally:
                self._thread.streams = before


def parse_device(device: torch.device | str | int, name: str, *, elsewhere: bool = False) -> torch.device:
    """Parse a device, and check that this machine has it. ``name`` is the parameter's, for messages.

    A device that may be ``elsewhere`` is returned as it is named: the machine that uses it parses it again.

    Raises
    ------
    ValueError
        If the device is neither the CPU nor a CUDA device of this machine.
    """
    try:
        parsed = torch.device(device)
    except (RuntimeError, TypeError, ValueError) as error:
        raise ValueError(f"`{name}` must be a torch device such as 'cpu' or 'cuda:0', got {device!r}.") from error
    if parsed.type == "cpu":
        return torch.device("cpu")
    if parsed.type != "cuda":
        raise ValueError(f"`{name}` must be the CPU or a CUDA device, got {parsed}: other kinds are not supported.")
    if elsewhere:
        return parsed
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    index = parsed.index if parsed.index is not None else torch.cuda.current_device() if count else 0
    if index >= count:
        raise ValueError(f"`{name}` is {parsed}, but this machine has {count} CUDA devices: pass {name}='cpu'?")
    return torch.device("cuda", index)


def lane_between(
    device: torch.device | str | Lane | None, actor_device: torch.device | str | None, home: torch.device
) -> Lane:
    """Make the lane between the behaviour copy and the consumer.

    Parameters
    ----------
    device : torch.device, str, Lane or None
        Where fragments are delivered; by default ``home``. A lane is returned as it is.
    actor_device : torch.device, str or None
        Where the behaviour copy is; by default ``device``.
    home : torch.device
        Where the user's actor is.

    Raises
    ------
    ValueError
        If this machine does not have a device, or its kind is not supported.
    """
    if isinstance(device, Lane):
        if actor_device is not None:
            raise ValueError("`device` is a lane, which has an actor's device of its own: leave `actor_device` out.")
        return device
    where = parse_device(home if device is None else device, "device")
    actor = where if actor_device is None else parse_device(actor_device, "actor_device")
    if "cuda" in (where.type, actor.type):
        return CudaLane(where, actor)
    return Lane(where, actor)
