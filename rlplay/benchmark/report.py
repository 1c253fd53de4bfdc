"""The report: rows of figures for the JSON file, the table that is printed, and the picture."""

from __future__ import annotations

import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from itertools import compress
from pathlib import Path
from textwrap import fill
from typing import Any

import torch

from ..interpreter import usable_cores
from ..plotting import Panel, multiples
from .gpu import DeviceActivity
from .measure import Limit, Measurement, Spread, overlap_efficiency, seconds_per_fragment, steps_per_second
from .runs import EngineRun

__all__ = ["Row", "draw", "gpu_row", "legend", "limit_row", "machine_row", "panel", "run_row", "table"]

Row = dict[str, Any]
"""Figures of one limit or engine, by name, as in the JSON file."""

_LEGEND = {  # by the column that has to be in the table
    "steps/s": """\
steps/s   of all environments together: the median of all measurements
/step     as a multiple of "stepping alone": a plain loop that steps the
          environments and records nothing
/net      as a multiple of "stepping, network": the same loop, which evaluates
          the actor's networks before each step
""",
    "range": """\
range     of the measurements: from the lowest to the highest
""",
    "us: env": """\
us: env   microseconds per step that the collector spent in the environments, in
          the actor, in copying fragments, and in waiting for the learner
""",
    "learning": """\
learning  steps/s with one update per fragment
update    milliseconds of training alone, per fragment
overlap   max(collection alone, training alone) / both, per fragment: 1 if the
          shorter one is hidden completely
""",
    "idle": """\
idle      the share of the time in which the GPU did nothing: in collection
          alone, with the learner
copying   GB/s of copies from page-locked memory to the GPU (stepping alone: the
          maximum of this machine)
""",
}

_PACKAGES = ("rlplay", "torch", "numpy", "gym", "gymnasium", "ale-py")

_COLLECTION_COLUMNS = ["steps/s", "range", "/step", "/net"]
_TIME_COLUMNS = {"stepping": "us: env", "inference": "actor", "transfer": "copy", "waiting": "wait"}
_LEARNING_COLUMNS = ["learning", "range", "/net", "update", "overlap"]
_GPU_COLUMNS = ["idle", "learning", "copying"]
_NOT_BRIEF = {"range", *_TIME_COLUMNS.values()}


# rows for the JSON file


def limit_row(limit: Limit, limit_a: Limit, limit_b: Limit) -> Row:
    """Return the figures of a limit, with its ratios to limit a and to limit b."""
    return {"alone": _collection_row(limit.measurements, limit_a, limit_b)}


def run_row(run: EngineRun, limit_a: Limit, limit_b: Limit) -> Row:
    """Return the figures of an engine, with its ratios to the limits of the same work and number of environments."""
    alone = _collection_row(run.collection, limit_a, limit_b)
    row: Row = {"alone": alone | {"microseconds per step": _microseconds_per_step(run.collection)}}
    counters = run.feed.stats.counters
    if counters.steps:
        row["counted"] = {"per step of a group": counters.per_step(), "page-locked bytes": counters.locked_bytes}
    if run.both:
        row["learner"] = _collection_row(run.both, limit_a, limit_b) | {
            "microseconds per step": _microseconds_per_step(run.both),
            "seconds of training alone": _spread_row(seconds_per_fragment(run.training)),
            "overlap efficiency": overlap_efficiency(run.collection, run.training, run.both),
        }
    return row


def gpu_row(activity: DeviceActivity, profiled: Measurement, timed: Sequence[Measurement], *, complete: bool) -> Row:
    """Return the figures of a GPU for one kind of window.

    Parameters
    ----------
    activity : DeviceActivity
        The activity of the GPU in the profiled window.
    profiled : Measurement
        The measurement of the profiled window.
    timed : sequence of Measurement
        The measurements of windows of the same kind without the profiler.
    complete : bool
        Whether the trace contains all work of the engine; False for engines that act in other processes (see ``gpu``).
    """
    busy = activity.busy_seconds / profiled.fragments
    return {
        "idle": max(0.0, 1 - busy / seconds_per_fragment(timed).median) if complete else None,
        "bytes per second while copying up": (
            activity.uploaded_bytes / activity.upload_seconds if activity.upload_seconds else None
        ),
    }


