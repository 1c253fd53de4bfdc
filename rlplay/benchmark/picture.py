"""The rows of the report, as bars: how much of limit b each engine reaches."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from textwrap import fill
from typing import Any

from ..plotting import Panel, multiples

__all__ = ["draw", "panel"]

Row = dict[str, Any]


def draw(summary: Row, at: Path) -> None:
    """Draw a panel for each work and number of environments; nothing if nothing could be measured."""
    rows = [row for row in summary["rows"] if "n_envs" in row]
    works, n_envs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("work", "n_envs"))
    if not rows:
        return
    grid = [
        [panel([row for row in rows if (row["work"], row["n_envs"]) == (work, n)]) for n in n_envs] for work in works
    ]
    machine = summary["machine"]
    where = f"{machine['cpu']}, {machine['cores']} cores, {machine['device']}; {machine['date'][:10]}"
    figure = multiples(
        grid,
        lines=("limit b", "limit a"),
        title="Steps per second, as multiples of limit b: stepping and the bare forward pass",
        caption=fill(summary["command"], 30 + 80 * len(n_envs)) + "\n" + where,
    )
    figure.savefig(at)


def panel(rows: Sequence[Row]) -> Panel:
    """Gather what one panel shows, from the rows of one work and one number of environments, limits first."""
    a, b, *engines = rows
    unit = b["alone"]["steps per second"]["median"]

    def bars(window: str) -> list[tuple[float, float, float] | None]:
        rates = [row[window]["steps per second"] if window in row else None for row in engines]
        return [rate and (rate["low"] / unit, rate["median"] / unit, rate["high"] / unit) for rate in rates]

    return Panel(
        title=f"{b['work']}, {b['n_envs']} environments",
        names=[row["engine"] for row in engines],
        bars={"collection alone": bars("alone"), "with a learner": bars("learner")},
        ceiling=a["alone"]["steps per second"]["median"] / unit,
    )
