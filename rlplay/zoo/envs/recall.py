"""A cue at the beginning of an episode has to be named at its end."""

from __future__ import annotations

from typing import Any

import gym
import numpy as np
import numpy.typing as npt
from gym import spaces

__all__ = ["Recall"]

Obs = npt.NDArray[np.float32]


class Recall(gym.Env[Obs, int]):
    """Remember a cue, and name it after a delay.

    - The first observation shows a cue, drawn uniformly. Then follow ``delay`` blank observations, then the question.
    - The action taken at the question is the answer: reward 1 if it is the index of the cue, else 0, and the episode
      terminates, after ``delay + 2`` steps. The actions before it have no effect.
    - Without memory no actor is better than chance, so this tests recurrent states, their resets and their replay.

    Parameters
    ----------
    n_cues : int
        The number of cues.
    delay : int
        The number of blank observations between the cue and the question.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_cues + 1,)``
        The cue, one-hot, in the first observation only; the last element is 1 at the question only.
    action_space : Discrete
        ``n_cues``.
    optimum : float
        1.
    chance : float
        ``1 / n_cues``; no actor without memory is better.
    """

    def __init__(self, n_cues: int = 3, delay: int = 5) -> None:
        self.n_cues, self.delay = n_cues, delay
        self.observation_space = spaces.Box(0.0, 1.0, (n_cues + 1,), np.float32)
        self.action_space = spaces.Discrete(n_cues)
        self.optimum = 1.0
        self.chance = 1 / n_cues

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Draw and show a new cue."""
        super().reset(seed=seed)
        self._cue, self._stepno = int(self.np_random.integers(self.n_cues)), 0
        return self._look(), {}

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Go to the next observation; at the question, take the action as the answer."""
        answered = self._stepno > self.delay
        self._stepno += 1
        return self._look(), float(answered and action == self._cue), answered, False, {}

    def _look(self) -> Obs:
        obs = np.zeros(self.n_cues + 1, np.float32)
        obs[self._cue] = self._stepno == 0
        obs[-1] = self._stepno == self.delay + 1
        return obs
