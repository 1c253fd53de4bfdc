"""Captures work as CUDA graphs. Besides :mod:`.cuda`, no other module of the engine names ``torch.cuda``."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any, NamedTuple

import torch

from ...process_state import garbage_collector_off

__all__ = ["GraphCapture"]


class _Capturing(NamedTuple):
    """What captures with the same key use, one after another. Graphs that may run side by side share no memory."""

    stream: torch.cuda.Stream
    pool: Any
    """The handle of the memory pool that these graphs share."""


class GraphCapture:
    """Captures on one device, which share streams and memory by their keys."""

    def __init__(self, device: torch.device, priority: int) -> None:
        """Set the device, and the priority of the graphs.

        A graph has the priority of the stream that it was captured in, whichever stream it is launched in: torch
        instantiates graphs with ``cudaGraphInstantiateFlagUseNodePriority``.
        """
        self._device, self._priority = device, priority
        self._capturing: dict[int, _Capturing] = {}  # by the key; made when first used

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator], key: int) -> Callable[[], None]:
        """Capture the work; see :meth:`rlplay.engine.memory.lane.Lane.capture`.

        The capture runs in a stream of its own: a capture that fails invalidates its stream, and the current stream
        stays usable. Nothing else has run in that stream, so cuBLAS allocates its workspace in the pool of the graphs,
        where no other code can release it. The garbage collector is off: an object that it finalizes may call CUDA,
        which can invalidate a capture.

        Up to torch 2.12 no other thread can draw from the device's global generator during the capture.
        """
        here = torch.cuda.current_stream(self._device)
        if key not in self._capturing:
            own = torch.cuda.Stream(self._device, priority=self._priority)
            self._capturing[key] = _Capturing(own, torch.cuda.graph_pool_handle())
        stream, pool = self._capturing[key]
        stream.wait_stream(here)
        with torch.cuda.stream(stream), garbage_collector_off():
            graph = _registered(generators)
            try:
                graph.capture_begin(pool=pool, capture_error_mode="thread_local")
                work()
                graph.capture_end()
            except BaseException:
                self._abandon(graph, pool, generators)
                # A pool dies with its last graph, and the caller may drop earlier graphs of this attempt: so no later
                # capture uses a stream or a pool of earlier ones. cuBLAS keeps its workspace for a stream, in a pool.
                self._capturing.clear()
                raise
        here.wait_stream(stream)
        return graph.replay

    def _abandon(self, graph: torch.cuda.CUDAGraph, pool: Any, generators: Sequence[torch.Generator]) -> None:
        """End a capture that has failed, and undo the state that torch leaves behind."""
        with suppress(Exception):
            graph.capture_end()  # raises if the capture was invalid or had ended; in both cases it has ended now
        core: Any = torch._C
        end = getattr(core, "_cuda_endAllocateToPool", None) or core._cuda_endAllocateCurrentStreamToPool
        with suppress(Exception):  # otherwise the allocator keeps waiting for the end of this capture
            end(self._device.index, pool)
            core._cuda_releasePool(self._device.index, pool)
        graph.reset()
        # up to torch 2.12 the generators stay in the state of a capture until one succeeds: capture a trivial graph
        with suppress(Exception):
            trivial = _registered(generators)
            trivial.capture_begin(capture_error_mode="thread_local")  # in a pool of its own, which dies with it
            torch.zeros(1, device=self._device)
            trivial.capture_end()


def _registered(generators: Sequence[torch.Generator]) -> torch.cuda.CUDAGraph:
    """Make a graph that advances these generators at each replay."""
    graph = torch.cuda.CUDAGraph()
    for generator in generators:
        # torch takes no instance of a subclass: this is a plain generator with the same state
        graph.register_generator_state(generator.graphsafe_get_state())
    return graph
