"""Seconds until PPO on CartPoles in torch has a mean return of 475 over 100 episodes, beside the demo with eight.

    python -m tests.bench.torch_ppo [--seeds 3]

Both train by one thread, in turn. The demo is A2C on eight CartPoles of gym; compiling and starting do not count.
"""

from __future__ import annotations

import argparse
import tempfile
from contextlib import redirect_stderr, redirect_stdout
from io import StringIO
from statistics import median
from time import perf_counter, process_time

import torch

from rlplay import demo
from tests.support.torch_ppo import train

SIZES = ((64, 64), (256, 32))


def run_demo(seed):
    """Return the wall seconds and the CPU seconds of the demo."""
    began = perf_counter(), process_time()
    with tempfile.TemporaryDirectory() as folder, redirect_stdout(StringIO()), redirect_stderr(StringIO()):
        demo.demo(engine="same", seed=seed, lag=0, out=folder)
    return perf_counter() - began[0], process_time() - began[1]


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    torch.set_num_threads(1)
    found = {}
    for seed in range(parser.parse_args().seeds):
        for n, n_steps in SIZES:
            steps, mean, *seconds = train(n, n_steps, seed, limit=1_000_000)
            found.setdefault(f"PPO, {n} in torch", []).append(seconds)
            print(f"PPO, {n} in torch, seed {seed}: {mean:.0f} after {steps:,} steps", flush=True)
        found.setdefault("demo, 8 of gym", []).append(run_demo(seed))
    for name, seconds in found.items():
        wall, cpu = zip(*seconds, strict=True)
        listed = ", ".join(f"{x:.1f}" for x in wall)
        print(f"{name:18} median {median(wall):.1f} s ({listed}); {median(cpu):.1f} s of the processor")


if __name__ == "__main__":
    main()
