"""What is told of the measurements: rows of plain values, as they go into the JSON file."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from datetime import datetime, timezone
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from .gpu import Activity
from .limits import Limit
from .measure import Spread, Turn, efficiency, rates, times
from .runs import Run

__all__ = ["Row", "gpu_row", "limit_row", "machine", "run_row"]

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
