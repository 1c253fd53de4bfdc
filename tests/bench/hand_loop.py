"""Compares `same` with lean loops written by hand: CartPole, and the user's own actor, which samples with torch.

    python -m tests.bench.hand_loop --n-envs 8 64

All record the same fields. "Calls the actor" calls the same module; "two dimensions" calls its two networks with inputs
``(B, ...)`` instead of ``(1, B, ...)``, which the contract of actors does not allow. What is measured are the intervals
between the beginnings of two steps of one fragment: their lower percentiles depend little on what else runs.
The loops take turns, a fragment each, in one process.
"""

from __future__ import annotations

import argparse
import gc
from collections.abc import Callable, Iterator
from time import perf_counter
from typing import Any

import gymnasium
import numpy as np
import torch
from torch import Tensor, nn

from rlplay.engine import BaseActorModule
from rlplay.engine.collector.collector import Collector
from rlplay.engine.rollout import same
from rlplay.zoo.actors import mlp

T = 100
PERCENTILES = 5, 10, 25

begun: list[float] = []
"""When each step of the present fragment has begun."""


def note_step() -> None:
    """Note that a step begins."""
    begun.append(perf_counter())


class Actor(BaseActorModule):
    """An actor-critic that samples with torch's own function."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.policy, self.value = mlp(4, 64, 64, 2), mlp(4, 64, 64, 1)

    def forward(self, obs: Tensor, **ignored: Any) -> tuple[Tensor, Any, dict[str, Tensor]]:
        logits = self.policy(obs)
        act = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1).view(obs.shape[:2])
        return act, (), {"logits": logits, "value": self.value(obs).squeeze(-1)}


def environments(n_envs: int) -> list[Any]:
    """Make the environments: with their time limit, without the checker, which only authors of environments need."""
    return [gymnasium.make("CartPole-v1", disable_env_checker=True) for _ in range(n_envs)]


def by_hand(n_envs: int, react: Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]) -> Iterator[Any]:
    """Collect fragments; ``react`` takes observations ``(B, 4)`` and returns actions, logits and values."""
    envs = environments(n_envs)
    now = np.stack([env.reset(seed=j)[0] for j, env in enumerate(envs)])
    while True:
        act, logits, val = torch.empty(T, n_envs, dtype=torch.int64), torch.empty(T, n_envs, 2), torch.empty(T, n_envs)
        obs, rew, ends = torch.empty(T + 1, n_envs, 4), torch.empty(T, n_envs), torch.zeros(2, T, n_envs).bool()
        see, rewards, (terminations, truncations) = obs.numpy(), rew.numpy(), ends.numpy()
        see[0] = now
        with torch.no_grad():
            for t in range(T):
                note_step()
                action, logits[t], val[t] = react(obs[t])
                act[t] = action
                following, reward = see[t + 1], rewards[t]
                for j, (env, a) in enumerate(zip(envs, action.numpy(), strict=True)):
                    seen, reward[j], terminated, truncated, _ = env.step(a)
                    if terminated or truncated:
                        terminations[t, j], truncations[t, j] = terminated, truncated
                        seen, _ = env.reset()
                    following[j] = seen
        now[:] = see[T]
        yield obs, act, logits, val, rew, ends


def by_calling(actor: Actor) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return a function that calls the actor, as the engine does."""

    def react(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        act, _, info = actor(x[None])
        return act[0], info["logits"][0], info["value"][0]

    return react


def in_two_dimensions(policy: nn.Module, value: nn.Module) -> Callable[[Tensor], tuple[Tensor, Tensor, Tensor]]:
    """Return a function that calls the networks without the dimension of time."""

    def react(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        logits = policy(x)
        return torch.multinomial(logits.softmax(-1), 1)[:, 0], logits, value(x)[:, 0]

    return react


def main() -> None:
    """Print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n-envs", type=int, nargs="+", default=[8, 64])
    parser.add_argument("--fragments", type=int, default=30, help="of each loop")
    options = parser.parse_args()
    torch.set_num_threads(1)
    pass_gate = Collector._pass_gate

    def note_and_pass_gate(collector: Collector) -> None:
        note_step()
        pass_gate(collector)

    Collector._pass_gate = note_and_pass_gate  # type: ignore[method-assign]
    print(f"| loop | environments | {' | '.join(f'{p} %, us' for p in PERCENTILES)} | speed of `same` |")
    print(f"| --- | --- |{' --- |' * (len(PERCENTILES) + 1)}")
    for n_envs in options.n_envs:
        actor = Actor()
        loops: dict[str, Iterator[Any]] = {
            "`same`": same.rollout(environments(n_envs), actor, T, seed=0),
            "by hand, calls the actor": by_hand(n_envs, by_calling(actor)),
            "by hand, two dimensions": by_hand(n_envs, in_two_dimensions(actor.policy, actor.value)),
        }
        taken: dict[str, list[float]] = {name: [] for name in loops}
        for k in range(options.fragments + 2):
            gc.collect()
            for name, loop in loops.items():
                begun.clear()
                next(loop)
                if k >= 2:
                    taken[name] += np.diff(begun).tolist()
        low = {name: 1e6 * np.percentile(times, PERCENTILES) for name, times in taken.items()}
        for name, times in low.items():
            ratios = "" if name == "`same`" else " / ".join(f"{x:.2f}" for x in times / low["`same`"])
            print(f"| {name} | {n_envs} | {' | '.join(f'{x:.1f}' for x in times)} | {ratios} |", flush=True)


if __name__ == "__main__":
    main()
