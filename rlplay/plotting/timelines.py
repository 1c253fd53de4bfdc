"""Timelines: what the learner, the collector and the workers did, from a feed's trace."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, TypeAlias

import numpy as np
from numpy.typing import NDArray

from .style import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["timeline", "timelines"]

_FOR_WORKERS = "waiting for workers"
_UNRECORDED = "not recorded"
_RECEIVES = "the learner receives a fragment"

_ACTIVITY_COLOURS = {
    "training": "#4f9d57", "stepping": "#3f73b0", "inference": "#e9953b", "transfer": "#8a63a8",
    _FOR_WORKERS: "#b9cde6", "waiting": "#dcdcdc",
}  # fmt: skip
"""Colour of each activity in a timeline."""

_IDLE = ("waiting", _FOR_WORKERS, "")
"""The activities that are not work. The empty string stands for time that was not recorded."""

_UNRECORDED_STYLE: dict[str, Any] = {"facecolor": "white", "edgecolor": "#bbbbbb", "hatch": "////", "linewidth": 0}
_DOTTED: dict[str, Any] = {"color": "#333333", "linewidth": 0.8, "linestyle": (0, (1, 2))}

_MOST_NUMBERS = 12
"""If more fragments are shown, their numbers are left out, since they would overlap."""

_N_COLUMNS = 500
"""Number of columns that a timeline is divided into."""

_Span: TypeAlias = tuple[str, float, float, "int | None"]
"""Activity, start and end in milliseconds, number of the fragment."""


def timeline(trace: Any, *, fragments: int | None = 4, title: str = "", caption: str = "") -> Figure:
    """Draw what the learner, the collector and the workers did over time: whether they worked simultaneously.

    Each thread, process or stream has a track, filled with the colours of its activities. The height of a colour is the
    activity's share of the time of one column of the picture: a track filled to the top with work is busy all the time.
    Dotted lines mark where the learner received a fragment; above them is the fragment's number. Time that nothing is
    known about is hatched: what a worker or a collector process does after the last fragment is not recorded.

    Parameters
    ----------
    trace : path, or the object that ``feed.trace()`` returned
        A trace that has ended.
    fragments : int, optional
        Number of fragments to show, at least 1: the last ones of the trace. None: the whole trace.
    title, caption : str
        The title and, in small print, the line below. The default caption gives the share of the time in which learner
        and collector (of collector processes, those that were busy) were both busy.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("timeline.png")`` writes it to a file. The figure needs no display.

    Raises
    ------
    ValueError
        The trace is empty: it has not ended yet, or no fragment was asked for while it was recorded. Or the file is no
        trace.
    """
    from matplotlib.figure import Figure

    tracks = _Tracks.read(trace)
    first = 0.0 if fragments is None else tracks.asked[-min(fragments, len(tracks.asked))]
    figure = Figure(figsize=(10, 1.9 + 0.55 * len(tracks.spans)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    used, measured = _draw_tracks(axes, tracks, first, tracks.end)
    axes.set_xlabel("milliseconds")
    axes.set_title(caption or measured, loc="left", fontsize="small", color=GREY)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    _add_legend(figure, used)
    return figure


def timelines(traces: Mapping[str, Any], *, milliseconds: float, title: str = "") -> Figure:
    """Draw timelines of several traces below each other, for comparison: one scale of time, and one legend.

    Each panel is like a :func:`timeline`. It begins where the learner asks for a fragment, as late in the trace as
    ``milliseconds`` of records follow, and its small print gives the share of the time in which both sides were busy.

    Parameters
    ----------
    traces : mapping from str to a path or the object that ``feed.trace()`` returned
        The title of each panel, and its trace, which has ended.
    milliseconds : float
        The time that each panel shows.
    title : str
        The title of the whole picture.

    Returns
    -------
    matplotlib.figure.Figure
        The figure needs no display.

    Raises
    ------
    ValueError
        A trace is empty, or shorter than ``milliseconds``.
    """
    from matplotlib.figure import Figure

    panels = {name: _Tracks.read(trace) for name, trace in traces.items()}
    heights = [0.9 + 0.55 * len(tracks.spans) for tracks in panels.values()]
    figure = Figure(figsize=(10, 0.8 + 0.4 * bool(title) + sum(heights)), dpi=150, layout="constrained")
    plots = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=heights)[:, 0]
    used: set[str] = set()
    for axes, (name, tracks) in zip(plots, panels.items(), strict=True):
        first = tracks.last_window(milliseconds, name)
        shown, measured = _draw_tracks(axes, tracks, first, first + milliseconds)
        axes.set_title(name, loc="left", fontweight="bold")
        axes.set_title(measured, loc="right", fontsize="small", color=GREY)
        used |= shown
    plots[-1].set_xlabel("milliseconds")
    if title:
        figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    _add_legend(figure, used)
    return figure


class _Tracks(NamedTuple):
    """The spans of each track by name, when the learner asked for each fragment, and the end of the trace."""

    spans: dict[str, list[_Span]]
    asked: list[float]
    end: float

    @classmethod
    def read(cls, trace: Any) -> _Tracks:
        """Read a trace.

        While its workers step, a collector is shown as waiting for them. While a stream has no work, it is shown as
        waiting.
        """
        events = _read_events(Path(trace)) if isinstance(trace, str | os.PathLike) else trace.events
        names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
        spans: dict[str, list[_Span]] = {name: [] for name in names.values()}
        has_workers = any(name.startswith("worker") for name in spans)
        for event in events:
            if event["ph"] == "X":
                name, doing, start = names[event["tid"]], event["name"], event["ts"] / 1e3
                if has_workers and (name, doing) == ("collector", "stepping"):
                    doing = _FOR_WORKERS
                spans[name].append((doing, start, start + event["dur"] / 1e3, event.get("args", {}).get("fragment")))
        asked = [start for doing, start, *_ in spans.get("learner", ()) if doing == "waiting"]
        if not asked:
            raise ValueError(
                "the trace is empty: it must have ended, and a fragment must have been asked for meanwhile."
            )
        end = max(span[2] for track in spans.values() for span in track)
        for name, track in spans.items():
            if name.endswith("stream"):
                idle: list[_Span] = [("waiting", *gap, None) for gap in _gaps(track, 0.0, end)]
                track[:] = sorted([*track, *idle], key=lambda span: span[1])
        return cls(spans, asked, end)

    def last_window(self, milliseconds: float, name: str) -> float:
        """Return the last time at which the learner asked for a fragment and all tracks are recorded for so long."""
        complete = min(track[-1][2] for track in self.spans.values() if track)
        starts = [start for start in self.asked if start + milliseconds <= complete]
        if not starts:
            raise ValueError(
                f"no request of the learner in the trace {name!r} is followed by {milliseconds:g} ms that all tracks "
                "have recorded: record more fragments, or show fewer milliseconds."
            )
        return starts[-1]


def _read_events(path: Path) -> list[dict[str, Any]]:
    """Read the events of a trace from its file; raise ValueError if the file is none."""
    try:
        events: list[dict[str, Any]] = json.loads(path.read_text(encoding="utf-8"))["traceEvents"]
    except (ValueError, LookupError, TypeError) as error:
        raise ValueError(f"{str(path)!r} is no trace: pass a file that `feed.trace(path)` has written.") from error
    return events


def _draw_tracks(axes: Axes, tracks: _Tracks, first: float, last: float) -> tuple[set[str], str]:
    """Draw all tracks of a trace between two times; return what the legend has to explain, and a caption."""
    edges = np.linspace(first, last, 1 + _N_COLUMNS)
    shares = {name: _activity_shares(spans, edges) for name, spans in tracks.spans.items()}
    busy = {name: 1 - np.sum([share[idle] for idle in _IDLE], axis=0) for name, share in shares.items()}
    used = {doing for share in shares.values() for doing in _ACTIVITY_COLOURS if share[doing].any()}
    for row, (name, share) in enumerate(shares.items()):
        _draw_track(axes, row, edges - first, share)
        for start, end in _gaps(tracks.spans[name], first, last):
            axes.fill_between([start - first, end - first], row - 0.38, row + 0.38, **_UNRECORDED_STYLE)
            used.add(_UNRECORDED)
        axes.text(1.01, row, f"{busy[name].mean():.0%}".replace("%", " % busy"), transform=axes.get_yaxis_transform(),
                  va="center", fontsize="small", color=GREY)  # fmt: skip
    received = [(end - first, fragment) for doing, _, end, fragment in tracks.spans["learner"] if doing == "waiting"]
    shown = [(at, fragment) for at, fragment in received if 0 < at <= last - first]
    for at, fragment in shown:
        axes.axvline(at, **_DOTTED)
        used.add(_RECEIVES)
        if fragment is not None and len(shown) <= _MOST_NUMBERS:
            axes.text(at, -0.52, f" {fragment}", fontsize="x-small", color=GREY, va="center", ha="left", clip_on=True)
    axes.set_xlim(0, last - first)
    axes.set_ylim(len(shares) - 0.45, -0.68)
    axes.set_yticks(range(len(shares)), [name.replace(" (", "\n(") for name in shares])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)

    processes = [share for name, share in busy.items() if name.startswith("collector process")]
    collecting = np.mean(processes, axis=0) if processes else busy["collector"] + shares["collector"][_FOR_WORKERS]
    both_busy = float((busy["learner"] * collecting).mean())
    collector = "collector (or its workers)" if shares["collector"][_FOR_WORKERS].any() else "collector"
    return used, f"learner and {collector} are busy at once {both_busy:.0%} of the time".replace("%", " %")


def _add_legend(figure: Figure, used: set[str]) -> None:
    """Explain the colours and lines that are used, below the picture."""
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    handles: dict[str, Any] = {doing: Patch(color=colour) for doing, colour in _ACTIVITY_COLOURS.items()}
    handles |= {_UNRECORDED: Patch(**_UNRECORDED_STYLE), _RECEIVES: Line2D([], [], **_DOTTED)}
    handles = {name: handle for name, handle in handles.items() if name in used}
    figure.legend(handles.values(), handles.keys(), loc="outside lower center", ncols=len(handles), frameon=False,
                  fontsize="small", handlelength=1.2, columnspacing=1.2)  # fmt: skip


def _gaps(spans: Sequence[_Span], first: float, last: float) -> list[tuple[float, float]]:
    """Return the intervals between ``first`` and ``last`` that no span covers. Those due to rounding are left out."""
    ends = [first, *(min(max(end, first), last) for _, _, end, _ in spans)]
    starts = [*(min(max(start, first), last) for _, start, _, _ in spans), last]
    return [(end, start) for end, start in zip(ends, starts, strict=True) if start - end > 0.01]


def _activity_shares(spans: Sequence[tuple[Any, ...]], edges: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Return the share of each column's time that each activity takes; the rest has the key ``""``."""
    shares: dict[str, NDArray[np.float64]] = {}
    for activity in _ACTIVITY_COLOURS:
        times = np.array([span[1:3] for span in spans if span[0] == activity]).reshape(-1)
        spent = np.zeros_like(times)  # at every start and every end; only the time from a start to its end counts
        spent[1:] = np.cumsum(np.diff(times) * (np.arange(1, len(times)) % 2))
        spent_at_edges = np.interp(edges, times, spent) if len(times) else np.zeros_like(edges)
        shares[activity] = np.diff(spent_at_edges) / np.diff(edges)
    return {**shares, "": 1 - np.sum(list(shares.values()), axis=0)}


def _draw_track(axes: Axes, row: int, edges: NDArray[np.float64], shares: dict[str, NDArray[np.float64]]) -> None:
    """Fill a track from the bottom to the top, waiting last."""
    bottom = np.zeros(len(edges))
    for activity, colour in _ACTIVITY_COLOURS.items():
        top = bottom + np.append(shares[activity], shares[activity][-1])
        axes.fill_between(edges, row + 0.38 - 0.76 * bottom, row + 0.38 - 0.76 * top, step="post", color=colour,
                          linewidth=0)  # fmt: skip
        bottom = top
