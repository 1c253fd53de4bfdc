"""Figures of a GPU: the share of time in which it was idle, and the speed of copies from the host to the device.

The idle share is not measured by CUDA events, because every engine would need an event before and after everything that
it launches. The share is taken from a trace of the device (``torch.profiler``), recorded in one additional window that
is not timed: tracing slows down the host, but hardly the kernels. The share is::

    idle = 1 - (time in which anything ran, per fragment, in the trace) / (median time per fragment, without tracing)

Kernels that ran at the same time count once. The trace contains only the work of this process. Therefore the engines
that act in other processes have no such figure.
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

__all__ = ["DeviceActivity", "DeviceProfiler", "covered_length", "peak_upload_rate", "read_trace"]

_COPY_BYTES = 256 * 2**20
_N_COPIES = 10


class DeviceActivity(NamedTuple):
    """The activity of the device in one window."""

    busy_seconds: float = 0.0
    """Time in which any kernel, copy or memset ran."""
    upload_seconds: float = 0.0
    """Time in which page-locked host memory was copied to the device."""
    uploaded_bytes: int = 0
    """Number of bytes copied in ``upload_seconds``."""


class DeviceProfiler(AbstractContextManager["DeviceProfiler"]):
    """Records a trace of the device inside a ``with`` block.

    Attributes
    ----------
    activity : DeviceActivity
        Summary of the trace; all zeros until the ``with`` block has ended.
    """

    def __init__(self) -> None:
        self.activity = DeviceActivity()
        self._profiler = profile(activities=[ProfilerActivity.CUDA])

    def __enter__(self) -> DeviceProfiler:
        """Start recording."""
        self._profiler.__enter__()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Stop recording, and summarise the trace."""
        self._profiler.__exit__(kind, error, traceback)
        with TemporaryDirectory() as folder:
            trace = Path(folder, "trace.json")
            self._profiler.export_chrome_trace(str(trace))
            self.activity = read_trace(json.loads(trace.read_text(encoding="utf-8"))["traceEvents"])


def read_trace(events: Iterable[dict[str, Any]]) -> DeviceActivity:
    """Summarise the events of a trace in Chrome's format, whose times are in microseconds."""
    intervals, uploads, uploaded_bytes = [], [], 0
    for event in events:
        if event.get("cat") not in ("kernel", "gpu_memcpy", "gpu_memset"):
            continue
        interval = float(event["ts"]), float(event["ts"]) + float(event["dur"])
        intervals.append(interval)
        if event["name"].startswith("Memcpy HtoD (Pinned"):
            uploads.append(interval)
            uploaded_bytes += int(event["args"]["bytes"])
    return DeviceActivity(1e-6 * covered_length(intervals), 1e-6 * covered_length(uploads), uploaded_bytes)


def covered_length(intervals: Iterable[tuple[float, float]]) -> float:
    """Return the length of the union of intervals ``(start, end)``, which may overlap."""
    total, reached = 0.0, float("-inf")
    for start, end in sorted(intervals):
        total += max(0.0, end - max(start, reached))
        reached = max(reached, end)
    return total


def peak_upload_rate(lane: Lane) -> float:
    """Return the bytes per second of copies from page-locked memory: the median of ten copies of 256 MiB."""
    source = lane.empty(Place.HOST, (_COPY_BYTES,), torch.uint8)
    target = lane.empty(Place.CONSUMER, (_COPY_BYTES,), torch.uint8)
    seconds = []
    for _ in range(1 + _N_COPIES):
        started = perf_counter()
        lane.copy(target, source)
        lane.host_wait(lane.record())
        seconds.append(perf_counter() - started)
    return _COPY_BYTES / median(seconds[1:])
