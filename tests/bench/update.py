"""Measure how much `torch.compile` and a fused optimizer speed up a learner, on the CPU with one thread; print tables.

Not a test: pytest does not collect this file. An update is everything that the learner does with one fragment of
CartPole: for A2C one step of Adam, for PPO 16 (four epochs, four minibatches each). The actor has two networks 4-64-64.
All learners are measured alternately in one process: first with fragments collected before, then each with a feed of
`same`, one update per fragment:

    python tests/bench/update.py --algorithm a2c --n-envs 8

The first update includes the compiling, with an empty compiler cache on disk. For the first compiled learner it also
includes the work that the compiler does only once on a machine.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable
from contextlib import ExitStack
from functools import partial
from itertools import product
from tempfile import TemporaryDirectory
from typing import Any

import gym
import torch

from rlplay.algo import a2c, ppo
from rlplay.engine import Fragment
from rlplay.engine.rollout import same
from rlplay.zoo.actors import ActorCritic, mlp

T = 128

Update = Callable[[Fragment], None]


def make_actor() -> ActorCritic:
    torch.manual_seed(0)
    return ActorCritic(mlp(4, 64, 64, 2), mlp(4, 64, 64, 1))


def make_a2c(actor: ActorCritic, optim: torch.optim.Optimizer, compiled: bool) -> Update:
    loss_of = torch.compile(a2c.loss) if compiled else a2c.loss

    def learn(fragment: Fragment) -> None:
        loss, _ = loss_of(fragment, actor, gamma=0.99, C=0.95)
        optim.zero_grad()
        loss.backward()
        optim.step()

    return learn


def make_ppo(actor: ActorCritic, optim: torch.optim.Optimizer, compiled: bool) -> Update:
    def learn(fragment: Fragment) -> None:
        for loss, _ in ppo.losses(fragment, actor, gamma=0.99, n_epochs=4, n_minibatches=4):
            optim.zero_grad()
            loss.backward()
            optim.step()

    return torch.compile(learn) if compiled else learn


ALGORITHMS = {"a2c": make_a2c, "ppo": make_ppo}


class Learner:
    """An actor, its update, and the measurements."""

    def __init__(self, algorithm: str, compiled: bool, fused: bool) -> None:
        self.name = f"{'compiled' if compiled else 'eager'}, Adam{'(fused=True)' if fused else ''}"
        self.actor = make_actor()
        # a learning rate so small that the policy hardly changes: all learners collect the same episodes
        optim = torch.optim.Adam(self.actor.parameters(), lr=1e-9, fused=fused)
        self.update = ALGORITHMS[algorithm](self.actor, optim, compiled)
        self.first = 0.0
        self.updates: list[float] = []
        self.rates: dict[bool, list[float]] = {False: [], True: []}

    def feed(self, n_envs: int, **options: Any) -> Any:
        return same.rollout([gym.make("CartPole-v1") for _ in range(n_envs)], self.actor, T, seed=0, **options)


def seconds(call: Callable[[], Any]) -> float:
    start = time.perf_counter()
    call()
    return time.perf_counter() - start


def measure(learners: list[Learner], n_envs: int, repeats: int, window_seconds: float) -> None:
    """Measure all learners, and store the results in them."""
    with learners[0].feed(n_envs) as feed:
        fragments = [next(feed) for _ in range(3)]
    for learner in learners:
        torch._dynamo.reset()
        with TemporaryDirectory() as cache:
            os.environ["TORCHINDUCTOR_CACHE_DIR"] = cache
            learner.first = seconds(partial(learner.update, fragments[0]))
    torch._dynamo.reset()

    def updates(learner: Learner) -> None:
        for fragment in fragments:
            learner.update(fragment)

    for learner in learners:
        updates(learner)
    for _ in range(repeats):
        for learner in learners:
            learner.update(fragments[0])  # not counted: it warms the caches, which the other learners have filled
            learner.updates.append(seconds(partial(updates, learner)) / len(fragments))

    with ExitStack() as stack:
        feeds = [
            (learner, compiled, stack.enter_context(learner.feed(n_envs, compile=compiled)))
            for learner, compiled in product(learners, (False, True))
        ]

        def collect(learner: Learner, feed: Any, count: int) -> None:
            for _ in range(count):
                learner.update(next(feed))

        counts = []
        for learner, _, feed in feeds:
            collect(learner, feed, 2)
            counts.append(max(1, round(window_seconds / (seconds(partial(collect, learner, feed, 3)) / 3))))
        for _ in range(repeats):
            for (learner, compiled, feed), count in zip(feeds, counts, strict=True):
                rate = count * T * n_envs / seconds(partial(collect, learner, feed, count))
                learner.rates[compiled].append(rate)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--algorithm", choices=ALGORITHMS, nargs="+", default=list(ALGORITHMS))
    parser.add_argument("--n-envs", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--repeats", type=int, default=15)
    parser.add_argument("--turn", type=float, default=0.2, help="approximate seconds of one measurement with a feed")
    args = parser.parse_args()
    torch.set_num_threads(1)
    header = ["", "first update, s", "update, ms", "range", "`same`, steps/s", "`same(compile=True)`, steps/s"]
    for algorithm, n_envs in product(args.algorithm, args.n_envs):
        learners = [Learner(algorithm, *how) for how in product((False, True), (False, True))]
        measure(learners, n_envs, args.repeats, args.turn)
        print(f"\n{algorithm}, {n_envs} environments, fragments of {T} steps\n")
        print(f"| {' | '.join(header)} |\n| {' | '.join(['---'] * len(header))} |")
        for learner in learners:
            times = [1e3 * x for x in learner.updates]
            cells = [learner.name, f"{learner.first:.1f}", f"{statistics.median(times):.2f}"]
            cells += [f"{min(times):.2f} .. {max(times):.2f}"]
            cells += [f"{statistics.median(rates):.0f}" for rates in learner.rates.values()]
            print(f"| {' | '.join(cells)} |", flush=True)


if __name__ == "__main__":
    main()
