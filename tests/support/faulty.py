"""Environments and actors in which things go wrong, or merely happen, at a chosen call."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable

import numpy as np
import torch
from gym.spaces import Box, Discrete
from torch import nn

from rlplay.engine import BaseActorModule

LENGTH = 3  # steps in an episode of an `Env`, unless told otherwise


class Broken(Exception):
    """An exception that cannot be made again from its message."""

    def __init__(self, first: str, second: int) -> None:
        super().__init__(f"{first} and {second}")


class Script:
    """Counts calls by name, and does something at the n-th one. A copy of an actor goes by the very same script."""

    def __init__(self) -> None:
        self.counts: Counter[str] = Counter()
        self._acts: dict[tuple[str, int], Callable[[], object]] = {}

    def at(self, name: str, n: int, act: Callable[[], object]) -> Script:
        """Let this happen at the ``n``-th call from now on."""
        self._acts[name, self.counts[name] + n] = act
        return self

    def __call__(self, name: str) -> None:
        self.counts[name] += 1
        self._acts.get((name, self.counts[name]), bool)()

    def __deepcopy__(self, memo: object) -> Script:
        return self


def raising(error: BaseException) -> Callable[[], None]:
    """Make something that raises, from a function whose name is to be found in the traceback."""

    def explode() -> None:
        raise error

    return explode


class Stop:
    """A place where a thread says that it has come, and stays until it is released."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.release.wait(60), "nobody has released this"


class Env:
    """Tells how often it was reset and stepped: ``(episode, step)``. An episode ends after ``length`` steps.

    Its script hears of ``reset``, ``step`` and ``close``.
    """

    observation_space = Box(-np.inf, np.inf, (2,), np.float32)
    action_space = Discrete(2)

    def __init__(self, script: Script | None = None, length: int = LENGTH) -> None:
        self.script = Script() if script is None else script
        self.length = length
        self._now = [-1, 0]

    @property
    def counts(self) -> Counter[str]:
        return self.script.counts

    def reset(self, *, seed=None):
        self.script("reset")
        self._now = [self._now[0] + 1, 0]
        return self._obs(), {}

    def step(self, action):
        assert self.action_space.contains(action)
        self.script("step")
        self._now[1] += 1
        return self._obs(), float(self.counts["step"]), self._now[1] == self.length, False, {}

    def close(self):
        self.script("close")

    def _obs(self):
        return np.array(self._now, np.float32)


class Actor(BaseActorModule):
    """Tells its weight, and has a recurrent state that counts; its script hears of ``act``, ``look`` and ``forget``.

    (That is of steps, of virtual steps, and of resets of its recurrent state.)
    """

    def __init__(self, script: Script | None = None) -> None:
        super().__init__()
        self.script = Script() if script is None else script
        self.weight = nn.Parameter(torch.zeros(()))

    def reset(self, hx, at):
        self.script("forget")
        hx = hx.clone()
        hx[:, at] = 0
        return hx

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        self.script("look" if virtual else "act")
        if hx is None:
            hx = torch.zeros(1, fin.shape[1])
        return act.clone(), hx + 1, {"weight": self.weight.expand(fin.shape), "hx": hx.clone()}
