"""A chain of states with a reward at either end, whose action values are known."""

from __future__ import annotations

from typing import Any

import gym
import numpy as np
import numpy.typing as npt
from gym import spaces

__all__ = ["Chain"]

Obs = npt.NDArray[np.float32]


class Chain(gym.Env[Obs, int]):
    """Walk along a chain of states, with a small reward at the left end and a large one at the right end.

    - Episodes begin in any state, drawn uniformly. Action 0 goes one state to the left, 1 one to the right.
    - Leaving the chain on the left gives the reward ``small``, on the right 1; both terminate the episode. All other
      rewards are 0.
    - With a discount near 1, going right is best in all states; the smaller the discount, the more states there are in
      which going left is best.
    - An episode is truncated after ``limit`` steps. :meth:`q_values` are those without a time limit: a learner that
      bootstraps at truncation learns them all the same.

    Parameters
    ----------
    n_states : int
        The length of the chain.
    small : float in [0, 1]
        The reward for leaving it on the left.
    limit : int
        The longest episode, in steps.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_states,)``
        The state, one-hot; all zero outside the chain, after the end of an episode.
    action_space : Discrete(2)
        Left, right.
    optimum : float
        1.
    chance : float
        ``(1 + small) / 2``, by symmetry. This neglects the time limit, which a random walk over five states reaches
        less than once in a million episodes.
    """

    def __init__(self, n_states: int = 5, small: float = 0.2, limit: int = 100) -> None:
        self.n_states, self.small, self.limit = n_states, small, limit
        self.observation_space = spaces.Box(0.0, 1.0, (n_states,), np.float32)
        self.action_space = spaces.Discrete(2)
        self.optimum = 1.0
        self.chance = (1 + small) / 2

    def q_values(self, gamma: float) -> npt.NDArray[np.float64]:
        """Compute the optimal action values exactly, by value iteration.

        From any state the best actions reach an end in at most ``n_states`` steps, so values are exact after as many
        sweeps; one more gives the action values.

        Parameters
        ----------
        gamma : float in [0, 1]
            The discount.

        Returns
        -------
        float64 array, ``(n_states, 2)``
        """
        rew = np.zeros((self.n_states, 2))
        rew[0, 0], rew[-1, 1] = self.small, 1
        q, value = rew, np.zeros(self.n_states + 2)  # including a terminal state of value zero at either end
        for _ in range(self.n_states + 1):
            q = rew + gamma * np.stack([value[:-2], value[2:]], axis=1)
            value[1:-1] = q.max(axis=1)
        return q

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start in a random state."""
        super().reset(seed=seed)
        self._state, self._stepno = int(self.np_random.integers(self.n_states)), 0
        return self._look(), {}

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Go one state to the left or to the right."""
        self._state += 1 if action else -1
        self._stepno += 1
        left, right = self._state < 0, self._state == self.n_states
        rew = self.small if left else float(right)
        return self._look(), rew, left or right, self._stepno == self.limit, {}

    def _look(self) -> Obs:
        obs = np.zeros(self.n_states, np.float32)
        if 0 <= self._state < self.n_states:
            obs[self._state] = 1
        return obs
