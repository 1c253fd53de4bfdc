"""Timelines: what the learner, the collector and the workers did, from a feed's trace."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from .style import GREY

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["timeline"]

_ACTIVITY_COLOURS = {
    "training": "#4f9d57", "stepping": "#3f73b0", "inference": "#e9953b", "transfer": "#8a63a8",
    "waiting": "#ededed",
}  # fmt: skip
"""Colour of each activity in a timeline."""

_MOST_NUMBERS = 12
"""If more fragments are shown, their numbers are left out, since they would overlap."""

_N_COLUMNS = 500
"""Number of columns that a timeline is divided into."""


def timeline(trace: Any, *, fragments: int | None = 4, title: str = "", caption: str = "") -> Figure:
    """Draw what the learner, the collector and the workers did over time: whether they worked simultaneously.

    Each thread, process or stream has a track, filled with the colours of its activities. The height of a colour is the
    activity's share of the time of one column of the picture: a track filled to the top with work is busy all the time.
    Dotted lines mark where the learner received a fragment; above them is the fragment's number.

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
        The trace is empty: it has not ended yet, or no fragment was asked for while it was recorded.
    """
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D
    from matplotlib.patches import Patch

    tracks = _read_tracks(trace)
    requests = [span[1:] for span in tracks.get("learner", ()) if span[0] == "waiting"]
    if not requests:
        raise ValueError("the trace is empty: it must have ended, and a fragment must have been asked for meanwhile.")
    first = 0.0 if fragments is None else requests[-min(fragments, len(requests))][0]
    last = max(end for spans in tracks.values() for _, _, end, _ in spans)
    edges = np.linspace(first, last, 1 + _N_COLUMNS)
    shares = {name: _activity_shares(spans, edges) for name, spans in tracks.items()}
    busy = {name: 1 - share["waiting"] - share[""] for name, share in shares.items()}

    figure = Figure(figsize=(10, 1.9 + 0.55 * len(tracks)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, (name, share) in enumerate(shares.items()):
        _draw_track(axes, row, edges - first, share)
        axes.text(1.01, row, f"{busy[name].mean():.0%}".replace("%", " % busy"), transform=axes.get_yaxis_transform(),
                  va="center", fontsize="small", color=GREY)  # fmt: skip
    shown = [(end - first, fragment) for _, end, fragment in requests if end > first]
    for at, fragment in shown:
        axes.axvline(at, color="#333333", linewidth=0.8, linestyle=(0, (1, 2)))
        if fragment is not None and len(shown) <= _MOST_NUMBERS:
            axes.text(at, -0.52, f" {fragment}", fontsize="x-small", color=GREY, va="center", ha="left")
    axes.set_xlim(0, last - first)
    axes.set_ylim(len(tracks) - 0.45, -0.68)
    axes.set_yticks(range(len(tracks)), [name.replace(" (", "\n(") for name in tracks])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("milliseconds")
    processes = [share for name, share in busy.items() if name.startswith("collector process")]
    collecting = np.mean(processes, axis=0) if processes else busy["collector"]
    both_busy = float((busy["learner"] * collecting).mean())
    caption = caption or f"learner and collector are busy at once {both_busy:.0%} of the time".replace("%", " %")
    axes.set_title(caption, loc="left", fontsize="small", color=GREY)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    used = [activity for activity in _ACTIVITY_COLOURS if any(share[activity].any() for share in shares.values())]
    handles: list[Any] = [Patch(color=_ACTIVITY_COLOURS[activity]) for activity in used]
    if shown:
        handles.append(Line2D([], [], color="#333333", linewidth=0.8, linestyle=(0, (1, 2))))
        used.append("the learner receives a fragment")
    figure.legend(handles, used, loc="outside lower center", ncols=len(used), frameon=False, fontsize="small",
                  handlelength=1.2, columnspacing=1.4)  # fmt: skip
    return figure


def _read_tracks(trace: Any) -> dict[str, list[tuple[str, float, float, int | None]]]:
    """Return the spans of each track by name: activity, start and end in milliseconds, number of the fragment."""
    if isinstance(trace, str | os.PathLike):
        events = json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]
    else:
        events = trace.events
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    tracks: dict[str, list[tuple[str, float, float, int | None]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            start = event["ts"] / 1e3
            fragment = event.get("args", {}).get("fragment")
            tracks[names[event["tid"]]].append((event["name"], start, start + event["dur"] / 1e3, fragment))
    return tracks


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
