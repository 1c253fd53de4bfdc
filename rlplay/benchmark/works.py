"""The works of the benchmark: environments, an actor, and the length of fragments, by name."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial
from importlib.util import find_spec
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
from torch import nn

from ..engine.envs.gym_on_numpy2 import patch_gym
from ..zoo.actors import ActorCritic, NatureCNN, mlp
from ..zoo.gym_or_gymnasium import gym

__all__ = ["Busy", "Pixels", "Sleep", "Work", "make_work", "missing_packages"]

_EPISODE_STEPS = 200
"""Length of every episode of :class:`Pixels`, :class:`Busy` and :class:`Sleep`."""

_MILLISECOND = 1e-3


class Work(NamedTuple):
    """A task that the engines are measured with."""

    name: str
    make_env: Callable[..., Any]
    """Makes an environment with a Discrete action space; can be pickled. A vector environment takes its size."""
    make_actor: Callable[[int], ActorCritic]
    """Makes the user's actor for a number of actions."""
    n_steps: Callable[[int], int]
    """Returns the length of a fragment for a number of environments."""
    vector: bool = False
    """Whether ``make_env`` makes a vector environment."""


def make_work(name: str, *, cost: float = 0.0, n_steps: int | None = None) -> Work:
    """Make a work.

    Parameters
    ----------
    name : str
        A key of :data:`rlplay.benchmark.spec.WORKS`, which describes the works.
    cost : float
        Seconds of CPU time of a step of ``pixels``; ignored by all other works.
    n_steps : int, optional
        The length of a fragment. By default 128 for CartPole, 32 for images, and ``max(2, 256 // n_envs)`` for the
        works whose step takes 1 ms: stepping the environments one after the other then takes about a quarter of a
        second.
    """
    make_env: dict[str, Callable[..., Any]] = {
        "cartpole": _make_cartpole,
        "pixels": partial(Pixels, cost),
        "breakout": _make_breakout,
        "atari-vector": _make_atari_vector,
        "busy": Busy,
        "sleep": Sleep,
    }
    images = ("pixels", "breakout", "atari-vector")
    make_actor = _make_convolutional if name in images else _make_small

    def length(n_envs: int) -> int:
        lengths = {"cartpole": 128} | dict.fromkeys(images, 32)
        return n_steps or lengths.get(name, max(2, 256 // n_envs))

    return Work(name, make_env[name], make_actor, length, vector=name == "atari-vector")


def missing_packages(work: str) -> str | None:
    """Return which packages that a work needs are not installed, with the remedy; None if nothing is missing."""
    needed = {"breakout": ("ale_py", "gymnasium", "cv2"), "atari-vector": ("ale_py", "gymnasium")}
    missing = [name for name in needed.get(work, ()) if find_spec(name) is None]
    return f'{", ".join(missing)} not installed: pip install -e ".[atari]"' if missing else None


class Pixels(gym.Env[npt.NDArray[np.uint8], np.int64]):
    """An environment of images whose step costs a chosen CPU time. The images are noise, four frames deep.

    Parameters
    ----------
    cost : float
        Seconds of CPU time of a step, during which the interpreter lock is held.

    Attributes
    ----------
    observation_space : Box, uint8, ``(4, 84, 84)``
        Observations are eight images in rotation, drawn when the environment is made.
    action_space : Discrete(6)
        Actions have no effect.
    """

    def __init__(self, cost: float = 0.0) -> None:
        self.observation_space = gym.spaces.Box(0, 255, (4, 84, 84), np.uint8)
        self.action_space = gym.spaces.Discrete(6)
        self._cost, self._t = cost, 0
        self._frames = np.random.default_rng(0).integers(256, size=(8, 4, 84, 84), dtype=np.uint8)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._t = 0
        return self._frames[0], {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Compute for the chosen time, and return the next image."""
        _compute(self._cost)
        self._t += 1
        return self._frames[self._t % 8], 1.0, self._t == _EPISODE_STEPS, False, {}


class _Constant(gym.Env[npt.NDArray[np.float32], np.int64]):
    """Base of environments whose observation is always four zeros; subclasses define what a step costs."""

    def __init__(self) -> None:
        self.observation_space = gym.spaces.Box(-1.0, 1.0, (4,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self._t, self._obs = 0, np.zeros(4, np.float32)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Any, dict[str, Any]]:
        """Begin an episode."""
        self._t = 0
        return self._obs, {}

    def step(self, action: np.int64) -> tuple[Any, float, bool, bool, dict[str, Any]]:
        """Spend the time that a step costs."""
        self._spend_time()
        self._t += 1
        return self._obs, 1.0, self._t == _EPISODE_STEPS, False, {}

    def _spend_time(self) -> None:
        raise NotImplementedError


class Busy(_Constant):
    """A step computes in Python for 1 ms of this thread's CPU time; so contention does not make it shorter."""

    def _spend_time(self) -> None:
        _compute(_MILLISECOND)


class Sleep(_Constant):
    """A step sleeps for 1 ms, and for the time that the operating system needs to wake the thread up."""

    def _spend_time(self) -> None:
        time.sleep(_MILLISECOND)


def _compute(seconds: float) -> None:
    """Compute for ``seconds`` of this thread's CPU time, and hold the interpreter lock."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


def _make_cartpole() -> Any:
    env = gym.make("CartPole-v1")
    patch_gym()  # the limits step the environment as well, and no engine has patched gym for them
    return env


def _make_breakout() -> Any:
    import ale_py
    import gymnasium

    gymnasium.register_envs(ale_py)
    raw = gymnasium.make("ALE/Breakout-v5", frameskip=1, repeat_action_probability=0.0)
    return gymnasium.wrappers.FrameStackObservation(gymnasium.wrappers.AtariPreprocessing(raw), 4)


def _make_atari_vector(n_envs: int) -> Any:
    from ale_py.vector_env import AtariVectorEnv

    return AtariVectorEnv("breakout", n_envs)


def _make_small(n_actions: int) -> ActorCritic:
    return ActorCritic(mlp(4, 64, 64, n_actions), mlp(4, 64, 64, 1))


def _make_convolutional(n_actions: int) -> ActorCritic:
    return ActorCritic(nn.Linear(512, n_actions), nn.Linear(512, 1), body=NatureCNN(4))
