"""Environments and a factory that cannot be pickled, or not be unpickled. No torch: worker processes import this."""

from __future__ import annotations

import os
import threading

import numpy as np
from gym.spaces import Box, Dict, Discrete


class Env:
    observation_space, action_space = Box(-1, 1, (3,), np.float32), Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.n = 0
        return np.zeros(3, np.float32), {}

    def step(self, action):
        self.n += 1
        return np.zeros(3, np.float32), 1.0, self.n == 3, False, {}


class NotHere:
    """Can be pickled here, but not be unpickled in another process."""

    def __init__(self):
        self.pid = os.getpid()

    def __setstate__(self, state):
        if state["pid"] != os.getpid():
            raise ConnectionError("the licence is for one process")

    def __call__(self):
        return Env()


class Owned(Box):
    """Refers to its environment, which cannot be pickled."""

    def __init__(self, owner, high=1):
        super().__init__(-1, high, (3,), np.float32)
        self.owner = owner


class OwnedDict(Dict):
    def __init__(self, owner):
        super().__init__({"x": Box(-1, 1, (3,), np.float32)})
        self.lock = threading.Lock()


class Unpicklable(Env):
    def __init__(self, high=1):
        self.lock = threading.Lock()
        self.observation_space = Owned(self, high)


class Nested(Env):
    def __init__(self):
        self.observation_space = OwnedDict(self)

    def reset(self, **options):
        return {"x": super().reset()[0]}, {}

    def step(self, action):
        obs, *others = super().step(action)
        return {"x": obs}, *others


class Action(Env):
    def __init__(self):
        self.action_space = Discrete(2)
        self.action_space.owner = threading.Lock()
