"""Bars: several measurements, as multiples of one of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np

from .style import BLUE, GREY, LIGHT_BLUE, RED

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

__all__ = ["Panel", "multiples"]


class Panel(NamedTuple):
    """The content of one panel of :func:`multiples`."""

    title: str
    names: list[str]
    """Names of the ``N`` items that are compared, from top to bottom."""
    bars: dict[str, list[tuple[float, float, float] | None]]
    """For each series (at most two may have bars) and each name: low, median and high, as multiples of the value at the
    first line; None where nothing was measured."""
    labels: dict[str, list[str]]
    """For each series and each name: what is written at the right of the panel, in the line of the bar."""
    ceiling: float
    """Position of the second line; the first is at 1."""


def multiples(grid: Sequence[Sequence[Panel]], *, lines: tuple[str, str], title: str = "", caption: str = "") -> Figure:
    """Draw panels of horizontal bars of one scale, with vertical lines at 1 and at each panel's ceiling.

    Parameters
    ----------
    grid : sequence of rows of Panel
        ``R x C``: all rows have the same length.
    lines : two str
        Labels of the line at 1 and of the line at the ceiling.
    title, caption : str
        The title above the picture and, in small print, the caption below.

    Returns
    -------
    matplotlib.figure.Figure
        The figure needs no display.
    """
    from matplotlib.figure import Figure

    heights = [0.8 + 0.45 * max(len(panel.names) for panel in row) for row in grid]
    figure = Figure(figsize=(2 + 6 * len(grid[0]), 1.6 + sum(heights)), dpi=120, layout="constrained")
    plots = figure.subplots(len(grid), len(grid[0]), squeeze=False, height_ratios=heights)
    panels = [panel for row in grid for panel in row]
    highs = [bar[2] for panel in panels for bars in panel.bars.values() for bar in bars if bar]
    for axes, panel in zip(plots.flat, panels, strict=True):
        _draw_bars(axes, panel, lines, limit=1.08 * max([1.0, *highs]))
    handles, names = plots[0, 0].get_legend_handles_labels()
    figure.legend(
        handles, names, loc="outside upper left", ncols=2, frameon=False, title=title, alignment="left",
        title_fontproperties={"weight": "bold", "size": "large"},
    )  # fmt: skip
    figure.supxlabel(caption, fontsize="small", color=GREY)
    return figure


def _draw_bars(axes: Axes, panel: Panel, lines: tuple[str, str], limit: float) -> None:
    shown = {name: bars for name, bars in panel.bars.items() if any(bars)}
    if len(shown) > 2:
        raise ValueError(f"at most two series may have bars, got {len(shown)}: {', '.join(shown)}.")
    height = 0.8 / max(1, len(shown))
    beside: Any = {"va": "center", "size": 8, "transform": axes.get_yaxis_transform()}
    for k, (name, color) in enumerate(zip(shown, (BLUE, LIGHT_BLUE), strict=False)):
        low, mid, high = np.array([bar or (np.nan,) * 3 for bar in shown[name]]).T
        at = np.arange(len(panel.names)) + (k - (len(shown) - 1) / 2) * height
        axes.barh(at, mid, 0.92 * height, color=color, label=name)
        axes.errorbar(mid, at, xerr=(mid - low, high - mid), fmt="none", ecolor="#222222", elinewidth=1)
        for y, label in zip(at, panel.labels[name], strict=True):
            axes.text(1.02, y, label, **beside)  # beside the panel, where no line passes
    for y, bars in enumerate(zip(*panel.bars.values(), strict=True)):
        if not any(bars):
            axes.text(0.02, y, "not available", color=GREY, **beside)

    outside = panel.ceiling > limit
    axes.axvline(1, color=RED, linewidth=1.5, label=lines[0])
    axes.axvline(panel.ceiling, color=RED, linewidth=1.5, linestyle=(0, (2, 2)), label=lines[1])
    axes.set_xlim(0, limit)
    outside_note = f" ({lines[1]} is at {panel.ceiling:.3g})" if outside else ""
    axes.set_title(panel.title + outside_note, loc="left", size="medium")
    axes.set_yticks(range(len(panel.names)), panel.names)
    axes.set_ylim(len(panel.names) - 0.4, -0.6)
    axes.grid(axis="x", color="#e8e8e8", linewidth=0.7)
    axes.set_axisbelow(True)
    axes.spines[["top", "right"]].set_visible(False)
