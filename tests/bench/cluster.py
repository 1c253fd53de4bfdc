"""What a fragment costs with `cluster` and with `multi`, on one machine: environments that compute nothing.

    python -m tests.bench.cluster --n-actors 2 --n-actors 4

Both feeds are open, and are asked for a fragment in turns, with `lag=0`. A line says how many milliseconds a fragment
takes (the median), and how many of processor time in the learner's process, its threads included (the mean). The
difference between two engines is what messages and copies cost, since all else is the same. Needs `.[ray]`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from functools import partial
from statistics import median
from typing import Any

import gymnasium
import numpy as np
import torch

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import cluster, multi

T, N_PER_ACTOR = 128, 8


class Still(gymnasium.Env):
    """Observes always the same."""

    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, shape: tuple[int, ...], dtype: Any) -> None:
        self.observation_space = gymnasium.spaces.Box(0, 1, shape, dtype)
        self._obs = np.zeros(shape, dtype)

    def reset(self, *, seed: Any = None, options: Any = None) -> Any:
        return self._obs, {}

    def step(self, action: Any) -> Any:
        return self._obs, 0.0, False, False, {}


WORKS: dict[str, tuple[Callable[[], Still], int]] = {
    "4 numbers": (partial(Still, (4,), np.float32), 50),
    "an image": (partial(Still, (84, 84, 4), np.uint8), 12),
}
"""For each kind of observation: a factory, and the number of fragments of each engine."""


class Weights(BaseActorModule):
    """Acts 0, and has a million weights."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(1000, 1000))

    def forward(self, obs: Any, *, fin: Any, **ignored: Any) -> Any:
        return fin.long(), (), {}


def measure(work: str, n_actors: int) -> None:
    """Measure both engines in turns, and print a line for each."""
    factory, n = WORKS[work]
    engines = {"multi": multi.rollout, "cluster": cluster.rollout}
    feeds = {
        engine: rollout(factory, Weights(), T, n_actors, N_PER_ACTOR, lag=0) for engine, rollout in engines.items()
    }
    took: dict[str, list[tuple[float, float]]] = {engine: [] for engine in feeds}
    for k in range(2 + n):
        for engine, feed in feeds.items():
            began = time.perf_counter(), time.process_time()
            fragment = next(feed)
            if k >= 2:
                took[engine].append((time.perf_counter() - began[0], time.process_time() - began[1]))
    size = sum(x.nbytes for x in nested.leaves(fragment)) / 1e6
    for engine, seconds in took.items():
        elapsed, spent = zip(*seconds, strict=True)
        each, learner = 1e3 * median(elapsed), 1e3 * sum(spent) / n
        what = f"{work}, {n_actors} collectors, {size:.1f} MB"
        print(f"{what}, {engine}: {each:.1f} ms a fragment, {learner:.1f} ms of the learner's process")
        feeds[engine].close()


def main() -> None:
    """Measure, and print a line for each work, number of collectors and engine."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--n-actors", type=int, action="append", help="by default 2 and 4")
    torch.set_num_threads(1)
    for n_actors in parser.parse_args().n_actors or [2, 4]:
        for work in WORKS:
            measure(work, n_actors)


if __name__ == "__main__":
    main()
