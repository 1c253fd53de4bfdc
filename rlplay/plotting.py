"""Pictures. matplotlib is imported inside the functions, and no global state of it is touched."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["learning_curve"]


def learning_curve(
    steps: Sequence[int],
    returns: Sequence[float],
    *,
    window: int = 100,
    goal: float | None = None,
    title: str = "",
    note: str = "",
) -> Figure:
    """Draw the returns of episodes over the environment steps at which they ended.

    Parameters
    ----------
    steps, returns : sequences of equal length
        Environment steps so far, and the undiscounted return, at the end of each episode.
    window : int
        Over how many episodes the mean is taken.
    goal : float, optional
        The mean return from which the environment counts as solved.
    title, note : str
        Above and below the picture.

    Returns
    -------
    matplotlib.figure.Figure
        Not shown: ``figure.savefig(path)``.

    Raises
    ------
    ModuleNotFoundError
        If matplotlib is not installed.
    """
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import EngFormatter

    figure = Figure(figsize=(7, 4.2), layout="constrained")
    FigureCanvasAgg(figure)
    axes = figure.add_subplot()
    axes.scatter(steps, returns, s=6, color="tab:blue", alpha=0.18, linewidths=0)
    axes.plot([], [], ".", color="tab:blue", alpha=0.5, label="one episode")  # for the legend: not as faint
    if len(returns) >= window:
        means = np.convolve(returns, np.full(window, 1 / window), mode="valid")
        axes.plot(steps[window - 1 :], means, color="tab:blue", linewidth=2, label=f"mean of {window} episodes")
        axes.annotate(f"{means[-1]:.0f}", (steps[-1], means[-1]), xytext=(4, 4), textcoords="offset points")
    if goal is not None:
        axes.axhline(goal, color="0.4", linewidth=1, linestyle="--", label=f"goal: {goal:g}")
    axes.set_xlabel("environment steps")
    axes.set_ylabel("return of an episode")
    axes.set_title(title, loc="left", fontweight="bold")
    axes.xaxis.set_major_formatter(EngFormatter(sep=""))
    axes.spines[["top", "right"]].set_visible(False)
    axes.margins(x=0.03)
    if len(returns) or goal is not None:
        axes.legend(frameon=False, loc="best")
    if note:
        figure.supxlabel(note, fontsize=8, color="0.35")
    return figure
