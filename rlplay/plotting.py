"""Pictures of what has been learnt, of who did what meanwhile, and of how fast.

matplotlib is imported inside the functions, and no backend is ever touched.
"""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "learning_curve", "moving_mean", "multiples", "require", "timeline"]

_DOTS, _LINE, _GOAL, _FAINT = "#7fa3cf", "#1f4e8c", "#c8553d", "#666666"
_KINDS = {
    "training": "#4f9d57", "stepping": "#3f73b0", "inference": "#e9953b", "transfer": "#8a63a8",
    "collecting": "#93a7bd", "waiting": "#ededed",
}  # fmt: skip
_COLUMNS = 500
"""Into how many columns a lane of a timeline is divided."""


def require() -> None:
    """See that pictures can be drawn, before hours are spent on what they are to show.

    Raises
    ------
    ImportError
        There is no matplotlib; the message has the remedy.
    """
    try:
        import matplotlib.figure  # noqa: F401
    except ImportError as error:
        raise ImportError(f'pictures need matplotlib: pip install -e ".[demo]" ({error}).') from error


def moving_mean(x: ArrayLike, window: int) -> NDArray[np.float64]:
    """Average each ``window`` consecutive numbers.

    Parameters
    ----------
    x : array, ``(N,)``
        The numbers.
    window : int
        How many of them, at least 1.

    Returns
    -------
    float64 array, ``(max(0, N - window + 1),)``
        Entry ``i`` is the mean of ``x[i : i + window]``.
    """
    total = np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])
    means: NDArray[np.float64] = (total[window:] - total[:-window]) / window
    return means


def learning_curve(
    steps: Sequence[int],
    returns: Sequence[float],
    *,
    threshold: float | None = None,
    window: int = 100,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw the return of each episode, and their moving mean, over the steps it took.

    Parameters
    ----------
    steps : sequence of int, ``(N,)``
        The number of environment steps (of all environments together) at which each episode ended, ascending.
    returns : sequence of float, ``(N,)``
        Their undiscounted returns, in the environment's own units of reward.
    threshold : float, optional
        The mean return that is aimed at: a dashed line, and a mark where it was reached first.
    window : int
        Over how many consecutive episodes to average.
    title, caption : str
        What stands above and, small, below.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("curve.png")`` writes it. It belongs to no window and needs no display.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(steps, returns, s=7, color=_DOTS, alpha=0.55, linewidths=0, label="one episode")
    means = moving_mean(returns, window)
    if len(means):
        axes.plot(steps[window - 1 :], means, color=_LINE, linewidth=2, label=f"mean over {window} episodes")
    if threshold is not None:
        axes.axhline(threshold, color=_GOAL, linewidth=1, linestyle=(0, (5, 3)), label=f"threshold: {threshold:g}")
        reached = np.flatnonzero(means >= threshold)
        if len(reached):
            step, mean = steps[reached[0] + window - 1], means[reached[0]]
            axes.plot(step, mean, "o", color=_GOAL, markersize=7, markeredgecolor="white", zorder=5)
            axes.annotate(
                f"reached after {step:,} steps", (step, mean), xytext=(-4, -16), textcoords="offset points", ha="right",
                color=_GOAL, bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1},
            )  # fmt: skip

    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps, of all environments together")
    axes.set_ylabel("return of an episode (sum of rewards)")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(loc="lower right", markerscale=2)
    figure.supxlabel(caption, fontsize="small", color=_FAINT)
    return figure


