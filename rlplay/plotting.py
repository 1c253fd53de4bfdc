"""Pictures of what has been learnt. matplotlib is imported inside the functions, and no backend is ever touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import ArrayLike, NDArray

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve", "moving_mean", "require"]

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
        raise ImportError(f'the learning curve needs matplotlib: pip install -e ".[demo]" ({error}).') from error


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
