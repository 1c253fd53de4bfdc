"""The rows of the report, as a table for the screen."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["LEGEND", "table"]

Row = dict[str, Any]

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
