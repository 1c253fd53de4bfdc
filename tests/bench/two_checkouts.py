"""Compares the CPU time of collecting in two checkouts of rlplay, in processes that take turns.

    python -m tests.bench.two_checkouts PATH_OF_ANOTHER_CHECKOUT --engine same --engine same+compile --engine single

    python -m tests.bench.two_checkouts PATH_OF_ANOTHER_CHECKOUT --work busy --turns 6 --fragments 1

A round starts three fresh processes: one of this checkout and two of the other. Each makes a feed of eight environments
and collects a few fragments at a time while the other two wait, so that all three see the same state of the machine.
The works are those of ``python -m rlplay bench``: CartPole, Breakout with the Nature CNN (needs ale-py, gymnasium and
OpenCV), and environments that compute in Python or sleep for a millisecond a step.

What is reported is the CPU time, that of child processes included. The two processes of the other checkout show what
two runs of one commit differ by. Engines that collect ahead in the background need turns of many fragments
(``--turns 6 --fragments 10``). Needs Linux, for the CPU time of living children.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from statistics import median

from tests.bench.checkouts import HERE, one_round

N_STEPS = {"cartpole": 128, "breakout": 32, "busy": 32, "sleep": 32}
"""The length of a fragment of each work."""

MEASURED = '''
import os, sys, time
from pathlib import Path
import gymnasium as gym
import numpy as np
import torch
from torch import nn
from rlplay.engine.rollout import same, single, threaded
from rlplay.zoo.actors import ActorCritic, NatureCNN, mlp


class Millisecond(gym.Env):
    observation_space, action_space = gym.spaces.Box(-1, 1, (4,), np.float32), gym.spaces.Discrete(2)

    def __init__(self, busy):
        self.busy, self.t, self.obs = busy, 0, np.zeros(4, np.float32)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.obs, {}

    def step(self, action):
        if self.busy:
            end = time.thread_time() + 1e-3
            while time.thread_time() < end:
                pass
        else:
            time.sleep(1e-3)
        self.t += 1
        return self.obs, 1.0, self.t == 200, False, {}


def breakout():
    import ale_py
    gym.register_envs(ale_py)
    env = gym.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return gym.wrappers.FrameStackObservation(gym.wrappers.AtariPreprocessing(env), 4)


torch.set_num_threads(1)
torch.manual_seed(0)
engine, *options = sys.argv[1].split("+")
work, n_steps = sys.argv[2], int(sys.argv[3])
factory = {
    "cartpole": lambda: gym.make("CartPole-v1"),
    "breakout": breakout,
    "busy": lambda: Millisecond(True),
    "sleep": lambda: Millisecond(False),
}[work]
if work == "breakout":
    actor = ActorCritic(nn.Linear(512, 4), nn.Linear(512, 1), body=NatureCNN(4))
else:
    actor = ActorCritic(mlp(4, 64, 64, 2), mlp(4, 64, 64, 1))
options = {"seed": 0, "compile": "compile" in options}
if engine == "single":
    feed = single.rollout(factory, actor, n_steps, 8, **options)
else:
    feed = {"same": same, "threaded": threaded}[engine].rollout([factory] * 8, actor, n_steps, **options)


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
    """Measure, and print a line for each work and engine."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with: before")
    parser.add_argument("--engine", action="append", help="same, threaded or single; +compile")
    parser.add_argument("--work", action="append", choices=list(N_STEPS))
    parser.add_argument("--pairs", type=int, default=15, help="rounds of three fresh processes")
    parser.add_argument("--turns", type=int, default=30, help="turns of each process of a round")
    parser.add_argument("--fragments", type=int, default=2, help="fragments in a turn")
    options = parser.parse_args()
    other = options.other.resolve()
    for work, engine in product(options.work or ["cartpole"], options.engine or ["same"]):
        n_steps = N_STEPS[work]
        rounds = [
            one_round(
                MEASURED, [other, HERE, other], engine, work, str(n_steps), turns=options.turns, n=options.fragments
            )
            for _ in range(options.pairs)
        ]
        before, after, _ = (median(times) for times in zip(*rounds, strict=True))
        ratios, of_one_commit = ([times[k] / times[0] for times in rounds] for k in (1, 2))
        step = 1e6 / (options.fragments * n_steps * 8)
        print(
            f"{work}, {engine}: before {before * step:.2f} us, after {after * step:.2f} us a transition; "
            f"after / before {median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f}); before again / before "
            f"{median(of_one_commit):.3f} ({min(of_one_commit):.3f} to {max(of_one_commit):.3f}); "
            f"{options.pairs} rounds",
            flush=True,
        )


if __name__ == "__main__":
    main()
