"""The works: which environments, which actor, and how long a fragment is."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

from torch import nn

from ..zoo.actors import ActorCritic, NatureCNN, mlp
from .environments import factory

__all__ = ["Work", "make_work"]


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
