"""How much of the collecting for SAC is hidden behind the training: `threaded` and `single`, at lag 1, on two cores.

    python -m tests.bench.overlap_sac [--repeats 7]

For each engine three kinds of windows take turns: collecting alone, training alone (from a buffer that is full), and
both. The figure is the wall time of both over the larger of the two alone; without any overlap it would be the sum over
the larger. Once with as many updates for each fragment as take about as long as collecting it, and once with one update
for each step, as in the page `sac`. On a machine with other work the figure says nothing: its last column, processor
time over wall time while both run, is then well below that of a quiet machine.
"""

from __future__ import annotations

import argparse
import copy
from collections.abc import Callable
from functools import partial
from statistics import median
from time import perf_counter, process_time
from typing import Any

import gymnasium as gym
import torch
from torch import nn

from rlplay.algo import sac
from rlplay.engine.rollout import single, threaded
from rlplay.replay import Uniform
from rlplay.zoo.actors import mlp
from rlplay.zoo.continuous import Critics, SquashedGaussian

N_ENVS, T = 8, 16


def make_env() -> Any:
    return gym.make("Pendulum-v1")


def make_learner() -> tuple[SquashedGaussian, Callable[[Any], None]]:
    """Make an actor, and the function that makes one update of SAC."""
    actor = SquashedGaussian(mlp(3, 128, 128, 2, activation=nn.ReLU), [-2.0], [2.0])
    critic = Critics(4, 128, 128)
    target, log_alpha = copy.deepcopy(critic), nn.Parameter(torch.zeros(()))
    optims = [torch.optim.Adam(x, lr=1e-3) for x in (critic.parameters(), actor.parameters(), [log_alpha])]

    def descend(optim: torch.optim.Optimizer, loss: torch.Tensor) -> None:
        optim.zero_grad()
        loss.backward()
        optim.step()

    def update(batch: Any) -> None:
        descend(optims[0], sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)[0])
        loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
        descend(optims[1], loss)
        descend(optims[2], sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-1))
        for slow, fast in zip(target.parameters(), critic.parameters(), strict=True):
            slow.data.lerp_(fast.data, 0.005)

    return actor, update


def seconds(call: Callable[[], None]) -> tuple[float, float]:
    """Return the wall seconds and the processor seconds of this process."""
    began = perf_counter(), process_time()
    call()
    return perf_counter() - began[0], process_time() - began[1]


def measure(engine: str, per_step: bool, repeats: int, turn: float) -> str:
    """Measure one engine; return a line of the table."""
    torch.manual_seed(0)
    actor, update = make_learner()
    buffer = Uniform(20_000)
    rollout = {
        "threaded": partial(threaded.rollout, [make_env] * N_ENVS, actor, T),
        "single": partial(single.rollout, make_env, actor, T, N_ENVS),
    }[engine]
    with rollout(lag=1, seed=0, final=True) as feed:

        def collect(n: int) -> None:
            for _ in range(n):
                buffer.commit(next(feed))

        def train(n: int, n_updates: int) -> None:
            for _ in range(n * n_updates):
                update(buffer.sample(128, gamma=0.99))

        def both(n: int, n_updates: int) -> None:
            for _ in range(n):
                collect(1)
                train(1, n_updates)

        collect(20)
        train(1, 20)
        fragment, one = seconds(partial(collect, 20))[0] / 20, seconds(partial(train, 1, 20))[0] / 20
        n_updates = T * N_ENVS if per_step else max(1, round(fragment / one))
        n = max(2, round(turn / max(fragment, n_updates * one)))
        found: list[list[tuple[float, float]]] = [[], [], []]
        for _ in range(repeats):
            calls = (partial(collect, n), partial(train, n, n_updates), partial(both, n, n_updates))
            for times, call in zip(found, calls, strict=True):
                times.append(seconds(call))
    collecting, training, together = (median(wall for wall, _ in times) for times in found)
    busy = median(cpu / wall for wall, cpu in found[2])
    ratio = together / max(collecting, training)
    cells = [engine, str(n_updates), f"{1e3 * collecting / n:.1f}", f"{1e3 * training / n:.1f}"]
    return f"| {' | '.join([*cells, f'{1e3 * together / n:.1f}', f'{ratio:.2f}', f'{busy:.2f}'])} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--turn", type=float, default=1.0, help="approximate seconds of one window")
    args = parser.parse_args()
    torch.set_num_threads(1)
    print("| engine | updates a fragment | collecting, ms | training, ms | both, ms | ratio | processor / wall |")
    print("| --- | --- | --- | --- | --- | --- | --- |")
    for per_step in (False, True):
        for engine in ("threaded", "single"):
            print(measure(engine, per_step, args.repeats, args.turn), flush=True)


if __name__ == "__main__":
    main()
