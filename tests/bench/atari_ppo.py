"""Measures Breakout with PPO, by ale-py's vector environment: rlplay beside a loop written by hand.

    python -m tests.bench.atari_ppo --device cuda --out FOLDER

Steps per second, in windows that take turns: stepping alone, with random actions; a loop after CleanRL's
``ppo_atari_envpool.py``; and ``threaded(compile=True)``, whose environments are one vector environment, and two or more
of fewer parts. Each window makes whole fragments. PPO has 4 epochs of 4 minibatches, as in that script. Writes a
timeline of the last case, ``atari_ppo.png``.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import islice
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import numpy as np
import torch
from ale_py.vector_env import AtariVectorEnv
from torch import nn

from rlplay.algo import ppo
from rlplay.algo.returns import gae
from rlplay.engine.acting.group import split
from rlplay.engine.rollout import threaded
from rlplay.plotting import timeline
from rlplay.zoo.actors import ActorCritic, NatureCNN

N_ACTIONS, T = 4, 128
EPOCHS, MINIBATCHES = 4, 4


def make_envs(n_envs: int, groups: int = 1) -> list[Any]:
    """Make vector environments of Breakout, with so many parts together."""
    return [AtariVectorEnv("breakout", part.stop - part.start) for part in split(n_envs, groups)]


def make_learner(device: str) -> tuple[ActorCritic, torch.optim.Optimizer]:
    """Make an actor-critic, and its optimiser."""
    torch.manual_seed(0)
    actor = ActorCritic(nn.Linear(512, N_ACTIONS), nn.Linear(512, 1), body=NatureCNN(4)).to(device)
    return actor, torch.optim.Adam(actor.parameters(), lr=2.5e-4, eps=1e-5, fused=True)


def descend(actor: nn.Module, optim: torch.optim.Optimizer, loss: torch.Tensor) -> None:
    """Make one step of the optimiser."""
    optim.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
    optim.step()


def stepping(n_envs: int) -> Iterator[int]:
    """Step with random actions; yield the number of steps after each fragment."""
    (env,) = make_envs(n_envs)
    env.reset(seed=0)
    actions = np.random.default_rng(0).integers(N_ACTIONS, size=(T, n_envs))
    while True:
        for row in actions:
            env.step(row)
        yield T * n_envs


def by_hand(n_envs: int, device: str) -> Iterator[int]:
    """Collect and learn by turns, as CleanRL's script does; yield the number of steps after each fragment."""
    (env,) = make_envs(n_envs)
    actor, optim = make_learner(device)
    shape = T, n_envs
    obs = torch.zeros((*shape, 4, 84, 84), dtype=torch.uint8, device=device)
    act = torch.zeros(shape, dtype=torch.int64, device=device)
    log_p, rew, value = (torch.zeros(shape, device=device) for _ in range(3))
    fin = torch.zeros(shape, dtype=torch.bool, device=device)
    now = torch.as_tensor(env.reset(seed=0)[0], device=device)

    def evaluate(x: torch.Tensor) -> tuple[torch.distributions.Categorical, torch.Tensor]:
        features = actor.body(x[None])[0]
        return torch.distributions.Categorical(logits=actor.policy(features)), actor.value(features).squeeze(-1)

    while True:
        with torch.no_grad():
            for t in range(T):
                obs[t] = now
                policy, value[t] = evaluate(now)
                act[t] = policy.sample()
                log_p[t] = policy.log_prob(act[t])
                x, r, terminated, truncated, _ = env.step(act[t].cpu().numpy())
                rew[t] = torch.as_tensor(r, device=device)
                now = torch.as_tensor(x, device=device)
                fin[t] = torch.as_tensor(terminated | truncated, device=device)
            advantage = gae(rew, fin, value, gamma=0.99, C=0.95, bootstrap=evaluate(now)[1])
        flat = [x.flatten(0, 1) for x in (obs, act, log_p, advantage, advantage + value)]
        for _ in range(EPOCHS):
            for index in torch.randperm(T * n_envs, device=device).chunk(MINIBATCHES):
                o, a, old, adv, target = (x[index] for x in flat)
                policy, v = evaluate(o)
                ratio = (policy.log_prob(a) - old).exp()
                adv = (adv - adv.mean()) / (adv.std() + 1e-8)
                surrogate = torch.min(adv * ratio, adv * ratio.clamp(0.9, 1.1)).mean()
                error = (target - v).square().mean()
                descend(actor, optim, 0.5 * error - surrogate - 0.01 * policy.entropy().mean())
        yield T * n_envs


