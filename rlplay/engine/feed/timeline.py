"""Records what learner, collector and workers do, and when, and writes it in the Trace Event Format.

Uses clocks, and the two methods of a lane that measure time on its streams (``stamp`` and ``seconds``).
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from contextlib import AbstractContextManager
from itertools import pairwise
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from ..concurrency.clock import COLLECTING, INFERENCE, KINDS, TRAINING, TRANSFER, WAITING, Clock, Log, Span
from ..concurrency.progress import Progress, SharedProgress
from ..memory.counters import Counters
from ..memory.lane import Lane, Place

__all__ = ["Recorder", "Trace"]


class Trace:
    """A recording of what learner, collector and workers do, one track for each. Returned by ``feed.trace()``.

    Recording begins at once, and ends at the end of a ``with`` block, at :meth:`close`, or with the feed. Then the
    file is written. https://ui.perfetto.dev and ``chrome://tracing`` open it, and :func:`rlplay.plotting.timeline`
    draws it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str] | None,
        learner: Clock,
        progress: Progress,
        lane: Lane,
        first: int,
        lag: int | None,
        lock: AbstractContextManager[Any],
    ) -> None:
        """Begin to record. To be called with the lock.

        Parameters
        ----------
        path : path, optional
            The file to write; None for no file.
        learner : Clock
            The learner's clock.
        progress : Progress
            The collector's clock, which refers to those of its workers or processes.
        lane : Lane
            Its streams, if it has any, get tracks of their own.
        first : int
            The number of the fragment that will be asked for next.
        lag : int, optional
            The feed's lag. None: the snapshots that collect a fragment do not follow from its number.
        lock : context manager
            A reentrant lock of the feed's, with which a trace begins, fetches spans and ends: the clocks of a feed
            write into one trace at a time. (Reentrant since the feed may be garbage-collected in a thread that has it.)

        Raises
        ------
        OSError
            The file cannot be written.
        """
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._path.open("ab").close()
        self.events: list[dict[str, Any]] = []
        """The recorded events in the Trace Event Format; empty until the recording has ended."""
        self._learner, self._progress = learner, progress
        self._first, self._lag = first, lag
        self._lock = lock
        self._n_lost, self._running = 0, True
        self._clocks = {"learner": learner, "collector": progress, **dict(progress.parts)}
        self._rows: dict[str, list[Any]] = {name: [] for name in self._clocks}
        self._stream_logs: list[tuple[str, _StreamLog]] = []
        self._start = perf_counter()
        self._lane, self._counted = lane, [(self._start, lane.counters.copy())]
        for name, clock in self._clocks.items():
            log: Log = self._rows[name]
            if name in _STREAM_WORK:
                place, kinds = _STREAM_WORK[name]
                if lane.stamp(place) is not None:
                    log = _StreamLog(log, lane, place, kinds)
                    self._stream_logs.append((f"{name}'s stream", log))
            clock.log_to(log)
        progress.call_after_fragment(self._gather)

    def _gather(self) -> None:
        """Fetch the spans of other processes, and the times of stamps that were reached. Called after each fragment."""
        with self._lock:
            if self._running:
                self._n_lost += sum(clock.drain() for clock in self._clocks.values())
                for _, log in self._stream_logs:
                    log.resolve()
                self._counted.append((perf_counter(), self._lane.counters.copy()))

    def close(self) -> None:
        """End the recording at the delivery of the last fragment, and write the file. May be called repeatedly."""
        self._end(self._learner.current[1])

    def __enter__(self) -> Trace:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._end(perf_counter())

    def _end(self, end: float) -> None:
        """End the recording: drop what lies after ``end`` (by ``perf_counter``), and write the file.

        ``end`` is not in the future. All threads may be at work meanwhile: the span under way in each is read before
        its log is taken away, so all spans before that one are in the log.
        """
        with self._lock:
            if not self._running:
                return
            self._gather()
            self._running = False
            here = {name: clock for name, clock in self._clocks.items() if not isinstance(clock, SharedProgress)}
            current = {name: clock.current for name, clock in here.items()}
            self._progress.call_after_fragment(None)
            for clock in self._clocks.values():
                clock.log_to(None)
            rows = {name: list(spans) for name, spans in self._rows.items()}
            for name, (kind, start) in current.items():  # whatever has followed lies after `end`
                rows[name] = [span for span in rows[name] if span[1] < start] + [(kind, start, end)]
            rows |= {name: log.stream_spans for name, log in self._stream_logs}
        self.events = _events(rows, [name for name in self._clocks if name not in here], self._start, end)
        self._number_fragments()
        self.events += _counter_events(self._counted, self._start)
        if self._path is not None:
            _write(self._path, self.events)
        if self._n_lost:
            warnings.warn(
                f"the trace lacks {self._n_lost} spans of workers or collector processes, whose fragments have more "
                "steps than can be noted: trace a feed with a smaller `n_steps`.",
                RuntimeWarning,
                stacklevel=3,
            )

    def _number_fragments(self) -> None:
        """Note in the learner's events which fragment is waited for and trained on, and which snapshot collected it."""
        fragment = self._first - 1
        for event in self.events:
            if event["ph"] == "X" and event["cat"] == "learner":
                fragment += event["name"] == "waiting"
                if fragment >= 0:
                    event["args"] = {"fragment": fragment}
                    if self._lag is not None:
                        event["args"]["snapshot"] = max(0, fragment - self._lag)


