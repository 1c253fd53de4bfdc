"""Measures what recording costs for different observation spaces, beside another checkout and a loop by hand.

    python -m tests.bench.spaces PATH_OF_ANOTHER_CHECKOUT

CPU microseconds per transition of eight environments that cost nothing, with an actor that costs little, in `same`
with 25 steps a fragment. "by hand" is a loop that writes the same leaves into arrays of the same shapes.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import median

from tests.bench.checkouts import HERE, REPEAT, one_round

MEASURED = '''
import sys, time
import numpy as np
import torch
from gymnasium import spaces
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same

torch.set_num_threads(1)
name, by_hand = sys.argv[1], sys.argv[2] == "by hand"
B, T = 8, 25
inf = np.inf
vector, image = spaces.Box(-inf, inf, (4,), np.float32), spaces.Box(0, 255, (16, 16), np.uint8)
nest = {"image": image, "pair": spaces.Tuple((vector, spaces.Discrete(5))), "speed": spaces.Box(-1, 1, (), np.float32)}
space, obs = {
    "Box vector": (vector, np.ones(4, np.float32)),
    "Discrete": (spaces.Discrete(500), 3),
    "float64 in a float32 Box": (vector, np.ones(4)),
    "image": (image, np.ones((16, 16), np.uint8)),
    "Dict of four Discrete": (spaces.Dict({k: spaces.Discrete(4) for k in "abcd"}), dict.fromkeys("abcd", 2)),
    "nested Dict": (
        spaces.Dict(nest),
        {"image": np.ones((16, 16), np.uint8), "pair": (np.ones(4, np.float32), 2), "speed": np.float32(0.5)},
    ),
}[name]


class Free:
    observation_space, action_space = space, spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return obs, {}

    def step(self, action):
        return obs, 1.0, False, False, {}


class Zero(BaseActorModule):
    def forward(self, obs, *, fin, **ignored):
        return torch.zeros(fin.shape, dtype=torch.int64), (), ()


def writers(space, obs, path=()):
    """List a path to each leaf, and an array of T rows for it."""
    if isinstance(space, spaces.Dict):
        return [w for key in space for w in writers(space[key], obs[key], (*path, key))]
    if isinstance(space, spaces.Tuple):
        return [w for key in range(len(space)) for w in writers(space[key], obs[key], (*path, key))]
    return [(path, np.zeros((T, B, *space.shape), space.dtype))]


def hand_loop():
    leaves = writers(space, obs)
    envs, zero = [Free() for _ in range(B)], Zero()
    rew, terminated, truncated = np.zeros((T, B), np.float32), np.zeros((T, B), bool), np.zeros((T, B), bool)
    act = np.zeros((T, B), np.int64)
    fin = torch.zeros(1, B, dtype=torch.bool)
    while True:
        for t in range(T):
            with torch.no_grad():
                act[t] = zero(None, fin=fin)[0][0].numpy()
            for j, (env, action) in enumerate(zip(envs, act[t])):
                value, rew[t, j], terminated[t, j], truncated[t, j], _ = env.step(action)
                for path, array in leaves:
                    part = value
                    for key in path:
                        part = part[key]
                    array[t, j] = part
        yield [array.copy() for _, array in leaves], act.copy(), rew.copy(), terminated.copy(), truncated.copy()


feed = hand_loop() if by_hand else same.rollout([Free() for _ in range(B)], Zero(), T, seed=0)
n_transitions = B * T
'''

SPACES = ["Box vector", "Discrete", "float64 in a float32 Box", "image", "Dict of four Discrete", "nested Dict"]


def main() -> None:
    """Measure, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("other", type=Path, help="the checkout to compare with: before")
    parser.add_argument("--pairs", type=int, default=5, help="rounds of fresh processes")
    options = parser.parse_args()
    print("| observations | before, us | after, us | by hand, us |\n| --- | --- | --- | --- |")
    for name in SPACES:
        rounds = [
            one_round(MEASURED + REPEAT, [options.other.resolve(), HERE], name, "rlplay", turns=20, n=10)
            + one_round(MEASURED + REPEAT, [HERE], name, "by hand", turns=20, n=10)
            for _ in range(options.pairs)
        ]
        figures = [f"{1e6 * median(times):.2f}" for times in zip(*rounds, strict=True)]
        print(f"| {name} | {' | '.join(figures)} |", flush=True)


if __name__ == "__main__":
    main()
