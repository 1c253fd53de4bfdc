"""Compares the CPU time of collecting in two checkouts of rlplay, in processes that take turns.

    python -m tests.bench.two_checkouts PATH_OF_ANOTHER_CHECKOUT --engine same --engine same+compile --engine single

A round starts three fresh processes: one of this checkout and two of the other. Each makes a feed of eight CartPoles
and collects a few fragments at a time while the other two wait, so that all three see the same state of the machine.
What is reported is the CPU time, that of child processes included. The two processes of the other checkout show what
two runs of one commit differ by. Engines that collect ahead in the background need turns of many fragments
(``--turns 6 --fragments 10``). Needs Linux, for the CPU time of living children.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from tests.bench.checkouts import HERE, one_round

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


def main() -> None:
    """Measure, and print a line an engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with: before")
    parser.add_argument("--engine", action="append", help="same, threaded or single; +compile")
    parser.add_argument("--pairs", type=int, default=15, help="rounds of three fresh processes")
    parser.add_argument("--turns", type=int, default=30, help="turns of each process of a round")
    parser.add_argument("--fragments", type=int, default=2, help="fragments in a turn")
    options = parser.parse_args()
    other = options.other.resolve()
    for engine in options.engine or ["same"]:
        rounds = [
            one_round(MEASURED, [other, HERE, other], engine, turns=options.turns, n=options.fragments)
            for _ in range(options.pairs)
        ]
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
