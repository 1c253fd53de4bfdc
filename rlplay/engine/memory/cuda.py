"""The lane for CUDA devices. No other module of the engine names ``torch.cuda``.

:class:`CudaLane` keeps the promises of :class:`~rlplay.engine.memory.lane.Lane` with CUDA streams: one that belongs to
the collector, one for each turn where turns may run side by side, and whichever stream is current in the consumer's
thread.

:mod:`rlplay.engine.memory.lane` lists the edges that protect memory.
"""

from __future__ import annotations

import gc
import os
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from math import prod
from time import perf_counter, sleep
from typing import Any, NamedTuple

import numpy.typing as npt
import torch
from torch import Tensor

from ...nested import Nested, leaves
from .lane import Lane, Place

__all__ = ["SPIN", "CudaLane", "lane_between", "parse_device"]

SPIN = 100e-6
"""Seconds. Not measured yet: the first run on a GPU has only shown that a wait that spins is faster."""


class _Capturing(NamedTuple):
    """What captures with the same key use, one after another. Graphs that may run side by side share no memory."""

    stream: torch.cuda.Stream
    pool: Any
    """The handle of the memory pool that these graphs share."""


class CudaLane(Lane):
    """The lane for CUDA. The collector has a stream of its own on each CUDA device that is used."""

    asynchronous = True

    def __init__(self, device: torch.device, actor_device: torch.device, *, spin: float | None = None) -> None:
        """Create the collector's streams. A feed makes one lane.

        Parameters
        ----------
        spin : float, optional
            Seconds for which the host looks again and again whether an event has been reached, before it sleeps. To
            sleep and to wake up again takes some 50 us, which is more than a small step of an actor. By default
            :data:`SPIN` on a machine with at least eight cores, else 0: there the learner needs the core.
        """
        super().__init__(device, actor_device)
        self._spin = spin if spin is not None else SPIN * ((os.cpu_count() or 1) >= 8)
        self._where = {Place.HOST: torch.device("cpu"), Place.ACTOR: actor_device, Place.CONSUMER: device}
        # the actor's device comes last, so that it is the current device inside `collecting`
        used = [d for d in dict.fromkeys((device, actor_device)) if d.type == "cuda"]
        # blocks of kernels that wait are started by priority: the collector's are few and short
        self._streams = {d: torch.cuda.Stream(d, priority=-1) for d in used}
        self._turn_streams: dict[int, torch.cuda.Stream] = {}
        for d in used:  # the actor may just have been made on the default stream: it is copied on the current one
            torch.cuda.current_stream(d).wait_stream(torch.cuda.default_stream(d))
        self._capturing: dict[int, _Capturing] = {}  # by the key of the captures; made when first used

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

    def copy(self, target: Nested, source: Nested) -> None:
        """Copy each leaf, on the current stream."""
        for one, other in zip(leaves(target), leaves(source), strict=True):
            self.counters.count_copy(one.nbytes, to_host=one.is_cpu, from_host=other.is_cpu)
        super().copy(target, source)

    def launch(self, work: Callable[[], None]) -> None:
        """Run ``work``: its operations are queued on the current stream."""
        self.counters.launches += 1
        work()

    def capture(
        self, work: Callable[[], None], generators: Sequence[torch.Generator], key: int = 0
    ) -> Callable[[], None]:
        """Capture the work as a CUDA graph.

        The capture runs in a stream of its own: a capture that fails invalidates its stream, and the collector's stream
        stays usable. Nothing else has run in that stream, so cuBLAS allocates its workspace in the pool of the graphs,
        where no other code can release it.

        Up to torch 2.12 no other thread can draw from the device's global generator during the capture.
        """
        here = torch.cuda.current_stream(self.actor_device)
        if key not in self._capturing:
            self._capturing[key] = _Capturing(torch.cuda.Stream(self.actor_device), torch.cuda.graph_pool_handle())
        stream, pool = self._capturing[key]
        stream.wait_stream(here)
        with torch.cuda.stream(stream), _garbage_collector_off():
            graph = _registered(generators)
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except BaseException:
                self._capturing[key] = _Capturing(stream, self._abandon(graph, pool, generators))
                raise
        here.wait_stream(stream)
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: Any, generators: Sequence[torch.Generator]) -> Any:
        """End a capture that has failed, undo the state that torch leaves behind, and return a new memory pool."""
        with suppress(Exception):
            graph.capture_end()  # raises if the capture was invalid or had ended; in both cases it has ended now
        core: Any = torch._C
        end = getattr(core, "_cuda_endAllocateToPool", None) or core._cuda_endAllocateCurrentStreamToPool
        with suppress(Exception):  # otherwise the allocator keeps waiting for the end of this capture
            end(self.actor_device.index, pool)
            core._cuda_releasePool(self.actor_device.index, pool)
        graph.reset()
        pool = torch.cuda.graph_pool_handle()
        # up to torch 2.12 the generators stay in the state of a capture until one succeeds: capture a trivial graph
        with suppress(Exception):
            trivial = _registered(generators)
            trivial.capture_begin(pool=pool, capture_error_mode="thread_local")
            torch.zeros(1, device=self.actor_device)
            trivial.capture_end()
        return pool

    @property
    def current(self) -> Any:
        """The current stream of each device."""
        return [torch.cuda.current_stream(d) for d in self._streams]

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Copy tensors on the host into page-locked memory. A tensor on a device changes in the order of its stream."""
        return [x if x.is_cuda else torch.empty_like(x, pin_memory=True).copy_(x) for x in sources]

    def borrow(self, tree: Nested) -> None:
        """Register the current stream with the caching allocator as a user of this memory."""
        for leaf in leaves(tree):
            if leaf.device.type == "cuda":
                leaf.record_stream(torch.cuda.current_stream(leaf.device))

    def record(self) -> Any:
        """Mark this point of the current stream, on each device."""
        return [(d, torch.cuda.current_stream(d).record_event(_blocking_event())) for d in self._streams]

    def wait(self, event: Any) -> None:
        """Let the current stream of each device wait for an event. The host does not wait."""
        for device, point in event:
            torch.cuda.current_stream(device).wait_event(point)

    def host_wait(self, event: Any) -> None:
        """Let the host wait until an event is reached; see ``spin``. Other threads may run meanwhile."""
        if event is None:
            return
        self.counters.host_waits += 1
        deadline = perf_counter() + self._spin
        for _, point in event:
            while not point.query():
                if perf_counter() >= deadline:
                    point.synchronize()  # sleeps, without the interpreter lock
                    break
                sleep(0)  # releases the interpreter lock

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
            torch.cuda.set_stream(self._streams[self.actor_device])
            return
        if turn not in self._turn_streams:
            self._turn_streams[turn] = torch.cuda.Stream(self.actor_device, priority=-1)
        torch.cuda.set_stream(self._turn_streams[turn])

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's streams the current ones of this thread. A thread inherits neither stream nor device."""
        with ExitStack() as stack:
            for stream in self._streams.values():
                stack.enter_context(torch.cuda.stream(stream))
            yield


def _registered(generators: Sequence[torch.Generator]) -> torch.cuda.CUDAGraph:
    """Make a graph that advances these generators at each replay."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    return graph


@contextmanager
def _garbage_collector_off() -> Iterator[None]:
    """Turn the garbage collector off: an object that it finalizes may call CUDA, which can invalidate a capture."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _blocking_event() -> torch.cuda.Event:
    """Make an event for which a waiting thread sleeps. With the default event it would spin."""
    return torch.cuda.Event(blocking=True)


def parse_device(device: torch.device | str | int, name: str) -> torch.device:
    """Parse a device, and check that this machine has it. ``name`` is the parameter's, for messages.

    Raises
    ------
    ValueError
        If the device is neither the CPU nor a CUDA device of this machine.
    """
    try:
        parsed = torch.device(device)
    except RuntimeError as error:
        raise ValueError(f"`{name}` must be a torch device such as 'cpu' or 'cuda:0', got {device!r}.") from error
    if parsed.type == "cpu":
        return torch.device("cpu")
    if parsed.type != "cuda":
        raise ValueError(f"`{name}` must be the CPU or a CUDA device, got {parsed}: other kinds are not supported.")
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
