"""Learning curves: the return of each episode and its moving mean, of one run or of several runs beside each other."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .style import BLUE, GREY, LIGHT_BLUE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Curves", "learning_curve", "learning_curves", "moving_mean"]


class Curves(NamedTuple):
    """The content of one panel of :func:`learning_curves`."""

    title: str
    runs: Mapping[str, Sequence[tuple[ArrayLike, ArrayLike]]]
    """For each name that is compared its runs, one for each seed: the number of environment steps at the end of each
    episode, ascending, and the episode's return, both ``(N,)``."""
    window: int = 100
    """Number of consecutive episodes in the moving mean."""


def learning_curve(
    steps: Sequence[int],
    returns: Sequence[float],
    *,
    threshold: float | None = None,
    window: int = 100,
    title: str = "",
    caption: str = "",
) -> Figure:
    """Draw the return of each episode, and the moving mean of the returns, over the number of environment steps.

    Parameters
    ----------
    steps : sequence of int, ``(N,)``
        Number of environment steps (of all environments together) at the end of each episode, in ascending order.
    returns : sequence of float, ``(N,)``
        The undiscounted return of each episode, in the environment's units of reward.
    threshold : float, optional
        The mean return to reach: drawn as a dashed line, with a mark where the moving mean reached it first.
    window : int
        Number of consecutive episodes in the moving mean.
    title, caption : str
        The title above the picture and, in small print, the caption below.

    Returns
    -------
    matplotlib.figure.Figure
        ``figure.savefig("curve.png")`` writes it to a file. The figure needs no display.

    Raises
    ------
    ValueError
        ``window`` is less than 1.
    """
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(8, 4.5), dpi=150, layout="constrained")
    axes = figure.add_subplot()
    axes.scatter(steps, returns, s=7, color=LIGHT_BLUE, alpha=0.55, linewidths=0, label="one episode")
    means = moving_mean(returns, window)
    if len(means):
        axes.plot(steps[window - 1 :], means, color=BLUE, linewidth=2, label=f"mean over {window} episodes")
    if threshold is not None:
        axes.axhline(threshold, color=RED, linewidth=1, linestyle=(0, (5, 3)), label=f"threshold: {threshold:g}")
        reached = np.flatnonzero(means >= threshold)
        if len(reached):
            step, mean = steps[reached[0] + window - 1], means[reached[0]]
            label = f"reached after {step:,} steps"
            axes.plot(step, mean, "o", color=RED, markersize=7, markeredgecolor="white", zorder=5, label=label)

    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.set_xlabel("environment steps, of all environments together")
    axes.set_ylabel("return of an episode (sum of rewards)")
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
    handles, names = axes.get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper left", ncols=4, frameon=False, fontsize="small", columnspacing=1.2,
        title=title, alignment="left", title_fontproperties={"weight": "bold", "size": "large"},
    )  # fmt: skip
    figure.supxlabel(caption, fontsize="small", color=GREY)
    return figure


def learning_curves(panels: Sequence[Curves], *, title: str = "", caption: str = "") -> Figure:
    """Draw runs of several seeds beside each other: the mean over seeds as a line, the least to the largest as a band.

    Each run's curve is the moving mean of the returns of its episodes, from the end of the first window on; of the
    episodes that end at the same step the last counts. The line of several runs begins where all of them have one, and
    ends with the shortest run. A run with fewer episodes than one window is left out.

    Parameters
    ----------
    panels : sequence of Curves
        Drawn in two columns, row by row. A name has the same colour in all panels; there are at most four names.
    title, caption : str
        The title above the picture and, in small print, the caption below.

    Returns
    -------
    matplotlib.figure.Figure
        The figure needs no display.

    Raises
    ------
    ValueError
        There are more than four names, or a ``window`` is less than 1.
    """
    from matplotlib.figure import Figure

    names = list(dict.fromkeys(name for panel in panels for name in panel.runs))
    if len(names) > len(_COLOURS):
        raise ValueError(f"`panels` may have at most {len(_COLOURS)} names together, got {len(names)}: {names}.")
    colours = dict(zip(names, _COLOURS, strict=False))

    n_rows = -(-len(panels) // 2)
    figure = Figure(figsize=(10, 0.8 + 3.2 * n_rows), dpi=150, layout="constrained")
    plots = figure.subplots(n_rows, min(2, len(panels)), squeeze=False)
    for axes, panel in zip(plots.flat, panels, strict=False):
        _draw_curves(axes, panel, colours)
    for axes in plots.flat[len(panels) :]:
        axes.remove()
    found: dict[str, Any] = {}
    for axes in figure.axes:
        found |= dict(zip(*reversed(axes.get_legend_handles_labels()), strict=True))
    figure.legend(
        found.values(), found.keys(), loc="outside upper left", ncols=4, frameon=False, title=title, alignment="left",
        title_fontproperties={"weight": "bold", "size": "large"},
    )  # fmt: skip
    figure.supylabel("return of an episode, moving mean", fontsize="medium")
    figure.supxlabel(f"environment steps\n{caption}", fontsize="small", color=GREY)
    return figure


_COLOURS = (BLUE, RED, LIGHT_BLUE, GREY)


def _draw_curves(axes: Axes, panel: Curves, colours: Mapping[str, str]) -> None:
    from matplotlib.ticker import EngFormatter

    for name, runs in panel.runs.items():
        means = [_mean_at_steps(*run, panel.window) for run in runs if len(np.asarray(run[1])) >= panel.window]
        if not means:
            continue
        begin, end = max(x[0] for x, _ in means), min(x[-1] for x, _ in means)
        if begin > end:
            continue  # there is no step at which all runs have a mean
        grid = np.linspace(begin, end, 200)
        curves = np.array([np.interp(grid, x, y) for x, y in means])
        axes.plot(grid, curves.mean(axis=0), color=colours[name], linewidth=2, label=name)
        axes.fill_between(grid, curves.min(axis=0), curves.max(axis=0), color=colours[name], alpha=0.2, linewidth=0)
    axes.set_title(panel.title, loc="left", size="medium")
    axes.set_xlim(left=0)
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.grid(color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)


def _mean_at_steps(steps: ArrayLike, returns: ArrayLike, window: int) -> tuple[NDArray[Any], NDArray[np.float64]]:
    """Return the moving mean; of the episodes that end at one step, that of the last."""
    at, index = np.unique(np.asarray(steps)[window - 1 :][::-1], return_index=True)
    return at, moving_mean(returns, window)[::-1][index]


def moving_mean(x: ArrayLike, window: int) -> NDArray[np.float64]:
    """Average every ``window`` consecutive numbers.

    Parameters
    ----------
    x : array, ``(N,)``
        The numbers.
    window : int
        At least 1.

    Returns
    -------
    float64 array, ``(max(0, N - window + 1),)``
        Entry ``i`` is the mean of ``x[i : i + window]``.

    Raises
    ------
    ValueError
        ``window`` is less than 1.
    """
    if window < 1:
        raise ValueError(f"`window` must be at least 1, got {window}.")
    total = np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])
    means: NDArray[np.float64] = (total[window:] - total[:-window]) / window
    return means
