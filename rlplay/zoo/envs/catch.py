"""Catching a falling ball."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["Catch"]

Obs = npt.NDArray[np.float32]


class Catch(gym.Env[Obs, np.int64]):
    """Move a paddle under a falling ball. After "catch" in Osband et al. (2020), "Behaviour Suite".

    - The ball starts in a column of the top row, drawn uniformly, and falls by one row each step. The paddle starts in
      the middle of the bottom row; the actions move it one column to the left (0), not at all (1), or to the right (2).
    - The episode terminates when the ball is in the bottom row, after ``rows - 1`` steps. Then the reward is 1 if the
      paddle is in the ball's column, else -1. All other rewards are 0.

    Parameters
    ----------
    rows, columns : int
        The size of the board. Every ball can be caught: ``rows`` is above 1 and above ``columns // 2``.

    Attributes
    ----------
    observation_space : Box, float32, ``(rows * columns,)``
        The board, row by row: 1 at the ball and at the paddle, 0 elsewhere.
    action_space : Discrete(3)
        Left, stay, right.
    optimum : float
        The best return: 1.
    chance : float
        The expected return of random actions: ``2 / columns - 1``, since the ball's column is independent of the
        paddle's column.
    """

    def __init__(self, rows: int = 10, columns: int = 5) -> None:
        if rows <= max(1, columns // 2):
            raise ValueError(f"`rows` must be above {max(1, columns // 2)} to catch every ball, got {rows}.")
        self.rows, self.columns = rows, columns
        self.observation_space = gym.spaces.Box(0.0, 1.0, (rows * columns,), np.float32)
        self.action_space = gym.spaces.Discrete(3)
        self.optimum = 1.0
        self.chance = 2 / columns - 1

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Put a new ball into a random column of the top row."""
        super().reset(seed=seed)
        self._row, self._column = 0, int(self.np_random.integers(self.columns))
        self._paddle = self.columns // 2
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Move the paddle, then the ball."""
        self._paddle = min(max(self._paddle + int(action) - 1, 0), self.columns - 1)
        self._row += 1
        landed = self._row == self.rows - 1
        rew = (1.0 if self._paddle == self._column else -1.0) if landed else 0.0
        return self._observe(), rew, landed, False, {}

    def _observe(self) -> Obs:
        """Return the board, row by row."""
        board = np.zeros((self.rows, self.columns), np.float32)
        board[self._row, self._column] = board[-1, self._paddle] = 1
        return board.ravel()
