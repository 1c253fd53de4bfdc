"""A rare reward at the end of a long way, each step of which costs a little."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["DeepSea"]

Obs = npt.NDArray[np.float32]


class DeepSea(gym.Env[Obs, np.int64]):
    """Dive to the right at every step, to find a treasure. After "deep sea" in Osband et al. (2020), "Behaviour Suite".

    - The board has ``size`` rows and columns. An episode begins at the top left. Each step goes down one row, and one
      column to the left or to the right; which of the two actions goes to the right is drawn for each cell, once, from
      ``layout``.
    - Going to the right costs ``0.01 / size``. Being in the last column after ``size`` steps is rewarded with 1. Then
      the episode terminates.
    - Only one of the ``2^size`` sequences of actions reaches the treasure, and without it going left is best. So this
      environment tests exploration.

    Parameters
    ----------
    size : int
        The number of rows and columns.
    layout : int
        The seed of the actions' meanings.

    Attributes
    ----------
    observation_space : Box, float32, ``(size * size,)``
        The board, row by row: 1 at the diver's cell, 0 elsewhere; all 0 after the last step.
    action_space : Discrete(2)
    optimum : float
        The best return: 0.99.
    """

    def __init__(self, size: int = 14, layout: int = 0) -> None:
        if size < 1:
            raise ValueError(f"`size` must be at least 1, got {size}.")
        self.size = size
        self._right = np.random.default_rng(layout).integers(0, 2, (size, size))
        self.observation_space = gym.spaces.Box(0.0, 1.0, (size * size,), np.float32)
        self.action_space = gym.spaces.Discrete(2)
        self.optimum = 0.99

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Begin at the top left."""
        super().reset(seed=seed)
        self._row = self._column = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Go down, and left or right."""
        rew = 0.0
        if action == self._right[self._row, self._column]:
            found = self._row == self._column == self.size - 1
            rew = float(found) - 0.01 / self.size
            self._column = min(self._column + 1, self.size - 1)
        else:
            self._column = max(self._column - 1, 0)
        self._row += 1
        return self._observe(), rew, self._row == self.size, False, {}

    def _observe(self) -> Obs:
        """Return the board, row by row."""
        board = np.zeros((self.size, self.size), np.float32)
        if self._row < self.size:
            board[self._row, self._column] = 1
        return board.ravel()
