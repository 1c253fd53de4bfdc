"""Moving data between the host, the actor's device and the consumer's: the only file that names streams and events.

The engine is written in the verbs of a :class:`Lane`, and never asks what kind of lane it is. The plain lane is the
host, where every call has happened by the time it returns. :class:`CudaLane` has the same verbs as promises, kept in
the order of a stream: the collector's own, inside :meth:`Lane.collecting`, or whichever is the consumer's current one.

Six edges guard the memory (CONTRIBUTING.md names where each is drawn):

filled -> copy
    a host row is filled in before its copy is asked for;
copied -> refill
    a host slot is not filled in again before the last copy out of it has happened;
copied -> read
    the consumer's stream waits for the copies into a fragment before anything reads it;
read -> reuse
    memory of the collector's that the consumer's stream copies from (the staged rows of ``final``) is used again only
    behind that copy;
asked -> first write
    the collector's stream waits for the snapshot's copy, and for whatever was still reading the memory that the
    fragment is now given, before it touches either;
dropped -> released
    what never reaches the consumer is let go only after the host has waited for the collector's stream.
"""

from __future__ import annotations

import gc
import weakref
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ...nested import Nested, leaves
from .lane import Lane, Place

__all__ = ["CudaLane", "lane_between", "parse_device"]


class CudaLane(Lane):
    """The verbs for CUDA, with a stream of the collector's own on each device that it touches."""

    asynchronous = True

    def __init__(self, device: torch.device, actor_device: torch.device) -> None:
        """Create the streams: once a feed, not once a fragment."""
        super().__init__(device, actor_device)
        self._where = {Place.HOST: torch.device("cpu"), Place.ACTOR: actor_device, Place.CONSUMER: device}
        # the actor's device comes last, so that it is the current one inside `collecting`
        used = [d for d in dict.fromkeys((device, actor_device)) if d.type == "cuda"]
        self._streams = {d: torch.cuda.Stream(d) for d in used}
        self._drafts: torch.cuda.Stream | None = None  # where graphs are captured

    def shared(self, one: Place, other: Place) -> bool:
        """Whether two places are one, so that nothing need be copied between them."""
        return self._where[one] == self._where[other]

    def empty(self, place: Place, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate memory, on the current stream; on the host it is page-locked."""
        where = self._where[place]
        return torch.empty(tuple(shape), dtype=dtype, device=where, pin_memory=where.type == "cpu")

    def lock(self, memory: npt.NDArray[Any]) -> Tensor:
        """Page-lock host memory that somebody else has allocated, until it is let go; make a tensor over it."""
        runtime, address = torch.cuda.cudart(), memory.ctypes.data
        torch.cuda.check_error(runtime.cudaHostRegister(address, memory.nbytes, 0))
        weakref.finalize(memory, runtime.cudaHostUnregister, address)
        return torch.from_numpy(memory)

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Capture the work as a CUDA graph.

        It is captured in a stream beside, which alone is spoilt if that fails. Nothing has run there, so that cuBLAS
        has its workspace for the graph allocated with it, and nobody who clears workspaces can take it away.

        While this lasts, torch up to 2.12 lets no other thread draw from the device's global generator.
        """
        here = torch.cuda.current_stream(self.actor_device)
        if self._drafts is None:
            self._drafts, self._pool = torch.cuda.Stream(self.actor_device), torch.cuda.graph_pool_handle()
        self._drafts.wait_stream(here)
        with torch.cuda.stream(self._drafts), _nothing_collected():
            graph = _registered(generators)
            try:
                graph.capture_begin(pool=self._pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, generators)
                raise
        here.wait_stream(self._drafts)
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph, generators: Sequence[torch.Generator]) -> None:
        """End a capture that has failed, and put in order what torch leaves as it is then."""
        with suppress(Exception):
            graph.capture_end()  # raises if the capture was spoilt, or had ended, yet it has ended then
        core: Any = torch._C
        end = getattr(core, "_cuda_endAllocateToPool", None) or core._cuda_endAllocateCurrentStreamToPool
        with suppress(Exception):  # else the allocator would put off for ever what waits for the end of all captures
            end(self.actor_device.index, self._pool)
            core._cuda_releasePool(self.actor_device.index, self._pool)
        graph.reset()
        self._pool = torch.cuda.graph_pool_handle()
        with suppress(Exception):  # up to 2.12 generators wait for the end of a capture that succeeds
            trivial = _registered(generators)
            trivial.capture_begin(pool=self._pool, capture_error_mode="thread_local")
            torch.zeros(1, device=self.actor_device)
            trivial.capture_end()

    @property
    def current(self) -> Any:
        """The current stream of each device."""
        return [torch.cuda.current_stream(d) for d in self._streams]

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Copy what is on the host into page-locked memory; what is on a device changes in the order of its stream."""
        return [x if x.is_cuda else torch.empty_like(x, pin_memory=True).copy_(x) for x in sources]

    def borrow(self, tree: Nested) -> None:
        """Tell the caching allocator that the current stream reads memory of another one."""
        for leaf in leaves(tree):
            if leaf.device.type == "cuda":
                leaf.record_stream(torch.cuda.current_stream(leaf.device))

    def record(self) -> Any:
        """Mark this point of the current stream, on each device."""
        return [(d, torch.cuda.current_stream(d).record_event(_blocking_event())) for d in self._streams]

    def wait(self, event: Any) -> None:
        """Let the current stream of each device wait, and the host go on."""
        for device, point in event:
            torch.cuda.current_stream(device).wait_event(point)

    def host_wait(self, event: Any) -> None:
        """Let the host sleep until the point is reached. The interpreter lock is released meanwhile."""
        for _, point in event or ():
            point.synchronize()

    def stamp(self, side: Place) -> Any:
        """Mark this point of the collector's stream on the actor's device, or of the current one on the consumer's."""
        device, stream = list(self._streams.items())[-1]
        if side is Place.CONSUMER:
            if self.device.type != "cuda":
                return None
            device = self.device
            stream = torch.cuda.current_stream(device)
        with torch.cuda.device(device):
            return stream.record_event(torch.cuda.Event(enable_timing=True))

    def seconds(self, one: Any, other: Any) -> float | None:
        """Tell the time from one stamp to another, if both have been reached."""
        return one.elapsed_time(other) / 1e3 if one.query() and other.query() else None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's streams the current ones of this thread; neither stream nor device is inherited."""
        with ExitStack() as stack:
            for stream in self._streams.values():
                stack.enter_context(torch.cuda.stream(stream))
            yield


def _registered(generators: Sequence[torch.Generator]) -> torch.cuda.CUDAGraph:
    """Make a graph that will count what it has drawn."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        graph.register_generator_state(generator)
    return graph


@contextmanager
def _nothing_collected() -> Iterator[None]:
    """Put the garbage collector off: what it takes away may well be such that a capture does not stand it."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _blocking_event() -> torch.cuda.Event:
    """Make an event whose waiting thread sleeps, where the default would spin on a core."""
    return torch.cuda.Event(blocking=True)


def parse_device(device: torch.device | str | int, name: str) -> torch.device:
    """Read a device, and see that it is there.

    Raises
    ------
    ValueError
        If it is neither the CPU nor a CUDA device that this machine has.
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
    """Make the lane between the behaviour copy and the consumer; ``home`` is where the user's actor is.

    Raises
    ------
    ValueError
        If a device is not there, or not supported.
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
