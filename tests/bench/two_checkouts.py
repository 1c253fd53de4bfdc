"""Compares the CPU time of collecting in two checkouts of rlplay, in processes that take turns.

    python tests/bench/two_checkouts.py PATH_OF_ANOTHER_CHECKOUT --engine same --engine same+compile --engine single

A round starts three fresh processes: one of this checkout and two of the other. Each makes a feed of eight CartPoles
and collects a few fragments at a time while the other two wait, so that all three see the same state of the machine.
What is reported is the CPU time, that of child processes included. The two processes of the other checkout show what
two runs of one commit differ by. Needs Linux, for the CPU time of living children.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
from pathlib import Path
from statistics import median

MEASURED = '''
import os, sys, time
from pathlib import Path
import gymnasium as gym
import torch
from rlplay.engine.rollout import same, single, threaded
from rlplay.zoo.actors import ActorCritic, mlp

torch.set_num_threads(1)
torch.manual_seed(0)
engine, *options = sys.argv[1].split("+")
actor = ActorCritic(mlp(4, 64, 64, 2), mlp(4, 64, 64, 1))
factory = lambda: gym.make("CartPole-v1")
options = {"seed": 0, "compile": "compile" in options}
if engine == "single":
    feed = single.rollout(factory, actor, 128, 8, **options)
else:
    feed = {"same": same, "threaded": threaded}[engine].rollout([factory] * 8, actor, 128, **options)


def cpu_seconds():
    """CPU time of this process and of its living children."""
    pids = [pid for task in Path("/proc/self/task").iterdir() for pid in (task / "children").read_text().split()]
    children = sum(int(Path(f"/proc/{pid}/schedstat").read_text().split()[0]) for pid in pids)
    return time.process_time() + children / 1e9


with feed:
    for _ in range(5):
        next(feed)
    print("ready", flush=True)
    for line in sys.stdin:
        began = cpu_seconds()
        for _ in range(int(line)):
            next(feed)
        print(cpu_seconds() - began, flush=True)
'''


class Run:
    """One process that collects in one checkout, when it is asked to."""

    def __init__(self, checkout: Path, engine: str) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-W", "ignore", "-c", MEASURED, engine],
            cwd=checkout,
            env={**os.environ, "PYTHONPATH": str(checkout)},
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self.seconds: list[float] = []
        if self._read() != "ready":
            raise SystemExit(f"{engine} could not be started in {checkout}")

    def _read(self) -> str:
        return self._process.stdout.readline().strip() if self._process.stdout is not None else ""

    def collect(self, n_fragments: int) -> None:
        """Collect, and note the CPU seconds."""
        print(n_fragments, file=self._process.stdin, flush=True)
        self.seconds.append(float(self._read()))

    def close(self) -> None:
        """End the process."""
        self._process.communicate()


def measure(checkouts: list[Path], engine: str, turns: int, fragments: int) -> list[float]:
    """Run one round; return the median CPU seconds of a turn in each checkout."""
    runs = [Run(checkout, engine) for checkout in checkouts]
    for k in range(turns):
        for run in runs[k % 3 :] + runs[: k % 3]:  # no run is always the first
            run.collect(fragments)
    for run in runs:
        run.close()
    return [median(run.seconds) for run in runs]


def main() -> None:
    """Measure, and print a line an engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with: before")
    parser.add_argument("--engine", action="append", help="same, threaded or single; +compile")
    parser.add_argument("--pairs", type=int, default=15, help="rounds of three fresh processes")
    parser.add_argument("--turns", type=int, default=30, help="turns of each process of a round")
    parser.add_argument("--fragments", type=int, default=2, help="fragments in a turn")
    options = parser.parse_args()
    here, other = Path(__file__).resolve().parents[2], options.other.resolve()
    for engine in options.engine or ["same"]:
        rounds = [measure([other, here, other], engine, options.turns, options.fragments) for _ in range(options.pairs)]
        before, after, _ = (median(times) for times in zip(*rounds, strict=True))
        ratios, of_one_commit = ([times[k] / times[0] for times in rounds] for k in (1, 2))
        step = 1e6 / (options.fragments * 128 * 8)
        print(
            f"{engine}: before {before * step:.2f} us, after {after * step:.2f} us a transition; after / before "
            f"{median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); before again / before "
            f"{median(of_one_commit):.3f} ({min(of_one_commit):.3f} to {max(of_one_commit):.3f}); "
            f"{options.pairs} rounds",
            flush=True,
        )


if __name__ == "__main__":
    main()
