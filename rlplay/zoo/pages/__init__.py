"""One page for each algorithm: a complete program to read, to run, and to copy.

``python -m rlplay.zoo.pages.sac --env Pendulum-v1 --seed 0`` trains, and prints the mean return of the last episodes.
All pages have one pattern: ``train(env, seed, steps)`` has the networks, the hyperparameters and the training loop in
sight. It is a generator: after each fragment it yields the number of environment steps so far, and the returns of the
episodes that have ended meanwhile.

``a2c``, ``ppo``, ``impala``
    Actor-critics, on CartPole. ``ppo`` takes any kind of action.
``dqn``, ``c51``, ``qrdqn``, ``rainbow``
    Q-learning from a replay buffer, on CartPole.
``r2d2``
    Recurrent Q-learning from sequences, on a memory task.
``sac``, ``td3``
    Continuous control from a replay buffer, on Pendulum.
``her``
    Goals relabelled in hindsight, on bit flipping.
``rnd``
    Curiosity by random network distillation, on a task with a rare reward.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from typing import Any, TypeAlias

import numpy as np
import torch

from .. import envs
from ..gym_or_gymnasium import gym

__all__ = ["make", "run"]

Training: TypeAlias = Iterator[tuple[int, list[float]]]
"""Yields, after each fragment, the number of environment steps, and the returns of the episodes that ended."""


def make(env: str, n: int, *, clip: bool = False) -> list[Any]:
    """Make environments by name.

    Parameters
    ----------
    env : str
        The name of one of :mod:`rlplay.zoo.envs`, or of one that gymnasium (or gym) knows. Observations of a Box are
        converted to float32, which networks take: MuJoCo's are float64, others integers. That needs gymnasium.
    n : int
        The number of environments.
    clip : bool
        Whether real actions beyond the bounds of their space are clipped to them before the environment gets them:
        needed where actions are normally distributed.
    """
    return [getattr(envs, env)() if env in envs.__all__ else _made(env, clip) for _ in range(n)]


def _made(name: str, clip: bool) -> Any:
    env = gym.make(name)
    if isinstance(env.observation_space, gym.spaces.Box) and env.observation_space.dtype != np.float32:
        env = gym.wrappers.DtypeObservation(env, np.float32)
    return gym.wrappers.ClipAction(env) if clip and isinstance(env.action_space, gym.spaces.Box) else env


def run(train: Callable[[str, int, int], Training], *, env: str, steps: int, every: int = 1000) -> None:
    """Run a page as a program: read ``--env``, ``--seed`` and ``--steps``, train, and print returns.

    Parameters
    ----------
    train : function
        ``train(env, seed, steps)``.
    env, steps
        The defaults of the options.
    every : int
        The number of environment steps between two lines. There is a line for the end of the training as well.
    """
    parser = argparse.ArgumentParser(description=train.__doc__)
    parser.add_argument("--env", default=env, help="the environment's name; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=steps, help="environment steps; default: %(default)s")
    options = parser.parse_args()
    if options.seed < 0 or options.steps < 1:
        parser.error(f"--seed must be at least 0, and --steps at least 1; got {options.seed} and {options.steps}")
    torch.set_num_threads(1)  # for networks this small, one thread is the fastest
    returns: list[float] = []
    step = printed = 0
    for step, ended in train(options.env, options.seed, options.steps):
        returns = [*returns, *ended][-20:]
        if step >= printed + every and returns:
            print(_line(step, returns))
            printed = step
    if step > printed:
        print(_line(step, returns))


def _line(step: int, returns: list[float]) -> str:
    if not returns:
        return f"{step:9,} steps: no episode has ended"
    return f"{step:9,} steps: mean return of the last {len(returns)} episodes {sum(returns) / len(returns):.3g}"
