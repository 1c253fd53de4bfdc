"""An environment of images, and an actor whose state and infos have rare dtypes and shapes."""

from __future__ import annotations

import sys

import cloudpickle
import gym.spaces
import numpy as np
import torch

from rlplay.engine import BaseActorModule

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else child processes would import this package


class RareDtypes(BaseActorModule):
    """An actor without parameters, with a recurrent state of several leaves, and with info of rare kinds."""

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        if hx is None:
            hx = {
                "a": torch.zeros(2, fin.shape[1], 3, dtype=torch.float64),
                "b": (torch.zeros(1, fin.shape[1]).long(),),
            }
        hx = {"a": hx["a"] + obs.double().mean((0, 2, 3, 4))[:, None], "b": (hx["b"][0] + 1,)}
        mean = obs.float().mean((2, 3, 4))
        default = torch.ones(fin.shape) / 3  # of the caller's default dtype
        info = {
            "bfloat16": mean.bfloat16(),
            "nothing": mean.new_zeros(*fin.shape, 0),
            "a": hx["a"][:1],
            "none": default,
        }
        return act.clone(), hx, info


class PixelEnv:
    """A class is a factory, and is given its seed."""

    observation_space = gym.spaces.Box(0, 255, (84, 84, 4), np.uint8)
    action_space = gym.spaces.Discrete(3)

    def __init__(self, seed):
        self._dice = np.random.default_rng(seed)

    def reset(self, *, seed=None):
        return self._dice.integers(0, 256, (84, 84, 4), np.uint8), {}

    def step(self, action):
        obs, _ = self.reset()
        return obs, 1.0, obs[0, 0, 0] < 64, False, {}


def learn_nothing(*_):
    """Change nothing: the actor has no parameters."""
