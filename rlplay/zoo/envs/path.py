"""A path on which one wrong action terminates the episode."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["NarrowPath"]

Obs = npt.NDArray[np.float32]


class NarrowPath(gym.Env[Obs, np.int64]):
    """Take the action that the observation shows, for ``length`` steps.

    - At each step one action, drawn uniformly, is right, and the observation shows which one. The right action gives
      reward 1.
    - Any other action gives reward 0 and terminates the episode. After ``length`` right actions the episode terminates
      as well.
    - The greedy policy, which maximises the immediate reward, is optimal. The value of a state depends on the number of
      steps left, so a critic has to use the last element of the observation.

    Parameters
    ----------
    length : int
        The number of right actions to the end of the path.
    n_actions : int
        The number of actions.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_actions + 1,)``
        The right action, one-hot, and the number of right actions so far divided by ``length``.
    action_space : Discrete
        ``n_actions``.
    optimum : float
        The best return: ``length``.
    chance : float
        The expected return of random actions: ``p + p^2 + ... + p^length`` with ``p = 1 / n_actions``, since the k-th
        reward needs k right actions.
    """

    def __init__(self, length: int = 10, n_actions: int = 3) -> None:
        self.length, self.n_actions = length, n_actions
        self.observation_space = gym.spaces.Box(0.0, 1.0, (n_actions + 1,), np.float32)
        self.action_space = gym.spaces.Discrete(n_actions)
        self.optimum = float(length)
        self.chance = sum(n_actions**-k for k in range(1, length + 1))

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Go back to the beginning of the path."""
        super().reset(seed=seed)
        self._n_right = 0
        return self._draw_and_observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Take a step. The episode terminates if the action is wrong, or at the end of the path."""
        right = bool(action == self._right_action)
        self._n_right += right
        return self._draw_and_observe(), float(right), not right or self._n_right == self.length, False, {}

    def _draw_and_observe(self) -> Obs:
        """Draw the next right action, and return the observation that shows it."""
        self._right_action = int(self.np_random.integers(self.n_actions))
        obs = np.zeros(self.n_actions + 1, np.float32)
        obs[self._right_action] = 1
        obs[-1] = self._n_right / self.length
        return obs
