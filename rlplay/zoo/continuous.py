"""Actors and critics for real actions: a squashed Gaussian policy (SAC), a deterministic one (TD3), and critics.

The actors shift and scale actions to the bounds ``low`` and ``high`` of the action space, which must be finite.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..engine import BaseActorModule
from ..nested import Nested
from .actors import Modular, mlp

__all__ = ["Critics", "Deterministic", "RecurrentCritics", "SquashedGaussian"]


class _Bounded(Modular):
    """The base class of both actors: a policy network, and the scale of its actions."""

    centre: Tensor
    scale: Tensor

    def __init__(
        self, policy: nn.Module, low: Any, high: Any, body: nn.Module | None, core: nn.LSTM | nn.GRU | None
    ) -> None:
        super().__init__(body, core)
        self.policy = policy
        low, high = (torch.as_tensor(x, dtype=torch.float32).clone() for x in (low, high))
        if not (low.isfinite().all() and high.isfinite().all() and (low < high).all()):
            raise ValueError(f"`low` and `high` must be finite, and `low` below `high`; got {low} and {high}.")
        centre = low / 2 + high / 2
        scale = torch.minimum(high - centre, centre - low)
        # rounding must not carry the largest actions past the bounds, where environments may refuse them
        outside = (centre + scale > high) | (centre - scale < low)
        self.register_buffer("centre", centre)
        self.register_buffer("scale", torch.where(outside, scale.nextafter(torch.zeros(())), scale))

    def noise(self, like: Tensor) -> Tensor:
        """Draw standard normal noise of the shape of ``like``, from the actor's generator."""
        return torch.randn(like.shape, dtype=like.dtype, device=like.device, generator=self.generator)


class SquashedGaussian(_Bounded):
    """A policy for a Box of ``D`` numbers: ``tanh`` of a normal variate, scaled to the bounds. For SAC, and for PPO.

    Its action is float ``(n_seq, B, D)``, with gradients to the parameters. In eval mode it is that of the mean. Its
    info is ``{"mean", "log_std", "pre_tanh"}``, each float ``(n_seq, B, D)``, and with a critic ``"value"``,
    ``(n_seq, B)``.

    Parameters
    ----------
    policy : module
        From features ``(n_seq, B, F)`` to ``(n_seq, B, 2 D)``: the mean, and the logarithm of the standard deviation,
        which is clamped to (-20, 2) as in the authors' code (Haarnoja et al., 2018).
    low, high : array-like, ``(D,)``
        The bounds of the action space.
    value : module, optional
        From features to ``(n_seq, B, 1)``: the critic that actor-critic losses need.
    body, core : module, optional
        As for :class:`~rlplay.zoo.actors.Modular`.
    """

    def __init__(
        self,
        policy: nn.Module,
        low: Any,
        high: Any,
        *,
        value: nn.Module | None = None,
        body: nn.Module | None = None,
        core: nn.LSTM | nn.GRU | None = None,
    ) -> None:
        super().__init__(policy, low, high, body, core)
        self.value = value

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Draw an action for each row, and return it with the parameters of the policy."""
        mean, log_std = self.policy(features).chunk(2, dim=-1)
        log_std = log_std.clamp(-20, 2)
        pre_tanh = mean + log_std.exp() * self.noise(mean) if self.training else mean
        info = {"mean": mean, "log_std": log_std, "pre_tanh": pre_tanh}
        if self.value is not None:
            info["value"] = self.value(features).squeeze(-1)
        return self.centre + self.scale * pre_tanh.tanh(), info


class Deterministic(_Bounded):
    """A deterministic policy for a Box of ``D`` numbers, for TD3 and DDPG, with normal noise in train mode.

    Its action is float ``(n_seq, B, D)``, its info ``{"mean": float (n_seq, B, D)}``, the action without noise.

    Parameters
    ----------
    policy : module
        From features ``(n_seq, B, F)`` to ``(n_seq, B, D)``, of which ``tanh`` is taken.
    low, high : array-like, ``(D,)``
        The bounds of the action space.
    noise_std : float
        The standard deviation of the noise, for actions in (-1, 1). A plain attribute, which may follow a schedule.
    body, core : module, optional
        As for :class:`~rlplay.zoo.actors.Modular`.
    """

    def __init__(
        self,
        policy: nn.Module,
        low: Any,
        high: Any,
        *,
        noise_std: float = 0.1,
        body: nn.Module | None = None,
        core: nn.LSTM | nn.GRU | None = None,
    ) -> None:
        super().__init__(policy, low, high, body, core)
        self.noise_std = noise_std

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Return the policy's action for each row, with noise in train mode, clamped to the bounds."""
        unit = self.policy(features).tanh()
        noisy = (unit + self.noise_std * self.noise(unit)).clamp(-1, 1) if self.training else unit
        return self.centre + self.scale * noisy, {"mean": self.centre + self.scale * unit}


class Critics(nn.Module):
    """Several independent critics ``Q(obs, act)``, multilayer perceptrons over flat observations and actions.

    Takes observations ``(n_seq, B, O)`` and actions ``(n_seq, B, D)``, and returns values ``(n_seq, B, n)``.
    Actions are converted to the dtype of the observations, since an action space may have float64.

    Parameters
    ----------
    n_in : int
        ``O + D``.
    hidden : int
        Widths of the hidden layers.
    n : int
        The number of critics.
    """

    def __init__(self, n_in: int, *hidden: int, n: int = 2) -> None:
        super().__init__()
        self.each = nn.ModuleList(mlp(n_in, *hidden, 1, activation=nn.ReLU) for _ in range(n))

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        """Compute the values of observations and actions."""
        both = torch.cat([obs, act.to(obs.dtype)], dim=-1)
        return torch.cat([critic(both) for critic in self.each], dim=-1)


class RecurrentCritics(Critics):
    """Several critics over the features of one memory, for the losses over sequences of SAC and TD3.

    Takes features ``(n_seq, B, H)`` of ``memory``, and actions ``(n_seq, B, D)``; returns values ``(n_seq, B, n)``.

    Parameters
    ----------
    core : torch.nn.LSTM or torch.nn.GRU
        From observations and the actions that led to them, ``(n_seq, B, O + D)``, to features ``(n_seq, B, H)``.
    n_act : int
        ``D``.
    hidden : int
        Widths of the hidden layers.
    n : int
        The number of critics.

    Attributes
    ----------
    memory : BaseActorModule
        Its info are the features.
    """

    def __init__(self, core: nn.LSTM | nn.GRU, n_act: int, *hidden: int, n: int = 2) -> None:
        super().__init__(core.hidden_size + n_act, *hidden, n=n)
        self.memory = _Memory(core)


class _Memory(BaseActorModule):
    """Computes features of the history: observations, and the actions of the same episode that led to them."""

    def __init__(self, core: nn.LSTM | nn.GRU) -> None:
        super().__init__()
        self.core = core

    def forward(
        self, obs: Tensor, *, act: Tensor, fin: Tensor, hx: Nested = None, **ignored: Any
    ) -> tuple[Tensor, Nested, Tensor]:
        """Return the actions unchanged, the recurrent state and the features."""
        before = act.to(obs.dtype).masked_fill(fin.unsqueeze(-1), 0)  # no action has led to the first observation
        features, hx = self.core(torch.cat([obs, before], dim=-1), hx)
        return act, hx, features