class Recorder:
    """Begins the traces of a feed, one at a time, and ends the last one together with the feed.

    Its methods may be called in any thread. It does not refer to the feed, whose finalizer closes it.
    """

    def __init__(self, learner: Clock, progress: Progress, lane: Lane) -> None:
        """Take the clocks and the lane as :class:`Trace` does."""
        self._learner, self._progress, self._lane = learner, progress, lane
        self._lock = threading.RLock()
        self._last: Trace | None = None
        self._closed = False

    def begin(self, path: str | os.PathLike[str] | None, first: int, lag: int | None) -> Trace:
        """Begin a trace and return it; the parameters are those of :class:`Trace`.

        Raises
        ------
        RuntimeError
            The feed is closed, or is already being recorded.
        OSError
            The file cannot be written.
        """
        with self._lock:
            if self._closed:
                raise RuntimeError("the feed is closed.")
            if self._progress.traced:
                raise RuntimeError("the feed is being recorded already: end that trace first.")
            self._last = Trace(path, self._learner, self._progress, self._lane, first, lag, self._lock)
            return self._last

    def close(self) -> None:
        """End the last trace, if it has not ended; no other one begins. May be called repeatedly."""
        with self._lock:
            self._closed, last = True, self._last
        if last is not None:
            last.close()


