"""Learning curves: the return of each episode and its moving mean."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

from .style import BLUE, GREY, LIGHT_BLUE, RED

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve", "moving_mean"]


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
    """
    total = np.concatenate([[0.0], np.cumsum(x, dtype=np.float64)])
    means: NDArray[np.float64] = (total[window:] - total[:-window]) / window
    return means
