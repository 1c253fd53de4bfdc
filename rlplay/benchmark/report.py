"""What is reported of the measurements: rows of figures, a table, a picture."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from ..plotting import Panel, multiples
from .gpu import Activity
from .measure import Limit, Spread, Turn, efficiency, rates, times
from .runs import Run

__all__ = ["Row", "gpu_row", "limit_row", "machine", "run_row", "LEGEND", "table", "draw", "panel"]

Row = dict[str, Any]

_PACKAGES = ("rlplay", "torch", "numpy", "gym", "gymnasium", "ale-py")


def limit_row(limit: Limit, a: Limit, b: Limit) -> Row:
    """Tell of a limit, beside both of them."""
    return {"alone": _collected(limit.turns, a, b)}


def run_row(run: Run, a: Limit, b: Limit) -> Row:
    """Tell of an engine, beside the limits of the same work and as many environments."""
    row: Row = {"alone": _collected(run.collecting, a, b) | {"microseconds per step": _places(run.collecting)}}
    if run.both:
        row["learner"] = _collected(run.both, a, b) | {
            "microseconds per step": _places(run.both),
            "seconds of training alone": _spread(times(run.training)),
            "overlap efficiency": efficiency(run.collecting, run.training, run.both),
        }
    return row


def gpu_row(seen: Activity, traced: Turn, timed: Sequence[Turn], *, complete: bool) -> Row:
    """Tell what the device did in one window; ``complete`` says whether all of it was to be seen (see ``gpu``)."""
    busy = seen.busy / traced.fragments
    return {
        "idle": max(0.0, 1 - busy / times(timed).median) if complete else None,
        "bytes per second while copying up": seen.uploaded / seen.upload if seen.upload else None,
    }


def _collected(turns: Sequence[Turn], a: Limit, b: Limit) -> Row:
    spread = rates(turns)
    return {
        "steps per second": _spread(spread),
        "ratio to a": spread.median / rates(a.turns).median,
        "ratio to b": spread.median / rates(b.turns).median,
        "seconds per fragment": _spread(times(turns)),
        "fragments in a turn": turns[0].fragments,
    }


def _spread(spread: Spread) -> Row:
    return {"median": spread.median, "low": spread.low, "high": spread.high, "all": spread.values}


def _places(turns: Sequence[Turn]) -> Row:
    """Divide each place's time by the number of steps: the median over the turns, in microseconds."""
    return {
        place: Spread([1e6 * turn.places[place] / turn.steps for turn in turns]).median for place in turns[0].places
    }


def machine(device: torch.device) -> Row:
    """Tell what this has run on, and when."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": _cpu(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "device": "cpu" if device.type == "cpu" else getattr(torch, device.type).get_device_name(device),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    try:
        told = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        told = ""
    models = [line.partition(":")[2].strip() for line in told.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


LEGEND = """\
steps/s   of all environments together: the median over the turns, and the range
/a, /b    as a multiple of limit a (stepping alone) and of limit b (stepping, and the bare forward pass)
us: env   microseconds per step that the collector spent in the environments, in the actor, in handing over fragments,
          and in waiting for the learner
learning  steps/s with one update per fragment
update    milliseconds of training alone, per fragment
overlap   max(collection alone, training alone) / both, per fragment: 1 if the shorter one is hidden altogether
idle      the share of the time in which the GPU had nothing to do: alone, learning
copying   GB/s while copying up from page-locked memory (limit a: what can be reached)
"""

_COLLECTING = ["steps/s", "range", "/a", "/b"]
_PLACES = {"stepping": "us: env", "inference": "actor", "transfer": "copy", "waiting": "wait"}
_LEARNING = ["learning", "range", "/b", "update", "overlap"]
_GPU = ["idle", "learning", "copying"]


def table(rows: Sequence[Row]) -> str:
    """Set the rows of one work and one number of environments in columns. What does not apply is left blank."""
    learning, gpu = (any(key in row for row in rows) for key in ("learner", "gpu"))
    title = "{work}: {n_envs} environments, fragments of {n_steps} steps".format(**rows[0])
    lines = [["", *_COLLECTING, *_PLACES.values(), *(_LEARNING if learning else []), *(_GPU if gpu else [])]]
    lines += [[row["engine"], *_collecting(row), *_learning(row, learning), *_gpu(row, gpu)] for row in rows]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = [[f"{cell:>{width}}" for cell, width in zip(line, widths, strict=True)] for line in lines]
    told = ["  ".join([line[0].ljust(widths[0]), *cells[1:]]) for line, cells in zip(lines, aligned, strict=True)]
    for k, row in enumerate(rows, 1):
        if "not available" in row:
            told[k] = f"{row['engine'].ljust(widths[0])}  not available: {row['not available']}"
    return "\n".join([title, *(line.rstrip() for line in told)])


def _collecting(row: Row) -> list[str]:
    if "alone" not in row:
        return [""] * len([*_COLLECTING, *_PLACES])
    alone = row["alone"]
    spent = alone.get("microseconds per step", {})
    places = [f"{spent[place]:.1f}" if place in spent else "" for place in _PLACES]
    return [*_rate(alone), _ratio(alone["ratio to a"]), _ratio(alone["ratio to b"]), *places]


def _learning(row: Row, shown: bool) -> list[str]:
    if "learner" not in row:
        return [""] * len(_LEARNING) if shown else []
    both = row["learner"]
    update, overlap = both["seconds of training alone"]["median"], both["overlap efficiency"]
    return [*_rate(both), _ratio(both["ratio to b"]), f"{1e3 * update:.1f}", f"{overlap:.2f}"]


def _gpu(row: Row, shown: bool) -> list[str]:
    if "gpu" not in row:
        return [""] * len(_GPU) if shown else []
    windows, speed = row["gpu"], "bytes per second while copying up"
    idle = [windows.get(window, {}).get("idle") for window in ("alone", "learner")]
    copying = windows["alone"].get(speed)
    return [*("" if x is None else f"{x:.0%}" for x in idle), "" if copying is None else f"{copying / 1e9:.1f}"]


def _rate(collected: Row) -> list[str]:
    rate = collected["steps per second"]
    low, high = (_short(rate[end]) for end in ("low", "high"))
    return [_short(rate["median"]), f"{low}..{high}"]


def _ratio(x: float) -> str:
    return f"{x:.2f}" if x >= 0.1 else f"{x:.2g}"


def _short(x: float) -> str:
    """Write a rate with three digits, in thousands or millions where it is that large."""
    unit, name = next(((unit, name) for unit, name in ((1e6, "M"), (1e3, "k")) if x >= unit), (1.0, ""))
    x /= unit
    return f"{x:.{0 if x >= 100 else 1 if x >= 10 else 2}f}{name}"


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
