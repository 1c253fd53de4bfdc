"""Measures what it costs to save: one checkpoint per ten fragments, of actor, optimiser and feed.

    python -m tests.bench.saving

An A2C learner. In each round ten fragments are collected without saving, ten with ``feed.state_dict()`` after the
first, and ten with ``checkpoint.save`` of it too, in a random order. Prints medians over the rounds, with quartiles, in
percent of the ten fragments without saving of the same round. "Together" is what the ten fragments take longer: the
overlap that saving loses counts, but the noise of all ten fragments is in it. "Inside" is the time from the call of
``state_dict`` to the end of saving: all that there is in ``same``, while in the other engines fragments are finished
meanwhile. The processor's time is that of this process alone, with all its threads.
"""

from __future__ import annotations

import argparse
import random
import tempfile
from collections.abc import Callable
from functools import partial
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, process_time
from typing import Any, NamedTuple

import gymnasium as gym
import torch
from torch import nn

from rlplay import checkpoint
from rlplay.algo import a2c
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, single, threaded
from rlplay.zoo.actors import ActorCritic, mlp

EACH = 10
"""Fragments in a block, and so for one checkpoint."""

WAYS = "nothing", "state", "state and file"


class Work(NamedTuple):
    """Environments, and an actor for them."""

    factory: Callable[[], gym.Env]
    make_actor: Callable[[], BaseActorModule]
    n_envs: int
    n_steps: int


def pixels_to(n: int) -> nn.Module:
    """Make a convolutional network for four frames of 84 x 84."""
    return nn.Sequential(
        nn.Conv2d(4, 16, 8, 4), nn.ReLU(), nn.Conv2d(16, 32, 4, 2), nn.ReLU(), nn.Flatten(), nn.Linear(2592, n)
    )


def breakout() -> gym.Env:
    """Make ALE Breakout, with four frames of 84 x 84."""
    import ale_py

    gym.register_envs(ale_py)
    env = gym.wrappers.AtariPreprocessing(gym.make("ALE/Breakout-v5", frameskip=1), noop_max=2)
    return gym.wrappers.FrameStackObservation(env, 4)


class Pixels(BaseActorModule):
    """Policy and value from frames."""

    def __init__(self) -> None:
        super().__init__()
        self.net = pixels_to(5)

    def forward(self, obs: torch.Tensor, *, hx: Any = None, **ignored: Any) -> Any:
        """Return the actions of the largest perturbed logits."""
        out = self.net(obs.flatten(0, 1).float() / 255).unflatten(0, obs.shape[:2])
        logits, value = out[..., :4], out[..., 4]
        gumbel = -torch.empty_like(logits).exponential_(generator=self.generator).log()
        return (logits + gumbel).argmax(-1), hx, {"logits": logits, "value": value}


WORKS = {
    "cartpole": Work(partial(gym.make, "CartPole-v1"), lambda: ActorCritic(mlp(4, 64, 2), mlp(4, 64, 1)), 8, 128),
    "breakout": Work(breakout, Pixels, 8, 32),
}


def open_feed(engine: str, work: Work, actor: BaseActorModule) -> Any:
    """Open the feed of an engine."""
    if engine == "single":
        return single.rollout(work.factory, actor, work.n_steps, work.n_envs, lag=1, seed=0)
    rollout, lag = {"same": (same.rollout, 0), "threaded": (threaded.rollout, 1)}[engine]
    return rollout([work.factory] * work.n_envs, actor, work.n_steps, lag=lag, seed=0)


class Block(NamedTuple):
    """Seconds of ten fragments."""

    wall: float
    processor: float
    wall_inside: float
    processor_inside: float


def measure(engine: str, work: Work, rounds: int, path: Path) -> dict[str, list[Block]]:
    """Return the blocks of each way of saving."""
    torch.manual_seed(0)
    actor, dice = work.make_actor(), random.Random(0)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
    found: dict[str, list[Block]] = {way: [] for way in WAYS}
    with open_feed(engine, work, actor) as feed:
        for k in range(-1, rounds):
            for way in dice.sample(WAYS, len(WAYS)):
                begin, inside = clocks(), (0.0, 0.0)
                for n in range(EACH):
                    loss, _ = a2c.loss(next(feed), actor, gamma=0.99)
                    optim.zero_grad()
                    loss.backward()
                    optim.step()
                    feed.episodes()
                    if n == 0 and way != "nothing":
                        before = clocks()
                        state = {"actor": actor.state_dict(), "optim": optim.state_dict(), "feed": feed.state_dict()}
                        if way == "state and file":
                            checkpoint.save(path, state)
                        inside = since(before)
                if k >= 0:  # not the first, which warms up
                    found[way].append(Block(*since(begin), *inside))
    return found


def clocks() -> tuple[float, float]:
    """Return wall and processor time."""
    return perf_counter(), process_time()


def since(before: tuple[float, float]) -> tuple[float, float]:
    """Return wall and processor time since then."""
    wall, processor = clocks()
    return wall - before[0], processor - before[1]


def report(name: str, found: dict[str, list[Block]], size: int) -> None:
    """Print the rows of one feed."""
    base = found["nothing"]
    for way in WAYS[1:]:
        pairs = list(zip(found[way], base, strict=True))
        ratios = [
            [mine.wall / plain.wall - 1 for mine, plain in pairs],
            [mine.processor / plain.processor - 1 for mine, plain in pairs],
            [mine.wall_inside / plain.wall for mine, plain in pairs],
            [mine.processor_inside / plain.processor for mine, plain in pairs],
        ]
        cells = " | ".join("{1:.1%} ({0:.1%}..{2:.1%})".format(*quantiles(one, n=4)) for one in ratios)
        ten = f"{1000 * median(x.wall for x in base):.0f}, {1000 * median(x.processor for x in base):.0f}"
        print(f"| {name} | {way} | {cells} | {ten} | {size / 1000:.0f} KB |", flush=True)


def main() -> None:
    """Measure each engine, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--engine", nargs="*", choices=["same", "threaded", "single"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="folder for the checkpoints; by default a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| feed | saved | together: wall | processor | inside: wall | processor | ten fragments, ms | file |")
    print("| --- | --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        path = Path(folder) / "run.pt"
        for name in args.work:
            for engine in args.engine or ("same", "threaded", "single"):
                try:
                    found = measure(engine, WORKS[name], args.rounds, path)
                except (NotImplementedError, ImportError) as error:
                    print(f"| {name}, {engine} | cannot be measured: {error} |")
                    continue
                report(f"{name}, {engine}", found, path.stat().st_size)


if __name__ == "__main__":
    main()
