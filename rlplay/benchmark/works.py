"""The works of the benchmark: environments, actors, and lengths of fragments."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import gym
import numpy as np
import numpy.typing as npt
from gym import spaces
from torch import nn

from ..engine.envs.gym_on_numpy2 import patch_gym
from ..zoo.actors import ActorCritic, NatureCNN, mlp

__all__ = ["Busy", "Pixels", "Sleep", "factory", "missing", "Work", "make_work"]

_EPISODE = 200
"""Steps of an episode, where it is for us to say."""

_MILLISECOND = 1e-3


class Pixels(gym.Env[npt.NDArray[np.uint8], int]):
    """A simulator of images, of a chosen cost: noise, four frames deep.

    Parameters
    ----------
    cost : float
        Seconds of CPU time that a step takes, with the interpreter lock held.

    Attributes
    ----------
    observation_space : Box, uint8, ``(4, 84, 84)``
        One of eight images that were drawn when it was made.
    action_space : Discrete(6)
        Without effect.
    """

    def __init__(self, cost: float = 0.0) -> None:
        self.observation_space = spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = spaces.Discrete(6)
        self._cost, self._t = cost, 0
        self._frames = np.random.default_rng(0).integers(256, size=(8, 4, 84, 84), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._t = 0
        return self._frames[0], {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Compute for as long as it is to cost, and show the next image."""
        _compute(self._cost)
        self._t += 1
        return self._frames[self._t % 8], 1.0, self._t == _EPISODE, False, {}


class _Plain(gym.Env[npt.NDArray[np.float32], int]):
    """Four zeros and two actions. Subclasses say what a step costs."""

    def __init__(self) -> None:
        self.observation_space = spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = spaces.Discrete(2)
        self._t, self._obs = 0, np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._t = 0
        return self._obs, {}

    def step(self, action: int) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Take a while."""
        self._spend()
        self._t += 1
        return self._obs, 1.0, self._t == _EPISODE, False, {}

    def _spend(self) -> None:
        raise NotImplementedError


class Busy(_Plain):
    """A step computes, in Python, for 1 ms of this thread's CPU time: contention does not make it shorter."""

    def _spend(self) -> None:
        _compute(_MILLISECOND)


class Sleep(_Plain):
    """A step sleeps for 1 ms (and as long as it takes to be woken up)."""

    def _spend(self) -> None:
        time.sleep(_MILLISECOND)


def _compute(seconds: float) -> None:
    """Compute for so long, by the CPU time of this thread, and hold the interpreter lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def missing(work: str) -> str | None:
    """Say what a work needs that is not installed, if anything."""
    lacking = [name for name in ("ale_py", "gymnasium", "cv2") if work == "breakout" and find_spec(name) is None]
    return f"{', '.join(lacking)} not installed" if lacking else None


def factory(work: str, cost: float) -> Callable[[], Any]:
    """Return what makes an environment of a work; ``cost`` is that of a step of ``pixels``, in seconds."""
    made: dict[str, Callable[[], Any]] = {
        "cartpole": _cartpole,
        "pixels": partial(Pixels, cost),
        "breakout": _breakout,
        "busy": Busy,
        "sleep": Sleep,
    }
    return made[work]


def _cartpole() -> Any:
    env = gym.make("CartPole-v1")
    patch_gym()  # the limits step it too, which are not of the engine's making
    return env


def _breakout() -> Any:
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    raw = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(raw), 4)


class Work(NamedTuple):
    """What is to be collected."""

    name: str
    make_env: Callable[[], Any]
    """An environment with a Discrete action space; it travels to other processes."""
    make_actor: Callable[[int], ActorCritic]
    """From the number of actions to the user's module."""
    n_steps: Callable[[int], int]
    """From the number of environments to the length of a fragment."""


def make_work(name: str, *, cost: float = 0.0, n_steps: int | None = None) -> Work:
    """Make one of :data:`rlplay.benchmark.spec.WORKS`; see there.

    Parameters
    ----------
    cost : float
        Seconds of CPU time of a step of ``pixels``.
    n_steps : int, optional
        The length of a fragment. By default 128 for CartPole, 32 for images, and otherwise as long as 256 steps of
        single environments last, all told: a quarter of a second, one after the other.
    """
    images = name in ("pixels", "breakout")

    def length(n_envs: int) -> int:
        return n_steps or {"cartpole": 128, "pixels": 32, "breakout": 32}.get(name, max(2, 256 // n_envs))

    return Work(name, factory(name, cost), _convolutional if images else _small, length)


def _small(n_actions: int) -> ActorCritic:
    return ActorCritic(mlp(4, 64, 64, n_actions), mlp(4, 64, 64, 1))


def _convolutional(n_actions: int) -> ActorCritic:
    return ActorCritic(nn.Linear(512, n_actions), nn.Linear(512, 1), body=NatureCNN(4))
