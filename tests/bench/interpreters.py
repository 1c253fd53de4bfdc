"""Runs `python -m rlplay bench` in several interpreters, which take turns, and prints a table for each command.

    python -m tests.bench.interpreters "3.13t, lock off=3.13t/bin/python -X gil=0" "3.13=3.13/bin/python"

Each interpreter is given as NAME=COMMAND, and needs rlplay and gymnasium. The figures are medians over the rounds.
"""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
from collections import defaultdict
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

_CARTPOLE = "--work cartpole --engine same --engine threaded --engine single"
_MEASURED = (
    f"{_CARTPOLE} --n-envs 8",
    f"{_CARTPOLE} --n-envs 8 --n-envs 64 --learner-cost equal",
    "--work busy --n-envs 8 --engine same --engine threaded+threads2 --engine threaded+workers2 --learner-cost none",
)
_SHORT = "--repeats 2 --turn 0.3"
_SAME = "same"


def main() -> None:
    """Measure, and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("interpreters", metavar="NAME=COMMAND", nargs="+")
    parser.add_argument("--rounds", type=int, default=3)
    given = parser.parse_args()
    interpreters = dict(one.split("=", 1) for one in given.interpreters)
    # of each command: by the name of a figure, then of an interpreter, the values of all rounds
    found: list[dict[str, dict[str, list[float]]]] = [defaultdict(lambda: defaultdict(list)) for _ in _MEASURED]
    for _ in range(given.rounds):
        for options, figures in zip(_MEASURED, found, strict=True):
            for name, command in interpreters.items():
                for figure, value in _figures(_run(command, options)).items():
                    figures[figure][name].append(value)
    for options, figures in zip(_MEASURED, found, strict=True):
        print(f"\n    python -m rlplay bench {options} {_SHORT}\n")
        print(f"| | {' | '.join(interpreters)} |")
        print(f"| --- |{' --- |' * len(interpreters)}")
        for figure, of_interpreters in figures.items():
            medians = [f"{median(of_interpreters[name]):.3g}" for name in interpreters]
            print(f"| {figure} | {' | '.join(medians)} |")


def _run(command: str, options: str) -> list[dict[str, Any]]:
    """Run the benchmark once, and return its rows."""
    with TemporaryDirectory() as folder:
        bench = [*shlex.split(command), "-m", "rlplay", "bench", *shlex.split(f"{options} {_SHORT}"), "--out", folder]
        subprocess.run(bench, check=True, stdout=subprocess.DEVNULL)
        rows: list[dict[str, Any]] = json.loads(Path(folder, "bench.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _figures(rows: list[dict[str, Any]]) -> dict[str, float]:
    """Return what the tables show, by name."""
    figures = {}
    for row in rows:
        rate = {key: row[key]["steps per second"]["median"] for key in ("alone", "learner") if key in row}
        if row["engine"] == _SAME:
            of_same = rate
        case = f"{row['n_envs']} environments, {row['engine']}"
        figures[f"{case}: thousands of steps per second"] = rate["alone"] / 1e3
        if not row["engine"].startswith((_SAME, "stepping")):
            figures |= {f"{case}, {key}: multiple of `same`": rate[key] / of_same[key] for key in rate}
        if "learner" in row:
            figures[f"{case}: overlap"] = row["learner"]["overlap efficiency"]
    return figures


if __name__ == "__main__":
    main()
