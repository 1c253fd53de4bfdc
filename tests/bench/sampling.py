"""Measures what `compile=True` gains for actors that sample in different ways, on eight CartPoles.

    python -m tests.bench.sampling

Reports CPU time per transition, eager and compiled.
"""

from __future__ import annotations

import argparse
from statistics import median

from tests.bench.checkouts import HERE, REPEAT, one_round

MEASURED = """
import sys, time
import gymnasium as gym
import torch
from torch import distributions, nn
from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same

torch.set_num_threads(1)
torch.manual_seed(0)
way, compiled = sys.argv[1], sys.argv[2] == "compile"


def net(n):
    return nn.Sequential(nn.Linear(4, 64), nn.Tanh(), nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, n))


class Actor(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.policy, self.value = net(2), net(1)

    def forward(self, obs, **ignored):
        logits = self.policy(obs)
        if way == "multinomial":
            act = torch.multinomial(logits.softmax(-1).flatten(0, 1), 1, generator=self.generator).view(obs.shape[:2])
        elif way == "Categorical":
            act = distributions.Categorical(logits=logits, validate_args=False).sample()
        elif way == "epsilon-greedy":
            act = sampling.epsilon_greedy(logits, 0.1, generator=self.generator)
        elif way == "normal noise":
            noise = torch.randn(logits.shape[:-1], generator=self.generator)
            act = (logits[..., 0] + logits[..., 1].exp() * noise > 0).long()
        else:
            act = sampling.categorical(logits, generator=self.generator)
        return act, (), {"logits": logits, "value": self.value(obs).squeeze(-1)}


feed = same.rollout([lambda: gym.make("CartPole-v1")] * 8, Actor(), 128, seed=0, compile=compiled)
n_transitions = 8 * 128
"""

WAYS = ["categorical of rlplay", "epsilon-greedy", "multinomial", "Categorical", "normal noise"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=3, help="rounds of fresh processes")
    options = parser.parse_args()
    print("| sampling | eager, us per transition | compiled | eager / compiled |\n| --- | --- | --- | --- |")
    for way in WAYS:
        rounds = [
            [one_round(MEASURED + REPEAT, [HERE], way, how, turns=20, n=2)[0] for how in ("eager", "compile")]
            for _ in range(options.pairs)
        ]
        eager, compiled = (1e6 * median(times) for times in zip(*rounds, strict=True))
        print(f"| {way} | {eager:.2f} | {compiled:.2f} | {eager / compiled:.2f} |", flush=True)


if __name__ == "__main__":
    main()
