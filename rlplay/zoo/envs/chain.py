"""A chain of states with a reward at either end, whose action values are known."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["Chain"]

Obs = npt.NDArray[np.float32]


class Chain(gym.Env[Obs, np.int64]):
    """Walk along a chain of states, with a small reward at the left end and a large one at the right end.

    - An episode begins in a state that is drawn uniformly. Action 0 goes one state to the left, action 1 one state to
      the right.
    - Leaving the chain on the left gives the reward ``small``, leaving it on the right the reward 1. Both terminate the
      episode. All other rewards are 0.
    - With a discount near 1, going right is best in all states. The smaller the discount, the more states there are in
      which going left is best.
    - An episode is truncated after ``limit`` steps. :meth:`q_values` returns the values without a time limit; a learner
      that bootstraps at truncation learns these values.

    Parameters
    ----------
    n_states : int
        The length of the chain.
    small : float in [0, 1]
        The reward for leaving the chain on the left.
    limit : int
        The length of the longest episode, in steps.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_states,)``
        The state, one-hot. The last observation of an episode that terminated is all zero.
    action_space : Discrete(2)
        Left (0), right (1).
    optimum : float
        The best return: 1.
    chance : float
        The expected return of random actions: ``(1 + small) / 2``, by symmetry. This neglects the time limit, which a
        random walk over five states reaches less than once in a million episodes.
    """

    def __init__(self, n_states: int = 5, small: float = 0.2, limit: int = 100) -> None:
        self.n_states, self.small, self.limit = n_states, small, limit
        self.observation_space = gym.spaces.Box(0.0, 1.0, (n_states,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.optimum = 1.0
        self.chance = (1 + small) / 2

    def q_values(self, gamma: float) -> npt.NDArray[np.float64]:
        """Compute the optimal action values exactly, by value iteration.

        From any state the best actions reach an end of the chain in at most ``n_states`` steps. So the state values are
        exact after ``n_states`` sweeps, and one more sweep gives the action values.

        Parameters
        ----------
        gamma : float in [0, 1]
            The discount.

        Returns
        -------
        float64 array, ``(n_states, 2)``
            The values of going left and right in each state.
        """
        rew = np.zeros((self.n_states, 2))
        rew[0, 0], rew[-1, 1] = self.small, 1
        q, value = rew, np.zeros(self.n_states + 2)  # with a terminal state of value zero at either end
        for _ in range(self.n_states + 1):
            q = rew + gamma * np.stack([value[:-2], value[2:]], axis=1)
            value[1:-1] = q.max(axis=1)
        return q

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Start in a random state."""
        super().reset(seed=seed)
        self._state, self._stepno = int(self.np_random.integers(self.n_states)), 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Go one state to the left or to the right."""
        self._state += 1 if action else -1
        self._stepno += 1
        left, right = self._state < 0, self._state == self.n_states
        rew = self.small if left else float(right)
        return self._observe(), rew, left or right, self._stepno == self.limit, {}

    def _observe(self) -> Obs:
        """Return the state, one-hot."""
        obs = np.zeros(self.n_states, np.float32)
        if 0 <= self._state < self.n_states:
            obs[self._state] = 1
        return obs
