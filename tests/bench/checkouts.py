"""Runs the same measurement in several checkouts of rlplay, in processes that take turns."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from statistics import median

HERE = Path(__file__).resolve().parents[2]

REPEAT = """
for _ in range(10):
    next(feed)
print("ready", flush=True)
for line in sys.stdin:
    began = time.process_time()
    for _ in range(int(line)):
        next(feed)
    print((time.process_time() - began) / int(line) / n_transitions, flush=True)
"""
"""The end of a program for :class:`Run` that has a ``feed`` and the number of transitions in a fragment, and imports
``sys`` and ``time``. What it prints are CPU seconds per transition; child processes are not counted."""


class Run:
    """A fresh process that imports rlplay from one checkout, and measures whenever it is asked to.

    Its program prints "ready", then for each line of its input (a number of repetitions) the CPU seconds that these
    took.
    """

    def __init__(self, program: str, checkout: Path, *args: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", program, *args],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        if self._read() != "ready":
            raise SystemExit(f"the measurement could not be started in {checkout}")

    def _read(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout is not None else ""

    def measure(self, n: int) -> None:
        """Repeat ``n`` times, and note the CPU seconds."""
        print(n, file=self._process.stdin, flush=True)
        self.seconds.append(float(self._read()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def one_round(program: str, checkouts: Sequence[Path], *args: str, turns: int, n: int) -> list[float]:
    """Start a process in each checkout, and let them take turns; return the median CPU seconds of a turn of each."""
    runs = [Run(program, checkout, *args) for checkout in checkouts]
    for k in range(turns):
        first = k % len(runs)  # no run is always the first
        for run in runs[first:] + runs[:first]:
            run.measure(n)
    for run in runs:
        run.close()
    return [median(run.seconds) for run in runs]
