"""Drawing actions with a given random generator: what an actor needs so that its behaviour copy repeats exactly.

Every function takes ``generator=``: pass ``self.generator``. ``None`` draws from torch's global generator.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["categorical", "epsilon_greedy", "multinomial"]


def categorical(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the categorical distribution given by logits, by an exponential race (the Gumbel-max trick).

    Parameters
    ----------
    logits : float tensor, ``(..., n)``
        Log-probabilities up to a constant; ``-inf`` is never drawn. Normalisation is not needed.
    generator : torch.Generator, optional
        On the device of ``logits``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``logits``.
    """
    return (logits.detach() - _exponential(logits, generator).log_()).argmax(dim=-1)


def multinomial(probs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the categorical distribution given by probabilities, by an exponential race.

    Parameters
    ----------
    probs : float tensor, ``(..., n)``
        Non-negative weights; zero is never drawn. Normalisation is not needed.
    generator : torch.Generator, optional
        On the device of ``probs``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``probs``.
    """
    return (probs.detach() / _exponential(probs, generator)).argmax(dim=-1)


def epsilon_greedy(q: Tensor, epsilon: float | Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Take the action of the largest value, or with probability ``epsilon`` any action, uniformly.

    Parameters
    ----------
    q : float tensor, ``(..., n)``
        Action values.
    epsilon : float, or float tensor that broadcasts to ``(...)``
        The probability of a uniformly drawn action (which may be the greedy one). Keep it in a buffer of the actor,
        so that its schedule reaches the behaviour copy.
    generator : torch.Generator, optional
        On the device of ``q``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``q``.
    """
    greedy = q.detach().argmax(dim=-1)
    random = torch.empty(greedy.shape, dtype=torch.int64, device=q.device).random_(0, q.shape[-1], generator=generator)
    explore = torch.rand(greedy.shape, device=q.device, generator=generator) < epsilon
    return torch.where(explore, random, greedy)


def _exponential(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw standard exponential variates, in float32 at least and never zero (a zero would let anything win)."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    race = torch.empty(like.shape, dtype=dtype, device=like.device).exponential_(generator=generator)
    return race.clamp_min_(torch.finfo(dtype).tiny)
