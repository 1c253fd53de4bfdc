"""Flipping bits until they equal a goal, which random actions hardly ever reach."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["BitFlip"]

Obs = dict[str, npt.NDArray[np.float32]]


class BitFlip(gym.Env[Any, np.int64]):
    """Flip one of ``n`` bits at each step, until all equal a goal. After Andrychowicz et al. (2017), section 3.1.

    - Bits and goal are drawn uniformly. Action ``i`` flips bit ``i``.
    - The reward is -1, and 0 for the step that reaches the goal, which terminates the episode. After ``n`` steps the
      episode is truncated.
    - With many bits, hardly any episode reaches its goal by chance, so that rewards teach nothing. Yet each episode
      reaches some bits, and shows how these are reached: hindsight experience replay learns from that.

    Parameters
    ----------
    n_bits : int
        The number of bits, and of actions.

    Attributes
    ----------
    observation_space : Dict of three Box, float32, ``(n_bits,)``
        ``"observation"`` and ``"achieved_goal"`` are the bits, ``"desired_goal"`` is the goal: zeros and ones.
    action_space : Discrete
        ``n_bits``.
    optimum : float
        The best expected return: ``1 - n_bits / 2``, apart from the rare episodes that begin at their goal.
    """

    def __init__(self, n_bits: int = 10) -> None:
        if n_bits < 1:
            raise ValueError(f"`n_bits` must be at least 1, got {n_bits}.")
        self.n_bits = n_bits
        bits = gym.spaces.Box(0.0, 1.0, (n_bits,), np.float32)
        self.observation_space = gym.spaces.Dict({"observation": bits, "achieved_goal": bits, "desired_goal": bits})
        self.action_space = gym.spaces.Discrete(n_bits)
        self.optimum = 1 - n_bits / 2

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Obs, dict[str, Any]]:
        """Draw new bits and a new goal."""
        super().reset(seed=seed)
        self._bits, self._goal = self.np_random.integers(0, 2, (2, self.n_bits)).astype(np.float32)
        self._stepno = 0
        return self._observe(), {}

    def step(self, action: np.int64) -> tuple[Obs, float, bool, bool, dict[str, Any]]:
        """Flip a bit."""
        self._bits[int(action)] = 1 - self._bits[int(action)]
        self._stepno += 1
        reached = bool((self._bits == self._goal).all())
        return self._observe(), reached - 1.0, reached, not reached and self._stepno == self.n_bits, {}

    def _observe(self) -> Obs:
        """Return copies of the bits and of the goal."""
        return {
            "observation": self._bits.copy(),
            "achieved_goal": self._bits.copy(),
            "desired_goal": self._goal.copy(),
        }
