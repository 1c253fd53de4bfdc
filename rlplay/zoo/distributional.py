"""Q-networks whose values are distributions, and linear layers with noise in their weights, which explore."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .. import sampling
from .actors import Modular

__all__ = ["CategoricalQNetwork", "NoisyLinear", "QuantileQNetwork", "resample"]


class CategoricalQNetwork(Modular):
    """A distribution over fixed returns for each action (C51), with an epsilon-greedy policy over their means.

    Its action is int64 ``(n_seq, B)``, its info ``{"q": float (n_seq, B, A), "q_logits": float (n_seq, B, A, n)}``.

    Parameters
    ----------
    logits : module
        From features ``(n_seq, B, F)`` to logits ``(n_seq, B, A, n)``, such as ``nn.Sequential(nn.Linear(F, A * n),
        nn.Unflatten(-1, (A, n)))``.
    atoms : float tensor, ``(n,)``
        The returns, rising in equal steps.
    epsilon : float in [0, 1]
        The probability of a uniformly drawn action in train mode; 0 with noisy layers.
    body : module, optional
        As for :class:`~rlplay.zoo.actors.Modular`.

    Attributes
    ----------
    atoms : buffer, ``(n,)``
    epsilon : buffer, no dimensions
    """

    atoms: Tensor
    epsilon: Tensor

    def __init__(self, logits: nn.Module, atoms: Tensor, *, epsilon: float, body: nn.Module | None = None) -> None:
        super().__init__(body)
        self.logits = logits
        self.register_buffer("atoms", atoms)
        self.register_buffer("epsilon", torch.tensor(float(epsilon)))

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose the best or a random action for each row, and return it with logits and means."""
        logits = self.logits(features)
        # not a matrix product, for which autocast would round to 8 bits
        q = (logits.to(self.atoms.dtype).softmax(dim=-1) * self.atoms).sum(dim=-1)
        return _epsilon_greedy(self, q, self.epsilon), {"q": q, "q_logits": logits}


class QuantileQNetwork(Modular):
    """Quantiles of the return for each action (QR-DQN), with an epsilon-greedy policy over their means.

    Its action is int64 ``(n_seq, B)``, its info ``{"q": float (n_seq, B, A), "q_quantiles": float (n_seq, B, A, n)}``.

    Parameters
    ----------
    quantiles : module
        From features ``(n_seq, B, F)`` to quantiles ``(n_seq, B, A, n)``.
    epsilon, body
        As for :class:`CategoricalQNetwork`.

    Attributes
    ----------
    epsilon : buffer, no dimensions
    """

    epsilon: Tensor

    def __init__(self, quantiles: nn.Module, *, epsilon: float, body: nn.Module | None = None) -> None:
        super().__init__(body)
        self.quantiles = quantiles
        self.register_buffer("epsilon", torch.tensor(float(epsilon)))

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose the best or a random action for each row, and return it with quantiles and means."""
        quantiles = self.quantiles(features)
        q = quantiles.mean(dim=-1)
        return _epsilon_greedy(self, q, self.epsilon), {"q": q, "q_quantiles": quantiles}


def _epsilon_greedy(actor: Modular, q: Tensor, epsilon: Tensor) -> Tensor:
    return sampling.epsilon_greedy(q, epsilon, generator=actor.generator) if actor.training else q.argmax(dim=-1)


class NoisyLinear(nn.Module):
    """A linear layer with noise in weights and biases, whose size is learnt: the network explores by itself.

    ::

        y = (W + S * f(e_out) f(e_in)^T) x + b + s * f(e_out),    f(e) = sign(e) sqrt(|e|),    e normal

    In eval mode there is no noise. The noise is a buffer, zero at first; :func:`resample` draws it. So the learner
    decides when it changes, it flows into the behaviour copy with the weights, and all engines collect the same.

    Parameters
    ----------
    n_in, n_out : int
        The numbers of features.
    std : float
        The initial size of the noise.

    Notes
    -----
    Fortunato et al. (2018), "Noisy Networks for Exploration", section 3.1, factorised noise (eq. 10 and 11).
    """

    noise_in: Tensor
    noise_out: Tensor

    def __init__(self, n_in: int, n_out: int, *, std: float = 0.5) -> None:
        super().__init__()
        bound = 1 / math.sqrt(n_in)
        self.weight = nn.Parameter(torch.empty(n_out, n_in).uniform_(-bound, bound))
        self.bias = nn.Parameter(torch.empty(n_out).uniform_(-bound, bound))
        self.weight_std = nn.Parameter(torch.full((n_out, n_in), std * bound))
        self.bias_std = nn.Parameter(torch.full((n_out,), std * bound))
        self.register_buffer("noise_in", torch.zeros(n_in))
        self.register_buffer("noise_out", torch.zeros(n_out))

    def resample(self, generator: torch.Generator | None = None) -> None:
        """Draw new noise, from a generator on the layer's device (None: torch's global one)."""
        for noise in (self.noise_in, self.noise_out):
            drawn = noise.normal_(generator=generator)
            noise.copy_(drawn.sign() * drawn.abs().sqrt())

    def forward(self, x: Tensor) -> Tensor:
        """Compute features ``(..., n_out)`` from features ``(..., n_in)``."""
        if not self.training:
            return F.linear(x, self.weight, self.bias)
        weight = self.weight + self.weight_std * torch.outer(self.noise_out, self.noise_in)
        return F.linear(x, weight, self.bias + self.bias_std * self.noise_out)


def resample(module: nn.Module, generator: torch.Generator | None = None) -> None:
    """Draw new noise in all :class:`NoisyLinear` of a module, from a generator on its device (None: the global one)."""
    for layer in module.modules():
        if isinstance(layer, NoisyLinear):
            layer.resample(generator)