def machine_row(device: torch.device) -> Row:
    """Return the date, a description of the machine, and the versions of the packages."""
    return {
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
        "system": platform.platform(),
        "cpu": _cpu_model(),
        "cores": usable_cores(),
        "device": "cpu" if device.type == "cpu" else getattr(torch, device.type).get_device_name(device),
        "versions": {"python": platform.python_version()} | {name: _version(name) for name in _PACKAGES},
    }


def _collection_row(measurements: Sequence[Measurement], limit_a: Limit, limit_b: Limit) -> Row:
    """Return the figures of windows that collect, with their ratios to limit a and to limit b."""
    rate = steps_per_second(measurements)
    return {
        "steps per second": _spread_row(rate),
        "ratio to a": rate.median / steps_per_second(limit_a.measurements).median,
        "ratio to b": rate.median / steps_per_second(limit_b.measurements).median,
        "seconds per fragment": _spread_row(seconds_per_fragment(measurements)),
        "fragments in a turn": measurements[0].fragments,
    }


def _spread_row(spread: Spread) -> Row:
    return {"median": spread.median, "low": spread.low, "high": spread.high, "all": spread.values}


def _microseconds_per_step(measurements: Sequence[Measurement]) -> Row:
    """Return the collector's microseconds per step by activity, as medians of the measurements."""
    return {
        activity: Spread([1e6 * each.collector_seconds[activity] / each.steps for each in measurements]).median
        for activity in measurements[0].collector_seconds
    }


def _version(package: str) -> str | None:
    """Return the version of a package; None if the package is not installed."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    """Return the model of the CPU: from ``/proc/cpuinfo`` if possible, else as the ``platform`` module reports it."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        text = ""
    models = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return models[0] if models else platform.processor() or platform.machine()


# the table


