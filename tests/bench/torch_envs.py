"""Environments in torch: steps per second of many CartPoles through `same`, by hand, and of gymnasium's in a list.

    python -m tests.bench.torch_envs [--envs 4096] [--steps 32] [--rounds 5] [--threads 2] [--device cpu]

The loop by hand records the fields that a fragment has, into new memory for each fragment. Each figure is the median of
some rounds, in which the ways take turns; in brackets the least and the most of them. Beside it: microseconds of the
processor for each transition, which other programs on the machine disturb less.
"""

from __future__ import annotations

import argparse
from statistics import median
from time import perf_counter, process_time

import gymnasium
import torch

from rlplay.engine.rollout import same
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch

SECONDS = 1.0
"""For how long a way is measured in each round."""


def make_actor(device):
    torch.manual_seed(0)
    return ActorCritic(mlp(4, 64, 2), mlp(4, 64, 1)).to(device)


def through(envs, device, n_steps, **options):
    """Yield the number of transitions of each fragment that `same` collects."""
    with same.rollout(envs, make_actor(device), n_steps, seed=0, **options) as feed:
        for fragment in feed:
            yield fragment.env.valid.numel()


def by_hand(env, device, n_steps):
    """Yield the number of transitions of each fragment that a loop written by hand collects."""
    actor, n = make_actor(device), env.num_envs
    actor.generator = torch.Generator(device).manual_seed(0)
    obs, _ = env.reset(seed=0)
    act, rew = torch.zeros(n, dtype=torch.int64, device=device), torch.zeros(n, device=device)
    stepno, fin = torch.zeros_like(act), torch.ones(n, dtype=torch.bool, device=device)
    returns = torch.zeros(n, device=device)
    while True:
        like = {"device": device}
        rows = (
            torch.empty(1 + n_steps, n, dtype=torch.int64, **like), torch.empty(1 + n_steps, n, 4, **like),
            torch.empty(1 + n_steps, n, dtype=torch.int64, **like), torch.empty(1 + n_steps, n, **like),
            torch.empty(1 + n_steps, n, dtype=torch.bool, **like),
        )  # fmt: skip
        logits, value = torch.empty(1 + n_steps, n, 2, **like), torch.empty(1 + n_steps, n, **like)
        ends, valid = torch.empty(2, n_steps, n, dtype=torch.bool, **like), torch.ones(n_steps, n, **like).bool()
        ended = torch.empty(n_steps, n, **like)
        with torch.no_grad():
            for t in range(1 + n_steps):
                for row, x in zip(rows, (stepno, obs, act, rew, fin), strict=True):
                    row[t] = x
                state = [x[None] for x in (stepno, obs, act, rew, fin)]
                acted, _, info = actor.step(*state, hx=(), virtual=t == n_steps)
                logits[t], value[t] = info["logits"][0], info["value"][0]
                if t == n_steps:
                    break
                act = acted[0]
                obs, rew, terminated, truncated, _ = env.step(act)
                ends[0, t], ends[1, t] = terminated, truncated
                fin = terminated | truncated
                stepno = torch.where(fin, 0, stepno + 1)
                returns = returns + rew
                ended[t] = torch.where(fin, returns, torch.nan)
                returns = torch.where(fin, 0.0, returns)
        yield valid.numel()


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("envs", 4096), ("steps", 32), ("rounds", 5), ("threads", 2)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--device", default="cpu")
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    n, n_steps, device = args.envs, args.steps, args.device
    synchronize = torch.cuda.synchronize if torch.device(device).type == "cuda" else lambda: None
    ways = {
        f"same, {n} in torch, compile=True": through(CartPoleBatch(n, device), device, n_steps, compile=True),
        f"same, {n} in torch": through(CartPoleBatch(n, device), device, n_steps),
        f"same, {n} in torch, compile=True, final=True": through(
            CartPoleBatch(n, device), device, n_steps, compile=True, final=True
        ),
        f"by hand, {n} in torch": by_hand(CartPoleBatch(n, device), device, n_steps),
        "same, 64 of gymnasium in a list, compile=True": through(
            [gymnasium.make("CartPole-v1") for _ in range(64)], device, n_steps, compile=True
        ),
    }
    speeds, costs = ({name: [] for name in ways} for _ in range(2))
    for way in ways.values():
        for _ in range(3):
            next(way)
    for _ in range(args.rounds):
        for name, way in ways.items():
            synchronize()
            began, spent, steps = perf_counter(), process_time(), 0
            while perf_counter() < began + SECONDS:
                steps += next(way)
            synchronize()
            speeds[name].append(steps / (perf_counter() - began))
            costs[name].append(1e6 * (process_time() - spent) / steps)
    for name, found in speeds.items():
        bounds = f"({min(found):,.0f} to {max(found):,.0f})"
        print(f"{name:50} {median(found):12,.0f} steps/s  {bounds:24}  {median(costs[name]):.3f} us a transition")
    for what, by_name, way in (("steps/s", speeds, 1), ("processor time", costs, -1)):
        first, *_, hand, single = (median(found) ** way for found in by_name.values())
        print(f"compile=True, by {what}: {first / hand:.2f} x by hand, {first / single:.1f} x 64 of gymnasium")


if __name__ == "__main__":
    main()
