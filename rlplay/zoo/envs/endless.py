"""An environment that never terminates, with episodes truncated by a time limit."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["Endless"]

Obs = npt.NDArray[np.float32]


class Endless(gym.Env[Obs, np.int64]):
    """Gives reward 1 at every step, whatever the action, until a time limit truncates the episode.

    The observation is always the same, and so is the value of each state, ``1 / (1 - gamma)``. A critic that does not
    bootstrap from the last state of an episode learns a smaller value.

    Parameters
    ----------
    limit : int
        The length of an episode, in steps.

    Attributes
    ----------
    observation_space : Box, float32, ``(1,)``
        Always 1.
    action_space : Discrete(2)
        The action has no effect.
    optimum, chance : float
        The undiscounted return of every policy: ``limit``.
    """

    def __init__(self, limit: int = 20) -> None:
        self.limit = limit
        self.observation_space = gym.spaces.Box(0.0, 1.0, (1,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.optimum = self.chance = float(limit)

    def value(self, gamma: float) -> float:
        """Compute the value of every state under a discount in [0, 1)."""
        return 1 / (1 - gamma)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Set the step counter to zero."""
        super().reset(seed=seed)
        self._stepno = 0
        return np.ones(1, np.float32), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Increment the step counter."""
        self._stepno += 1
        return np.ones(1, np.float32), 1.0, False, self._stepno == self.limit, {}
