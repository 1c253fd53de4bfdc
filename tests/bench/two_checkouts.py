"""Compares the CPU time of collecting in two checkouts of rlplay, in alternating processes.

    python tests/bench/two_checkouts.py PATH_OF_ANOTHER_CHECKOUT --engine same --engine same+compile --engine single

Each measurement is a fresh process that collects fragments of eight CartPoles, throws the first ones away, and reports
the CPU time of the rest, that of its child processes included. A third run in each round, of the other checkout once
more, shows what two runs of one commit differ by. Needs Linux, for the CPU time of living children.
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
name, n_fragments = sys.argv[1], int(sys.argv[2])
engine, *options = name.split("+")
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
    ticks = 0
    for pid in pids:
        stat = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        ticks += int(stat[11]) + int(stat[12])
    return time.process_time() + ticks / os.sysconf("SC_CLK_TCK")


with feed:
    for _ in range(5):
        next(feed)
    began = cpu_seconds()
    for _ in range(n_fragments):
        next(feed)
    print(cpu_seconds() - began)
'''


def cpu_time(checkout: Path, engine: str, n_fragments: int) -> float:
    """Run the measurement in one checkout; return CPU seconds."""
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", MEASURED, engine, str(n_fragments)],
        cwd=checkout,
        env={**os.environ, "PYTHONPATH": str(checkout)},
        stdout=subprocess.PIPE,
        text=True,
        check=True,
    )
    return float(done.stdout)


def main() -> None:
    """Measure, and print a line an engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with: before")
    parser.add_argument("--engine", action="append", help="same, threaded or single; +compile")
    parser.add_argument("--pairs", type=int, default=15)
    parser.add_argument("--fragments", type=int, default=40, help="measured in each process")
    options = parser.parse_args()
    here, other = Path(__file__).resolve().parents[2], options.other.resolve()
    for engine in options.engine or ["same"]:
        before, after, again = [], [], []
        for k in range(options.pairs):
            runs = [(before, other), (after, here), (again, other)]
            for times, checkout in runs[k % 3 :] + runs[: k % 3]:  # no run is always the first of its round
                times.append(cpu_time(checkout, engine, options.fragments))
        step = 1e6 / (options.fragments * 128 * 8)
        print(
            f"{engine}: before {median(before) * step:.2f} us, after {median(after) * step:.2f} us a transition; "
            f"after / before {median(after) / median(before):.3f}; before again / before "
            f"{median(again) / median(before):.3f} ({options.pairs} rounds)",
            flush=True,
        )


if __name__ == "__main__":
    main()
