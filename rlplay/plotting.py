"""Pictures of what was learnt, and how fast. matplotlib is imported inside functions; no backend is ever touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "learning_curve", "moving_mean", "multiples", "require"]

_DOTS, _LINE, _GOAL, _FAINT = "#7fa3cf", "#1f4e8c", "#c8553d", "#666666"


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
