"""Measures what it gains to copy images without releasing the interpreter lock, beside a learner in Python.

    python -m tests.bench.image_copies

`threaded` with 64 environments that show 28 KB each and cost nothing, and a learner of small operations of torch.
By turns, with NumPy's copies, which release the lock, and with the engine's own. Prints medians.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter
from typing import Any

import torch

from rlplay.benchmark.works import Pixels
from rlplay.engine import BaseActorModule
from rlplay.engine.envs import rows
from rlplay.engine.rollout import threaded

B, T = 64, 32
OWN = rows._LARGE


class Idle(BaseActorModule):
    """Always takes action 0."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1))  # tells where the actor is

    def forward(self, obs: torch.Tensor, *, fin: torch.Tensor, hx: Any = None, **ignored: Any) -> Any:
        """Return zeros."""
        return fin.long(), hx, ()


def measure(n_operations: int, seconds: float) -> tuple[float, float]:
    """Return the steps per second, and the learner's milliseconds for each fragment."""
    x, n, busy = torch.zeros(64, 64), 0, 0.0
    with threaded.rollout([Pixels() for _ in range(B)], Idle(), T, lag=1) as feed:
        for _ in range(3):
            next(feed)
        started = perf_counter()
        while perf_counter() - started < seconds:
            next(feed)
            n, before = n + 1, perf_counter()
            for _ in range(n_operations):
                x.add_(1)
            busy += perf_counter() - before
        return n * B * T / (perf_counter() - started), 1e3 * busy / n


def main() -> None:
    """Measure by turns, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operations", type=int, nargs="*", default=[0, 1000, 4000], help="for each fragment")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--seconds", type=float, default=1.5)
    args = parser.parse_args()
    torch.set_num_threads(1)
    ways = {"NumPy's": 10**9, "the engine's": OWN}
    found: dict[tuple[str, int], list[tuple[float, float]]] = {(w, n): [] for n in args.operations for w in ways}
    for _ in range(args.rounds):
        for way, n in found:
            rows._LARGE = ways[way]
            found[way, n].append(measure(n, args.seconds))
    print("| copies | learner's operations | steps per second | learner, ms |\n| --- | --- | --- | --- |")
    for (way, n), values in found.items():
        rates, busy = zip(*values, strict=True)
        print(f"| {way} | {n} | {median(rates):,.0f} ({min(rates):,.0f}..{max(rates):,.0f}) | {median(busy):.1f} |")


if __name__ == "__main__":
    main()
