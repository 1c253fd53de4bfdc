"""An environment with a memory task: the cue of the first observation is the right action of the last step."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["Recall"]

Obs = npt.NDArray[np.float32]


class Recall(gym.Env[Obs, np.int64]):
    """Remember a cue, and choose the action with its index after a delay.

    - The first observation shows a cue, drawn uniformly. ``delay`` observations of zeros come next, then the question.
    - The action taken at the question is the answer. The reward is 1 if the answer is the index of the cue, else 0, and
      the episode terminates, after ``delay + 2`` steps. The actions before the question have no effect.
    - An actor without memory is not better than chance. So this environment tests recurrent states, their resets and
      their replay.

    Parameters
    ----------
    n_cues : int
        The number of cues, and of actions.
    delay : int
        The number of observations of zeros between the cue and the question.

    Attributes
    ----------
    observation_space : Box, float32, ``(n_cues + 1,)``
        The first observation has the cue, one-hot. The question has 1 as its last element. All other elements are 0.
    action_space : Discrete
        ``n_cues``.
    optimum : float
        The best return: 1.
    chance : float
        The expected return of random actions: ``1 / n_cues``. No actor without memory does better.
    """

    def __init__(self, n_cues: int = 3, delay: int = 5) -> None:
        self.n_cues, self.delay = n_cues, delay
        self.observation_space = gym.spaces.Box(0.0, 1.0, (n_cues + 1,), np.float32)
        self.action_space = gym.spaces.Discrete(n_cues)
        self.optimum = 1.0
        self.chance = 1 / n_cues

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Draw and show a new cue."""
        super().reset(seed=seed)
        self._cue, self._stepno = int(self.np_random.integers(self.n_cues)), 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Go to the next observation; at the question, take the action as the answer."""
        answered = self._stepno > self.delay
        self._stepno += 1
        return self._observe(), float(answered and action == self._cue), answered, False, {}

    def _observe(self) -> Obs:
        """Return the cue at the first step, the question at the last one, zeros between them."""
        obs = np.zeros(self.n_cues + 1, np.float32)
        obs[self._cue] = self._stepno == 0
        obs[-1] = self._stepno == self.delay + 1
        return obs
