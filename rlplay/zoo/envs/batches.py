"""Environments in torch, many at once: CartPole and the regulator, on any device.

They have the vector face of gymnasium, with tensors instead of arrays, in the autoreset mode ``SAME_STEP``: a step that
ends an episode also resets that part, and the true last observations are in ``infos["final_obs"]``. Their memory stays
where it is and no step waits for the device, so that a step can be part of a CUDA graph: they say so by ``capturable``.
All numbers are drawn from their own ``generator``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..gym_or_gymnasium import gym

__all__ = ["CartPoleBatch", "RegulatorBatch"]

Step = tuple[Tensor, Tensor, Tensor, Tensor, dict[str, Any]]


class _Batch:
    """Memory and resets of ``n`` environments; a subclass adds the dynamics.

    Attributes
    ----------
    num_envs : int
        ``n``.
    device : torch.device
    generator : torch.Generator
        On the device; ``reset(seed=...)`` seeds it.
    state : tensor, ``(k, n)``
        The numbers of each environment.
    stepno : int64 tensor, ``(n,)``
        The steps since the current episode began.
    """

    capturable = True
    metadata = {"autoreset_mode": "SAME_STEP"}  # noqa: RUF012 (as the environments of gymnasium have it)
    single_observation_space: gym.spaces.Space[Any]
    single_action_space: gym.spaces.Space[Any]

    def __init__(self, n: int, n_numbers: int, limit: int, device: torch.device | str, dtype: torch.dtype) -> None:
        if n < 1:
            raise ValueError(f"`n` must be at least 1, got {n}.")
        self.num_envs, self.limit, self.device = n, limit, torch.device(device)
        self.generator = torch.Generator(self.device)
        self.state = torch.zeros(n_numbers, n, dtype=dtype, device=self.device)
        self.stepno = torch.zeros(n, dtype=torch.int64, device=self.device)
        self._rewards = torch.ones(n, device=self.device)
        self._never = torch.zeros(n, dtype=torch.bool, device=self.device)

    def _draw(self) -> Tensor:
        """Draw a first state for each part, ``(k, n)``."""
        raise NotImplementedError

    def reset(self, *, seed: int | None = None, options: dict[str, Any] | None = None) -> tuple[Tensor, dict[str, Any]]:
        """Begin an episode in each part; return the observations, float32 ``(n, k)``, and an empty dict."""
        if seed is not None:
            self.generator.manual_seed(seed)
        self.state.copy_(self._draw())
        self.stepno.zero_()
        return self._observe(self.state), {}

    def _observe(self, state: Tensor) -> Tensor:
        return state.T.to(torch.float32, memory_format=torch.contiguous_format, copy=True)

    def _finish(self, following: Tensor, reward: Tensor, terminated: Tensor) -> Step:
        """Go to the following states, or to first ones where an episode has ended; return the result of the step."""
        self.stepno += 1
        truncated = self.stepno >= self.limit
        ended = terminated | truncated
        infos = {"final_obs": self._observe(following)}
        self.state.copy_(torch.where(ended, self._draw(), following))
        self.stepno.masked_fill_(ended, 0)
        return self._observe(self.state), reward, terminated, truncated, infos


class CartPoleBatch(_Batch):
    """CartPole-v1 of gymnasium, ``n`` at once. After Barto, Sutton and Anderson (1983).

    - The state is position and speed of the cart, angle and angular speed of the pole; at first each is drawn
      uniformly from [-0.05, 0.05].
    - Action 0 pushes the cart to the left, action 1 to the right. Each step is rewarded with 1.
    - The episode terminates when the cart is further than 2.4 from the middle, or the pole is tilted by more than 12
      degrees; it is truncated after ``limit`` steps.

    Parameters
    ----------
    n : int
        The number of environments.
    device : torch.device or str
        Where they are.
    dtype : torch.dtype
        The dtype of the state; gymnasium computes in float64. Observations are float32 in either case.
    limit : int
        The length of the longest episode, in steps.

    Attributes
    ----------
    single_observation_space : Box, float32, ``(4,)``
    single_action_space : Discrete(2)
    optimum : float
        The best return: ``limit``.

    Raises
    ------
    ValueError
        ``n`` is less than 1.
    """

    def __init__(
        self, n: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, limit: int = 500
    ) -> None:
        super().__init__(n, 4, limit, device, dtype)
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (4,), np.float32)
        self.single_action_space = gym.spaces.Discrete(2)
        self.optimum = float(limit)

    def _draw(self) -> Tensor:
        return torch.empty_like(self.state).uniform_(-0.05, 0.05, generator=self.generator)

    def step(self, action: Tensor) -> Step:
        """Push each cart for 0.02 s; ``action`` is an int64 tensor ``(n,)``."""
        gravity, length, pole, total, tau = 9.8, 0.5, 0.1, 1.1, 0.02
        x, speed, angle, spin = self.state
        cos, sin = angle.cos(), angle.sin()
        push = (20.0 * action.to(x.dtype) - 10.0 + pole * length * spin.square() * sin) / total
        spin_up = (gravity * sin - cos * push) / (length * (4.0 / 3.0 - pole * cos.square() / total))
        speed_up = push - pole * length * spin_up * cos / total
        following = self.state + tau * torch.stack([speed, speed_up, spin, spin_up])
        terminated = (following[0].abs() > 2.4) | (following[2].abs() > 12 * 2 * math.pi / 360)
        return self._finish(following, self._rewards, terminated)


class RegulatorBatch(_Batch):
    """The linear-quadratic regulator in one dimension, ``n`` at once; :class:`.Regulator` describes it.

    Its gain and value are those of ``Regulator`` with the same coefficients.

    Parameters
    ----------
    n : int
        The number of environments.
    device : torch.device or str
        Where they are.
    dtype : torch.dtype
        The dtype of the state.
    a, b, q, r, noise, limit
        As those of ``Regulator``.

    Attributes
    ----------
    single_observation_space, single_action_space : Box, float32, ``(1,)``
        ``x`` and ``u``, unbounded.

    Raises
    ------
    ValueError
        ``n`` is less than 1.
    """

    def __init__(
        self, n: int, device: torch.device | str = "cpu", dtype: torch.dtype = torch.float32, *, a: float = 0.9,
        b: float = 0.3, q: float = 1.0, r: float = 0.3, noise: float = 0.3, limit: int = 50,
    ) -> None:  # fmt: skip
        super().__init__(n, 1, limit, device, dtype)
        self.a, self.b, self.q, self.r, self.noise = a, b, q, r, noise
        self.single_observation_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)
        self.single_action_space = gym.spaces.Box(-np.inf, np.inf, (1,), np.float32)

    def _draw(self) -> Tensor:
        return torch.empty_like(self.state).normal_(generator=self.generator)

    def step(self, action: Tensor) -> Step:
        """Change ``x`` by actions ``u``, float32 ``(n, 1)``. The rewards ``(n,)`` are those of ``x`` before that."""
        u = action.T.to(self.state.dtype)
        reward = -(self.q * self.state.square() + self.r * u.square())[0]
        following = self.a * self.state + self.b * u + self.noise * self._draw()
        return self._finish(following, reward, self._never)
