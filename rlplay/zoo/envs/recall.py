"""Remembering what was shown at the beginning."""

from __future__ import annotations

from typing import Any

import gym
import numpy as np
import numpy.typing as npt
from gym import spaces

__all__ = ["Recall"]

Obs = npt.NDArray[np.float32]


class Recall(gym.Env[Obs, int]):
    """See a cue, wait, and name it.

    - The first observation shows a cue, drawn uniformly. Nothing follows for ``delay`` steps, then the question.
    - The action upon the question is the answer: reward 1 if it names the cue, else 0, and the episode terminates,
      after ``delay + 2`` steps. The actions before it do nothing.
    - Without memory nothing beats chance: this is the test of recurrent states, their resets, and their replay.

    Parameters
    ----------
    n_cues : int
        How many cues there are.
    delay : int
        How many blank observations there are between the cue and the question.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_cues + 1,)``
        The cue, one-hot, in the first step only; then, with the question, a 1 in the last place.
    action_space : Discrete
        ``n_cues``.
    optimum : float
        1.
    chance : float
        ``1 / n_cues``, and no actor without memory does better.
    """

    def __init__(self, n_cues: int = 3, delay: int = 5) -> None:
        self.n_cues, self.delay = n_cues, delay
        self.observation_space = spaces.Box(0.0, 1.0, (n_cues + 1,), np.float32)
        self.action_space = spaces.Discrete(n_cues)
        self.optimum = 1.0
        self.chance = 1 / n_cues

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Show a new cue."""
        super().reset(seed=seed)
        self._cue, self._stepno = int(self.np_random.integers(self.n_cues)), 0
        return self._look(), {}

    def step(self, action: int) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Let time pass, or take the answer."""
        answered = self._stepno > self.delay
        self._stepno += 1
        return self._look(), float(answered and action == self._cue), answered, False, {}

    def _look(self) -> Obs:
        obs = np.zeros(self.n_cues + 1, np.float32)
        obs[self._cue] = self._stepno == 0
        obs[-1] = self._stepno == self.delay + 1
        return obs