def table(rows: Sequence[Row], *, brief: bool = False) -> str:
    """Format the rows of one work and one number of environments as a table. Cells without a figure are empty.

    A brief table leaves out the ranges, and where the collector's time went: on a CPU it has at most 80 columns.
    """
    learning, gpu = (any(key in row for row in rows) for key in ("learner", "gpu"))
    title = "{work}: {n_envs} environments, fragments of {n_steps} steps".format(**rows[0])
    header = ["", *_COLLECTION_COLUMNS, *_TIME_COLUMNS.values()]
    lines = [[*header, *(_LEARNING_COLUMNS if learning else []), *(_GPU_COLUMNS if gpu else [])]]
    lines += [
        [row["engine"], *_collection_cells(row), *_learning_cells(row, learning), *_gpu_cells(row, gpu)] for row in rows
    ]
    if brief:
        shown = [name not in _NOT_BRIEF for name in lines[0]]
        lines = [list(compress(line, shown)) for line in lines]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    aligned = ["  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip() for line in lines]
    for k, row in enumerate(rows, 1):
        if "not available" in row:
            aligned[k] = f"{row['engine'].ljust(widths[0])}  not available: {row['not available']}"
    return "\n".join([title, *aligned])


def legend(rows: Sequence[Row], *, brief: bool = False) -> str:
    """Explain the columns that the tables of these rows have, in lines of 80 columns."""
    shown = {
        "steps/s": True,
        "range": not brief,
        "us: env": not brief,
        "learning": any("learner" in row for row in rows),
        "idle": any("gpu" in row for row in rows),
    }
    return "".join(text for column, text in _LEGEND.items() if shown[column])


def _collection_cells(row: Row) -> list[str]:
    if "alone" not in row:
        return [""] * len([*_COLLECTION_COLUMNS, *_TIME_COLUMNS])
    alone = row["alone"]
    spent = alone.get("microseconds per step", {})
    times = [f"{spent[activity]:.1f}" if activity in spent else "" for activity in _TIME_COLUMNS]
    return [*_rate_cells(alone), _format_ratio(alone["ratio to a"]), _format_ratio(alone["ratio to b"]), *times]


def _learning_cells(row: Row, shown: bool) -> list[str]:
    if "learner" not in row:
        return [""] * len(_LEARNING_COLUMNS) if shown else []
    both = row["learner"]
    update, overlap = both["seconds of training alone"]["median"], both["overlap efficiency"]
    return [*_rate_cells(both), _format_ratio(both["ratio to b"]), f"{1e3 * update:.1f}", f"{overlap:.2f}"]


def _gpu_cells(row: Row, shown: bool) -> list[str]:
    if "gpu" not in row:
        return [""] * len(_GPU_COLUMNS) if shown else []
    windows = row["gpu"]
    idle = [windows.get(window, {}).get("idle") for window in ("alone", "learner")]
    copying = windows["alone"].get("bytes per second while copying up")
    return [*("" if x is None else f"{x:.0%}" for x in idle), "" if copying is None else f"{copying / 1e9:.1f}"]


def _rate_cells(collection: Row) -> list[str]:
    rate = collection["steps per second"]
    return [_format_rate(rate["median"]), f"{_format_rate(rate['low'])}..{_format_rate(rate['high'])}"]


def _format_ratio(x: float) -> str:
    """Write a ratio with two decimals, or with two significant digits if it is below 0.1."""
    return f"{x:.2f}" if x >= 0.1 else f"{x:.2g}"


def _format_rate(x: float) -> str:
    """Write a rate with three digits, in thousands (k) or millions (M) if it is that large."""
    unit, name = next(((unit, name) for unit, name in ((1e6, "M"), (1e3, "k")) if x >= unit), (1.0, ""))
    x /= unit
    return f"{x:.{0 if x >= 100 else 1 if x >= 10 else 2}f}{name}"


# the picture


def draw(summary: Row, path: Path) -> None:
    """Draw a panel for each work and number of environments, and write the picture; do nothing without rows."""
    rows = [row for row in summary["rows"] if "n_envs" in row]
    works, n_envs = (list(dict.fromkeys(row[key] for row in rows)) for key in ("work", "n_envs"))
    if not rows:
        return
    grid = [
        [panel([row for row in rows if (row["work"], row["n_envs"]) == (work, n)]) for n in n_envs] for work in works
    ]
    machine = summary["machine"]
    cores = f"{machine['cores']} core{'s' * (machine['cores'] != 1)}"
    where = f"{machine['cpu']}, {cores}, {machine['device']}; {machine['date'][:10]}"
    figure = multiples(
        grid,
        lines=("stepping the environments and evaluating the networks, in a plain loop", "stepping alone"),
        title="Steps per second: as a multiple of the plain loop, and absolute",
        caption=fill(summary["command"], 30 + 80 * len(n_envs)) + "\n" + where,
    )
    figure.savefig(path)


def panel(rows: Sequence[Row]) -> Panel:
    """Return the content of one panel.

    ``rows`` are those of one work and one number of environments: limit a, limit b, and the engines.
    """
    limit_a, limit_b, *engines = rows
    unit = limit_b["alone"]["steps per second"]["median"]

    def bars(window: str) -> list[tuple[float, float, float] | None]:
        rates = [row[window]["steps per second"] if window in row else None for row in engines]
        return [rate and (rate["low"] / unit, rate["median"] / unit, rate["high"] / unit) for rate in rates]

    def labels(window: str) -> list[str]:
        rates = [row[window]["steps per second"]["median"] if window in row else None for row in engines]
        return ["" if rate is None else f"{rate / unit:.2f}   {_format_rate(rate)}/s" for rate in rates]

    windows = {"collection alone": "alone", "with a learner": "learner"}
    return Panel(
        title=f"{limit_b['work']}, {limit_b['n_envs']} environments",
        names=[row["engine"] for row in engines],
        bars={name: bars(window) for name, window in windows.items()},
        labels={name: labels(window) for name, window in windows.items()},
        ceiling=limit_a["alone"]["steps per second"]["median"] / unit,
    )