def by_rlplay(feed: Any, actor: ActorCritic, optim: torch.optim.Optimizer | None) -> Iterator[int]:
    """Take fragments, and learn from them if there is an optimiser; yield the number of steps of each."""
    options: Any = {"gamma": 0.99, "clip": 0.1, "normalise": "minibatch"}
    options |= {"n_epochs": EPOCHS, "n_minibatches": MINIBATCHES}
    for fragment in feed:
        if optim is not None:
            for loss, _ in ppo.losses(fragment, actor, **options):
                descend(actor, optim, loss)
        yield fragment.env.valid.numel()


class Run:
    """Something to measure. A feed stands still between its windows."""

    def __init__(self, device: str, feed: Any = None) -> None:
        self._device, self._feed = device, feed
        self._pause = ExitStack()
        self.stand_still()

    def measure(self, fragments: Iterator[int], n: int) -> float:
        """Take so many fragments, after one that does not count; return the steps per second."""
        self.go_on()
        next(fragments)
        self._synchronize()
        started = perf_counter()
        steps = sum(islice(fragments, n))
        self._synchronize()
        seconds = perf_counter() - started
        self.stand_still()
        return steps / seconds

    def go_on(self) -> None:
        """Resume the feed, if there is one."""
        self._pause.close()

    def stand_still(self) -> None:
        """Pause the feed, if there is one."""
        if self._feed is not None:
            self._pause.enter_context(self._feed.pause())

    def _synchronize(self) -> None:
        if self._device != "cpu":
            torch.cuda.synchronize()


def main() -> None:
    """Measure all cases by turns, print a table, and draw a timeline of the last case."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--n-envs", type=int, default=64)
    parser.add_argument("--groups", type=int, nargs="*", default=[1, 2], help="numbers of vector environments")
    parser.add_argument("--fragments", type=int, default=1, help="in each window")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--out", type=Path, default=Path("rlplay-bench"))
    args = parser.parse_args()
    n, device = args.n_envs, args.device

    with ExitStack() as stack:
        run = Run(device)
        cases = {"stepping alone": (run, stepping(n)), "by hand, with PPO": (run, by_hand(n, device))}
        for groups in args.groups:
            actor, optim = make_learner(device)
            feed = stack.enter_context(threaded.rollout(make_envs(n, groups), actor, T, seed=0, compile=True))
            run = Run(device, feed)
            stack.callback(run.go_on)
            name = f"threaded, {groups} vector environment{'s' * (groups > 1)}"
            cases[f"{name}, alone"] = run, by_rlplay(feed, actor, None)
            cases[f"{name}, with PPO"] = run, by_rlplay(feed, actor, optim)
        rates: dict[str, list[float]] = {name: [] for name in cases}
        for k in range(1 + args.rounds):
            for name, (run, fragments) in cases.items():
                rate = run.measure(fragments, args.fragments)
                if k:  # the first round warms up
                    rates[name].append(rate)
                print(f"round {k}: {name}: {rate:,.0f}", flush=True)

        print(f"Breakout, {n} environments, {T} steps a fragment: steps per second, and multiples of stepping alone")
        alone = median(rates["stepping alone"])
        for name, found in rates.items():
            middle = median(found)
            print(f"{name:42} {middle:9,.0f} ({min(found):,.0f}..{max(found):,.0f})  {middle / alone:.2f}")

        run.go_on()
        with feed.trace() as trace:
            for _ in islice(by_rlplay(feed, actor, optim), 4):
                pass
        print(feed.stats)
    args.out.mkdir(parents=True, exist_ok=True)
    timeline(trace, title=f"Breakout with PPO, {name}").savefig(args.out / "atari_ppo.png")


if __name__ == "__main__":
    main()
