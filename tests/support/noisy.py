"""An environment with a random generator inside. Imports no torch, so that worker processes need not either."""

import gymnasium
import numpy as np


class Noisy(gymnasium.Env):
    """An environment with a random generator inside, which reuses the array of its observations."""

    def __init__(self):
        self.observation_space, self.action_space = gymnasium.spaces.Box(-9, 9, (3,)), gymnasium.spaces.Discrete(2)
        self.dice, self.obs = np.random.default_rng(0), np.zeros(3, np.float32)

    def reset(self, *, seed=None, options=None):
        if seed is not None:
            self.dice = np.random.default_rng(seed)
        self.obs[:] = self.dice.normal(size=3).clip(-9, 9)
        return self.obs, {}

    def step(self, action):
        self.obs[int(action)] = self.dice.normal()
        return self.obs, self.dice.random(), self.dice.random() < 0.1, self.dice.random() < 0.05, {"hint": self.obs[0]}
