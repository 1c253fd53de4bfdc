"""What everybody did when: noted while it is asked for, and written in the Trace Event Format.

Knows clocks, and the two verbs by which a lane tells the time on its streams. Not who works on what.
"""

from __future__ import annotations

import json
import os
import threading
import warnings
from collections import deque
from collections.abc import Sequence
from pathlib import Path
from time import perf_counter
from types import TracebackType
from typing import Any

from ..concurrency.clock import INFERENCE, KINDS, TRAINING, TRANSFER, Clock, Log, Span
from ..concurrency.progress import Progress
from ..memory.lane import Lane, Place

__all__ = ["Trace"]


class Trace:
    """A recording of what learner, collector and workers do, each on a row of its own. Made by ``feed.trace()``.

    It begins at once, and ends with its ``with`` block, by :meth:`close`, or with the feed; then it is written. The
    file can be opened in https://ui.perfetto.dev or ``chrome://tracing``, and drawn by
    :func:`rlplay.plotting.timeline`.
    """

    def __init__(self, path: str | os.PathLike[str] | None, learner: Clock, progress: Progress, lane: Lane) -> None:
        """Begin.

        Raises
        ------
        OSError
            The file cannot be written.
        """
        self._path = None if path is None else Path(path)
        if self._path is not None:
            self._path.open("ab").close()
        self.events: list[dict[str, Any]] = []
        """What has been recorded, in the Trace Event Format: once it has ended."""
        self._learner, self._progress = learner, progress
        self._lock = threading.Lock()
        self._lost, self._running = 0, True
        self._clocks = {"learner": learner, "collector": progress, **dict(progress.parts)}
        self._rows: dict[str, list[Any]] = {name: [] for name in self._clocks}
        self._streams = []
        self._began = perf_counter()
        for name, clock in self._clocks.items():
            log: Log = self._rows[name]
            if name in _SIDES and lane.stamp(_SIDES[name][0]) is not None:
                log = _StreamLog(log, lane, *_SIDES[name])
                self._streams.append((f"{name}'s stream", log))
            clock.log_to(log)
        progress.call_after_fragment(self._gather)

    def _gather(self) -> None:
        """Fetch what was noted in other processes, and the times of marks that have been reached: after a fragment."""
        with self._lock:
            if self._running:
                self._lost += sum(clock.drain() for clock in self._clocks.values())
                for _, log in self._streams:
                    log.resolve()

    def close(self) -> None:
        """End with the delivery of the last fragment, and write the file. May be called often."""
        self._end(self._learner.current[1])

    def __enter__(self) -> Trace:
        """Return the trace."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """End now, and write the file."""
        self._end(perf_counter())

    def _end(self, now: float) -> None:
        self._gather()
        with self._lock:
            if not self._running:
                return
            self._running = False
            self._progress.call_after_fragment(None)
            for clock in self._clocks.values():
                clock.log_to(None)
        for name in ("learner", "collector"):
            self._rows[name].append((*self._clocks[name].current, now))  # what is under way
        rows = self._rows | {name: log.seen for name, log in self._streams}
        self.events = _events(rows, self._began, now)
        if self._path is not None:
            _write(self._path, self.events)
        if self._lost:
            warnings.warn(
                f"the trace lacks {self._lost} spans of workers or collector processes, whose fragments have more "
                "steps than can be noted: trace a feed with a smaller `n_steps`.",
                RuntimeWarning,
                stacklevel=3,
            )


class _StreamLog:
    """Notes spans, and marks each turn on a stream, so that it can be told afterwards when the stream came there.

    Of a stream's marks only the seconds between them are known. To lay them beside the host's clock, there is but this:
    no mark is reached before it is made. So they are put as early as that lets them be; which is exact if, once, the
    stream had nothing to do when a mark was made.
    """

    def __init__(self, log: Log, lane: Lane, side: Place, kinds: Sequence[int]) -> None:
        self._log, self._lane, self._side, self._kinds = log, lane, side, kinds
        self._before = self._first = lane.stamp(side)
        self._pending: deque[tuple[Span, Any, Any]] = deque()
        self._seen: list[tuple[int, float, float]] = []
        self._zero = float("-inf")
        """The host's time at the first mark."""

    def append(self, span: tuple[int, float, float], /) -> None:
        """Note a span that has just ended, and mark its end on the stream."""
        self._log.append(span)
        mark = self._lane.stamp(self._side)
        if span[0] in self._kinds:
            self._pending.append((Span(*span), self._before, mark))
        self._before = mark

    def resolve(self) -> None:
        """Find out when marks were reached, as far as they have been: nobody is waited for."""
        while self._pending:
            span, before, mark = self._pending[0]
            end = self._lane.seconds(self._first, mark)
            start = self._lane.seconds(self._first, before)
            if start is None or end is None:
                return
            self._zero = max(self._zero, span.start - start, span.end - end)
            self._seen.append((span.kind, start, end))
            self._pending.popleft()

    @property
    def seen(self) -> list[tuple[int, float, float]]:
        """What the stream did, by the host's clock."""
        return [(kind, self._zero + start, self._zero + end) for kind, start, end in self._seen]


_SIDES = {"learner": (Place.CONSUMER, (TRAINING,)), "collector": (Place.ACTOR, (INFERENCE, TRANSFER))}


def _events(rows: dict[str, Any], began: float, now: float) -> list[dict[str, Any]]:
    """Put spans into the Trace Event Format, cut at the beginning and the end; microseconds."""
    pid = os.getpid()
    events: list[dict[str, Any]] = [_meta("process_name", pid, 0, {"name": "rlplay"})]
    for tid, (name, spans) in enumerate(rows.items(), 1):
        events.append(_meta("thread_name", pid, tid, {"name": name}))
        events.append(_meta("thread_sort_index", pid, tid, {"sort_index": tid}))
        for kind, start, end in spans:
            start, end = max(start, began), min(end, now)
            if kind >= 0 and start < end:
                ts, until = round((start - began) * 1e6, 3), round((end - began) * 1e6, 3)
                event = {"name": KINDS[kind], "cat": name.split()[0], "ph": "X", "ts": ts, "dur": round(until - ts, 3)}
                events.append({**event, "pid": pid, "tid": tid})
    return events


def _meta(name: str, pid: int, tid: int, args: dict[str, Any]) -> dict[str, Any]:
    return {"name": name, "ph": "M", "ts": 0, "pid": pid, "tid": tid, "args": args}


def _write(path: Path, events: Sequence[dict[str, Any]]) -> None:
    lines = ",\n".join(json.dumps(event) for event in events)
    path.write_text(f'{{"displayTimeUnit": "ms", "traceEvents": [\n{lines}\n]}}\n', encoding="utf-8")
