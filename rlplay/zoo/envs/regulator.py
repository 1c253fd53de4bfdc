"""Keeping a noisy number near zero: the linear-quadratic regulator."""

from __future__ import annotations

import math
from typing import Any

import gym
import numpy as np
import numpy.typing as npt
from gym import spaces

__all__ = ["Regulator"]

Array = npt.NDArray[np.float32]


class Regulator(gym.Env[Array, Array]):
    """Push a drifting number back to zero, and do not push too hard.

    - ``x' = a x + b u + noise N(0, 1)``, from ``x ~ N(0, 1)``; ``u`` is the action, of any size.
    - The reward is ``-(q x^2 + r u^2)``, of the state and the action before the step.
    - It never ends, and is cut after ``limit`` steps (truncated). The observation does not tell the time, so that the
      best there is to learn is the regulator that goes on for ever: ``u = -gain(gamma) x``, worth ``value(x, gamma)``.

    Parameters
    ----------
    a, b, q, r, noise : float
        As above; ``b`` is not zero, ``q`` and ``r`` are positive. The defaults are mild: a policy that begins by
        pushing the wrong way drives the number off slowly enough to learn from it.
    limit : int
        The length of an episode, in steps.

    Attributes
    ----------
    observation_space : Box, float32, ``(1,)``
        ``x``, unbounded.
    action_space : Box, float32, ``(1,)``
        ``u``, unbounded.
    """

    def __init__(
        self, a: float = 0.9, b: float = 0.3, q: float = 1.0, r: float = 0.3, noise: float = 0.3, limit: int = 50
    ) -> None:
        self.a, self.b, self.q, self.r, self.noise, self.limit = a, b, q, r, noise, limit
        self.observation_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def gain(self, gamma: float) -> float:
        """Compute the optimal ``k`` of ``u = -k x`` under a discount in [0, 1].

        The cost to go is ``p x^2`` and a constant, where ``p`` solves the discounted Riccati equation ::

            p = q + gamma a^2 p - (gamma a b p)^2 / (r + gamma b^2 p)

        Cleared of its denominator it is ``gamma b^2 p^2 + c p = q r``, of which ``p`` is the positive root.
        """
        c = self.r - gamma * (self.a**2 * self.r + self.b**2 * self.q)
        p = 2 * self.q * self.r / (c + math.sqrt(c**2 + 4 * gamma * self.b**2 * self.q * self.r))
        return gamma * self.a * self.b * p / (self.r + gamma * self.b**2 * p)

    def value(self, x: float, gamma: float, gain: float | None = None) -> float:
        """Compute what ``u = -gain x`` is worth from ``x``, without end, under a discount in [0, 1).

        By default the gain is the optimal one, and this the optimal value. It is minus infinity if the costs grow
        faster than they are discounted.
        """
        gain = self.gain(gamma) if gain is None else gain
        growth = gamma * (self.a - self.b * gain) ** 2
        if growth >= 1:
            return -math.inf
        p = (self.q + self.r * gain**2) / (1 - growth)
        return -p * (x**2 + gamma / (1 - gamma) * self.noise**2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Begin somewhere around zero."""
        super().reset(seed=seed)
        self._x, self._stepno = float(self.np_random.normal()), 0
        return self._look(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Push, and let it drift."""
        x, u = self._x, float(action[0])
        self._x = self.a * x + self.b * u + self.noise * float(self.np_random.normal())
        self._stepno += 1
        return self._look(), -(self.q * x**2 + self.r * u**2), False, self._stepno == self.limit, {}

    def _look(self) -> Array:
        return np.array([self._x], np.float32)