def timeline(trace: Any, *, fragments: int | None = 4, title: str = "", caption: str = "") -> Figure:
    """Draw what learner, collector and workers did when: whether they worked at once, or by turns.

    Each has a lane. Where it is filled to the top, somebody is busy all the time; where there is more than fits into a
    column of the picture, it is filled in proportion. Dotted lines are where the learner was given a fragment.

    Parameters
    ----------
    trace : path, or what ``feed.trace()`` returned
        It must have ended.
    fragments : int, optional
        How many of the last fragments to show, at least 1; None: all of the trace.
    title, caption : str
        What stands above and, small, under that: by default for how much of the time learner and collector were busy
        at once.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("timeline.png")`` writes it. It belongs to no window and needs no display.

    Raises
    ------
    ValueError
        There is nothing in the trace: it has not ended yet, or no fragment was asked for meanwhile.
    """
    from matplotlib.figure import Figure
    from matplotlib.patches import Patch

    lanes = _lanes(trace)
    asked = [(start, end) for kind, start, end in lanes.get("learner", ()) if kind == "waiting"]
    if not asked:
        raise ValueError("the trace is empty: it must have ended, and a fragment must have been asked for meanwhile.")
    first = 0.0 if fragments is None else asked[-min(fragments, len(asked))][0]
    last = max(end for spans in lanes.values() for _, _, end in spans)
    edges = np.linspace(first, last, 1 + _COLUMNS)
    filled = {name: _filled(spans, edges) for name, spans in lanes.items()}
    busy = {name: 1 - fill["waiting"] - fill[""] for name, fill in filled.items()}

    figure = Figure(figsize=(10, 1.9 + 0.55 * len(lanes)), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    for row, (name, fill) in enumerate(filled.items()):
        _draw_lane(axes, row, edges - first, fill)
        axes.text(1.01, row, f"{busy[name].mean():.0%}".replace("%", " % busy"), transform=axes.get_yaxis_transform(),
                  va="center", fontsize="small", color=_FAINT)  # fmt: skip
    for _, end in asked:
        if end > first:
            axes.axvline(end - first, color="#333333", linewidth=0.8, linestyle=(0, (1, 2)))
    axes.set_xlim(0, last - first)
    axes.set_ylim(len(lanes) - 0.45, -0.55)
    axes.set_yticks(range(len(lanes)), [name.replace(" (", "\n(") for name in lanes])
    axes.tick_params(axis="y", length=0)
    axes.spines[["top", "right", "left"]].set_visible(False)
    axes.set_xlabel("milliseconds")
    at_once = float((busy["learner"] * busy["collector"]).mean())
    said = caption or f"learner and collector are busy at once {at_once:.0%} of the time".replace("%", " %")
    axes.set_title(said, loc="left", fontsize="small", color=_FAINT)
    figure.suptitle(title, x=0.01, ha="left", fontweight="bold")
    used = [kind for kind in _KINDS if any(fill[kind].any() for fill in filled.values())]
    figure.legend([Patch(color=_KINDS[kind]) for kind in used], used, loc="outside lower center", ncols=len(used),
                  frameon=False, fontsize="small", handlelength=1.2, columnspacing=1.4)  # fmt: skip
    return figure


def _lanes(trace: Any) -> dict[str, list[tuple[str, float, float]]]:
    """Read the spans of each lane: kind, start and end in milliseconds."""
    if isinstance(trace, str | os.PathLike):
        events = json.loads(Path(trace).read_text(encoding="utf-8"))["traceEvents"]
    else:
        events = trace.events
    names = {event["tid"]: event["args"]["name"] for event in events if event["name"] == "thread_name"}
    lanes: dict[str, list[tuple[str, float, float]]] = {name: [] for name in names.values()}
    for event in events:
        if event["ph"] == "X":
            start = event["ts"] / 1e3
            lanes[names[event["tid"]]].append((event["name"], start, start + event["dur"] / 1e3))
    return lanes


def _filled(spans: Sequence[tuple[str, float, float]], edges: NDArray[np.float64]) -> dict[str, NDArray[np.float64]]:
    """Tell which share of each column goes to each kind; to the kind ``""`` goes what is left."""
    filled: dict[str, NDArray[np.float64]] = {}
    for kind in _KINDS:
        times = np.array([span[1:] for span in spans if span[0] == kind]).reshape(-1)
        spent = np.zeros_like(times)
        spent[1:] = np.cumsum(np.diff(times) * (np.arange(1, len(times)) % 2))
        until = np.interp(edges, times, spent) if len(times) else np.zeros_like(edges)
        filled[kind] = np.diff(until) / np.diff(edges)
    return {**filled, "": 1 - np.sum(list(filled.values()), axis=0)}


def _draw_lane(axes: Axes, row: int, edges: NDArray[np.float64], fill: dict[str, NDArray[np.float64]]) -> None:
    """Fill a lane from the bottom up: with work, then with waiting."""
    bottom = np.zeros(len(edges))
    for kind, colour in _KINDS.items():
        top = bottom + np.append(fill[kind], fill[kind][-1])
        axes.fill_between(edges, row + 0.38 - 0.76 * bottom, row + 0.38 - 0.76 * top, step="post", color=colour,
                          linewidth=0)  # fmt: skip
        bottom = top


class Panel(NamedTuple):
    """What one panel of :func:`multiples` shows."""

    title: str
    names: list[str]
    """Of those that are compared, ``N`` of them."""
    bars: dict[str, list[tuple[float, float, float] | None]]
    """By series: low, median and high for each name, as multiples of 1; None where there is nothing."""
    ceiling: float
    """Another line, beside that at 1."""


def multiples(grid: Sequence[Sequence[Panel]], *, lines: tuple[str, str], title: str = "", caption: str = "") -> Figure:
    """Draw horizontal bars, with lines at 1 and at each panel's ceiling.

    Parameters
    ----------
    grid : sequence of rows of Panel
        As many in each row, ``R x C``.
    lines : two str
        What the lines are.
    title, caption : str
        What stands above and, small, below.

    Returns
    -------
    matplotlib.figure.Figure
        It belongs to no window and needs no display.
    """
    from matplotlib.figure import Figure

    heights = [0.8 + 0.45 * max(len(panel.names) for panel in row) for row in grid]
    figure = Figure(figsize=(2 + 6 * len(grid[0]), 1.6 + sum(heights)), dpi=120, layout="constrained")
    plots = figure.subplots(len(grid), len(grid[0]), squeeze=False, height_ratios=heights)
    for axes, panel in zip(plots.flat, (panel for row in grid for panel in row), strict=True):
        _bars(axes, panel, lines)
    handles, names = plots[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper left", ncols=4, frameon=False, title=title, alignment="left",
        title_fontproperties={"weight": "bold", "size": "large"},
    )  # fmt: skip
    figure.supxlabel(caption, fontsize="small", color=_FAINT)
    return figure


def _bars(axes: Axes, panel: Panel, lines: tuple[str, str]) -> None:
    shown = {name: bars for name, bars in panel.bars.items() if any(bars)}
    height = 0.8 / max(1, len(shown))
    beside: Any = {"textcoords": "offset points", "xytext": (4, 0), "va": "center", "size": 8, "zorder": 3}
    for k, (name, color) in enumerate(zip(shown, (_LINE, _DOTS), strict=False)):
        low, mid, high = np.array([bar or (np.nan,) * 3 for bar in shown[name]]).T
        at = np.arange(len(panel.names)) + (k - (len(shown) - 1) / 2) * height
        axes.barh(at, mid, 0.92 * height, color=color, label=name)
        axes.errorbar(mid, at, xerr=(mid - low, high - mid), fmt="none", ecolor="#222222", elinewidth=1)
        for y, bar in zip(at, shown[name], strict=True):
            if bar is not None:
                white = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1}
                axes.annotate(f"{bar[1]:.2f}", (bar[2], y), bbox=white, **beside)
    for y, bars in enumerate(zip(*panel.bars.values(), strict=True)):
        if not any(bars):
            axes.annotate("not available", (0, y), color=_FAINT, **beside)

    reach = 1.15 * max([1.0, *(bar[2] for bars in shown.values() for bar in bars if bar)])
    far = panel.ceiling > 1.6 * reach  # the bars would be too short to be told apart
    axes.axvline(1, color=_GOAL, linewidth=1.5, label=lines[0])
    axes.axvline(panel.ceiling, color=_GOAL, linewidth=1.5, linestyle=(0, (2, 2)), label=lines[1])
    axes.set_xlim(0, reach if far else max(reach, 1.08 * panel.ceiling))
    axes.set_title(panel.title + (f" ({lines[1]} is at {panel.ceiling:.3g})" if far else ""), loc="left", size="medium")
    axes.set_yticks(range(len(panel.names)), panel.names)
    axes.set_ylim(len(panel.names) - 0.4, -0.6)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
