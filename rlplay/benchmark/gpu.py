"""What a GPU is asked: how long it has nothing to do, and how fast it is fed.

Not by events, of which every engine would have to have some at both ends of all that it launches, but from a trace of
the device's own (``torch.profiler``), taken in one window more that is not timed: tracing makes the host slower, but
hardly the kernels. The share of idle time is::

    idle = 1 - (time in which anything ran, per fragment, in the trace) / (median time per fragment, untraced)

Kernels that ran side by side, or in one another's wake, count once. What other processes have the device do does not
appear in the trace, so that there is no such figure for the engines that act in processes of their own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from contextlib import AbstractContextManager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from time import perf_counter
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch.profiler import ProfilerActivity, profile

from ..engine.memory.lane import Lane, Place

__all__ = ["Activity", "Watch", "activity_in", "copy_ceiling", "covered"]

_BLOCK = 256 * 2**20
_TRIALS = 10


class Activity(NamedTuple):
    """What the device has done in a window."""

    busy: float = 0.0
    """Seconds in which anything ran."""
    upload: float = 0.0
    """Seconds in which something was copied up from page-locked memory."""
    uploaded: int = 0
    """How many bytes that was."""


class Watch(AbstractContextManager["Watch"]):
    """Traces the device inside a ``with`` block.

    Attributes
    ----------
    activity : Activity
        What the device has done, once the block has been left.
    """

    def __init__(self) -> None:
        self.activity = Activity()
        self._profiler = profile(activities=[ProfilerActivity.CUDA])

    def __enter__(self) -> Watch:
        """Begin."""
        self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End, and read the trace."""
        self._profiler.__exit__(kind, error, traceback)
        with TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            self._profiler.export_chrome_trace(str(trace))
            self.activity = activity_in(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])


def activity_in(events: Iterable[dict[str, Any]]) -> Activity:
    """Read a trace in Chrome's format, where times are microseconds."""
    intervals, uploads, uploaded = [], [], 0
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        interval = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        intervals.append(interval)
        if event["name"].startswith("Memcpy HtoD (Pinned"):
            uploads.append(interval)
            uploaded += int(event["args"]["bytes"])
    return Activity(1e-6 * covered(intervals), 1e-6 * covered(uploads), uploaded)


def covered(intervals: Iterable[tuple[float, float]]) -> float:
    """Tell how much of the line is covered by intervals ``(start, end)``, which may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def copy_ceiling(lane: Lane) -> float:
    """Measure how many bytes a second come up from page-locked memory, 256 MiB at a time: the median of ten copies."""
    source = lane.empty(Place.HOST, (_BLOCK,), torch.uint8)
    target = lane.empty(Place.CONSUMER, (_BLOCK,), torch.uint8)
    seconds = []
    for _ in range(1 + _TRIALS):
        started = perf_counter()
        lane.copy(target, source)
        lane.host_wait(lane.record())
        seconds.append(perf_counter() - started)
    return _BLOCK / median(seconds[1:])
