"""The linear-quadratic regulator in one dimension: keeping a noisy number near zero."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import numpy.typing as npt

from ..gym_or_gymnasium import gym

__all__ = ["Regulator"]

Array = npt.NDArray[np.float32]


class Regulator(gym.Env[Array, Array]):
    """Push a noisy number towards zero, at a cost for the number's size and for the push.

    - The state is a number ``x``, at first drawn from ``N(0, 1)``. A step with the action ``u``, a number of any size,
      leads to ``x' = a x + b u + noise N(0, 1)``.
    - The reward is ``-(q x^2 + r u^2)``, with the ``x`` before the step.
    - An episode never terminates, and is truncated after ``limit`` steps. The observation does not contain the time, so
      the policy to learn is that of the infinite horizon: ``u = -gain(gamma) x``, with the value ``value(x, gamma)``.

    Parameters
    ----------
    a, b, q, r, noise : float
        The coefficients above; ``b`` is not zero, ``q`` and ``r`` are positive. With the defaults, an untrained policy
        that pushes in the wrong direction makes ``x`` grow slowly enough for the learner to improve the policy.
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
        self.observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def gain(self, gamma: float) -> float:
        """Compute the optimal ``k`` of ``u = -k x`` under a discount in [0, 1].

        The cost-to-go is ``p x^2`` plus a constant, where ``p`` solves the discounted Riccati equation ::

            p = q + gamma a^2 p - (gamma a b p)^2 / (r + gamma b^2 p)

        Multiplied by its denominator, the equation becomes ``gamma b^2 p^2 + c p = q r``; ``p`` is its positive root.
        """
        c = self.r - gamma * (self.a**2 * self.r + self.b**2 * self.q)
        p = 2 * self.q * self.r / (c + math.sqrt(c**2 + 4 * gamma * self.b**2 * self.q * self.r))
        return gamma * self.a * self.b * p / (self.r + gamma * self.b**2 * p)

    def value(self, x: float, gamma: float, gain: float | None = None) -> float:
        """Compute the value of the policy ``u = -gain x`` at ``x``, over an infinite horizon, for a discount in [0, 1).

        By default the gain is the optimal gain, and the value the optimal value. The value is minus infinity if the
        costs grow faster than they are discounted.
        """
        gain = self.gain(gamma) if gain is None else gain
        growth = gamma * (self.a - self.b * gain) ** 2
        if growth >= 1:
            return -math.inf
        p = (self.q + self.r * gain**2) / (1 - growth)
        return -p * (x**2 + gamma / (1 - gamma) * self.noise**2)

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Array, dict[str, Any]]:
        """Draw ``x`` from ``N(0, 1)``."""
        super().reset(seed=seed)
        self._x, self._stepno = float(self.np_random.normal()), 0
        return self._observe(), {}

    def step(self, action: Array) -> tuple[Array, float, bool, bool, dict[str, Any]]:
        """Return the reward of the current ``x`` and the action, and go to the next ``x``."""
        x, u = self._x, float(action[0])
        self._x = self.a * x + self.b * u + self.noise * float(self.np_random.normal())
        self._stepno += 1
        return self._observe(), -(self.q * x**2 + self.r * u**2), False, self._stepno == self.limit, {}

    def _observe(self) -> Array:
        """Return ``x`` as an array."""
        return np.array([self._x], np.float32)
