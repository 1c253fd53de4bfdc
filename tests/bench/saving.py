"""Measures what it costs to save: one checkpoint per ten fragments, of actor, optimiser and feed.

    python -m tests.bench.saving

An A2C learner. In each round ten fragments are collected without saving, ten with ``feed.state_dict()`` after the
first, and ten with ``checkpoint.save`` of it too, in a random order. So the overlap that saving loses counts. Prints
medians over the rounds, and the quartiles of the ratios; all ratios are to the ten fragments without saving of the same
round. The processor's time is that of this process alone.
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


def measure(engine: str, work: Work, rounds: int, path: Path) -> dict[str, list[tuple[float, float, float]]]:
    """Return, by the way of saving, the wall and processor seconds of each block, and the seconds inside of saving."""
    torch.manual_seed(0)
    actor, dice = work.make_actor(), random.Random(0)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
    found: dict[str, list[tuple[float, float, float]]] = {way: [] for way in WAYS}
    with open_feed(engine, work, actor) as feed:
        for k in range(-1, rounds):
            for way in dice.sample(WAYS, len(WAYS)):
                wall, processor, inside = perf_counter(), process_time(), 0.0
                for n in range(EACH):
                    loss, _ = a2c.loss(next(feed), actor, gamma=0.99)
                    optim.zero_grad()
                    loss.backward()
                    optim.step()
                    feed.episodes()
                    if n == 0 and way != "nothing":
                        before = perf_counter()
                        state = {"actor": actor.state_dict(), "optim": optim.state_dict(), "feed": feed.state_dict()}
                        if way == "state and file":
                            checkpoint.save(path, state)
                        inside = perf_counter() - before
                if k >= 0:  # not the first, which warms up
                    found[way].append((perf_counter() - wall, process_time() - processor, inside))
    return found


def report(name: str, found: dict[str, list[tuple[float, float, float]]], size: int) -> None:
    """Print the rows of one engine."""
    for way in WAYS[1:]:
        cells = []
        for kind in (0, 1):
            ratios = [mine[kind] / base[kind] - 1 for mine, base in zip(found[way], found["nothing"], strict=True)]
            low, middle, high = quantiles(ratios, n=4)
            cells.append(f"{100 * middle:.1f} % ({100 * low:.1f}..{100 * high:.1f})")
        base, inside = median(x[0] for x in found["nothing"]), median(x[2] for x in found[way])
        written = f"{size / 1000:.0f} KB" if way == "state and file" else ""
        print(f"| {name} | {way} | {' | '.join(cells)} | {1000 * inside:.1f} | {1000 * base:.0f} | {written} |")


def main() -> None:
    """Measure each engine, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--work", nargs="*", choices=WORKS, default=list(WORKS))
    parser.add_argument("--engine", nargs="*", choices=["same", "threaded", "single"])
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path, help="folder for the checkpoints; by default a temporary one")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| feed | saved | wall time | processor time | saving, ms | ten fragments, ms | file |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    with tempfile.TemporaryDirectory(dir=args.out) as folder:
        path = Path(folder) / "run.pt"
        for name in args.work:
            for engine in args.engine or ("same", "threaded", "single"):
                try:
                    found = measure(engine, WORKS[name], args.rounds, path)
                except (NotImplementedError, gym.error.Error) as error:
                    print(f"| {name}, {engine} | cannot be measured: {error} |")
                    continue
                report(f"{name}, {engine}", found, path.stat().st_size)


if __name__ == "__main__":
    main()
