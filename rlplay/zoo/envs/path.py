"""A path along which one wrong step is the last."""

from __future__ import annotations

from typing import Any

import gym
import numpy as np
import numpy.typing as npt
from gym import spaces

__all__ = ["NarrowPath"]

Obs = npt.NDArray[np.float32]


class NarrowPath(gym.Env[Obs, int]):
    """Walk as far as the path goes.

    - Each step, one action, drawn uniformly, is the way on, and the observation shows which. Reward 1.
    - Any other falls off the path: reward 0, terminated. So is the episode at the path's end.
    - A greedy learner needs no foresight here; but how much a step is worth depends on how many are still to come, so
      that the critic has something to learn. The observation tells how far one is.

    Parameters
    ----------
    length : int
        How many right steps there are.
    n_actions : int
        How many actions there are to choose from.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_actions + 1,)``
        The way on, one-hot, and the fraction of the path that lies behind.
    action_space : Discrete
        ``n_actions``.
    optimum : float
        ``length``.
    chance : float
        ``p + p^2 + ... + p^length`` with ``p = 1 / n_actions``: the k-th reward takes k right steps.
    """

    def __init__(self, length: int = 10, n_actions: int = 3) -> None:
        self.length, self.n_actions = length, n_actions
        self.observation_space = spaces.Box(0.0, 1.0, (n_actions + 1,), np.float32)
        self.action_space = spaces.Discrete(n_actions)
        self.optimum = float(length)
        self.chance = sum(n_actions**-k for k in range(1, length + 1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Go back to where the path begins."""
        super().reset(seed=seed)
        self._behind = 0
        return self._look(), {}

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Take a step; it is the last if it is wrong, or if the path ends here."""
        right = bool(action == self._way)
        self._behind += right
        return self._look(), float(right), not right or self._behind == self.length, False, {}

    def _look(self) -> Obs:
        """Draw the way on, and show it."""
        self._way = int(self.np_random.integers(self.n_actions))
        obs = np.zeros(self.n_actions + 1, np.float32)
        obs[self._way] = 1
        obs[-1] = self._behind / self.length
        return obs