class _StreamLog:
    """Passes a clock's spans on to another log, and finds when a stream did the work that was launched in each span.

    A stamp on the stream is made at each boundary between two spans. Only the seconds between two stamps can be
    measured, not a stamp's time by the host's clock. The offset between the two clocks is estimated from the fact that
    no stamp is reached before it is made: it is the smallest offset that satisfies this for all stamps. The estimate is
    exact if the stream was idle when one of the stamps was made.
    """

    def __init__(self, log: Log, lane: Lane, place: Place, kinds: Sequence[int]) -> None:
        """Make the first stamp. ``kinds`` are the kinds of spans in which work is launched on the stream."""
        self._log, self._lane, self._place, self._kinds = log, lane, place, kinds
        self._last_stamp = self._first_stamp = lane.stamp(place)
        self._unresolved: deque[tuple[Span, Any, Any]] = deque()
        """Spans, and the stamps at their beginning and end, of which not both are known to be reached."""
        self._resolved: list[tuple[int, float, float]] = []
        """Kind, start and end of spans; seconds after the first stamp."""
        self._offset = float("-inf")
        """The first stamp's time by the host's clock, as far as it can be estimated yet."""

    def append(self, span: tuple[int, float, float], /) -> None:
        """Add a span that has just ended, and stamp its end on the stream."""
        self._log.append(span)
        stamp = self._lane.stamp(self._place)
        if span[0] in self._kinds:
            self._unresolved.append((Span(*span), self._last_stamp, stamp))
        self._last_stamp = stamp

    def resolve(self) -> None:
        """Measure the times of the stamps that the stream has reached, without waiting for others."""
        while self._unresolved:
            span, start_stamp, end_stamp = self._unresolved[0]
            end = self._lane.seconds(self._first_stamp, end_stamp)
            start = self._lane.seconds(self._first_stamp, start_stamp)
            if start is None or end is None:
                return
            self._offset = max(self._offset, span.start - start, span.end - end)
            self._resolved.append((span.kind, start, end))
            self._unresolved.popleft()

    @property
    def stream_spans(self) -> list[tuple[int, float, float]]:
        """Kind, start and end of the stream's work, by the host's clock (``perf_counter``), in seconds."""
        return [(kind, self._offset + start, self._offset + end) for kind, start, end in self._resolved]


_STREAM_WORK = {"learner": (Place.CONSUMER, (TRAINING,)), "collector": (Place.ACTOR, (INFERENCE, TRANSFER))}
"""For each of the two clocks: the place whose stream the work goes to, and the kinds of spans that launch it."""


def _events(rows: dict[str, Any], processes: Sequence[str], first: float, last: float) -> list[dict[str, Any]]:
    """Convert spans to the Trace Event Format, in microseconds after ``first``, cut at ``first`` and ``last``.

    ``rows`` has for each name spans of kind, start and end, in seconds. ``processes`` names the rows that are processes
    of their own: each gets a ``pid`` of its own, which is not the operating system's. A collector that waits for its
    processes is waiting.
    """
    pid = os.getpid()
    pids = {name: pid + k for k, name in enumerate(processes, 1)}
    events: list[dict[str, Any]] = [_metadata("process_name", pid, 0, {"name": "rlplay"})]
    events += [_metadata("process_name", own, 0, {"name": name}) for name, own in pids.items()]
    for tid, (name, spans) in enumerate(rows.items(), 1):
        own = pids.get(name, pid)
        events.append(_metadata("thread_name", own, tid, {"name": name}))
        events.append(_metadata("thread_sort_index", own, tid, {"sort_index": tid}))
        for kind, start, end in spans:
            start, end = max(start, first), min(end, last)
            if kind >= 0 and start < end:
                ts, te = round((start - first) * 1e6, 3), round((end - first) * 1e6, 3)
                doing = KINDS[WAITING if kind == COLLECTING else kind]
                event = {"name": doing, "cat": name.split()[0], "ph": "X", "ts": ts, "dur": round(te - ts, 3)}
                events.append({**event, "pid": own, "tid": tid})
    return events


def _counter_events(counted: Sequence[tuple[float, Counters]], first: float) -> list[dict[str, Any]]:
    """Convert what a device was asked for to events, one for each fragment: per step of a group, bytes apart."""
    events = []
    for (_, before), (time, now) in pairwise(counted):
        costs = now.since(before)
        for name, of_bytes in (("a step on the device", False), ("bytes of a step", True)) if costs.steps else ():
            args = {key: each for key, each in costs.per_step().items() if key.startswith("bytes") == of_bytes}
            event = {"name": name, "ph": "C", "ts": round((time - first) * 1e6, 3), "pid": os.getpid(), "args": args}
            events.append(event)
    return events


def _metadata(name: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": args}


def _write(path: Path, events: Sequence[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(event) for event in events)
    path.write_text(f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n', encoding="utf-8")
