"""Drawing actions with a given random generator: what an actor needs so that its behaviour copy repeats exactly.

Every function takes ``generator=``: pass ``self.generator``. ``None`` draws from torch's global generator.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

__all__ = ["Source", "categorical", "epsilon_greedy", "multinomial"]


class Source(torch.Generator):
    """A random generator that has the noise for :func:`categorical` and :func:`multinomial` in stock.

    It draws the noise of many calls at once, which costs a third of drawing it call by call. What the behaviour copy of
    an actor has as ``self.generator``. It is as good as any other for whatever else takes a generator; what is in stock
    is independent of that.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Begin with an empty stock. The device has been seen to already, by ``torch.Generator`` itself."""
        self._stock: dict[tuple[torch.Size, torch.dtype], Iterator[Tensor]] = {}

    def manual_seed(self, seed: int) -> Source:
        """Begin anew, with nothing in stock."""
        self._stock.clear()
        super().manual_seed(seed)
        return self

    def set_state(self, state: Tensor) -> Any:
        """Take over a state, with nothing in stock."""
        self._stock.clear()
        return super().set_state(state)

    def log_exponential(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Take the logarithms of standard exponential variates; the tensor must not be changed."""
        stock = self._stock.get((shape, dtype))
        noise = next(stock, None) if stock is not None else None
        if noise is None:
            n = max(1, _STOCK // max(1, shape.numel()))
            stock = iter(_log_exponential((n, *shape), dtype, self.device, self).unbind())
            self._stock[shape, dtype] = stock
            noise = next(stock)
        return noise


_STOCK = 4096
"""How many numbers are drawn at once, at most."""


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
    return (logits.detach() - _race(logits, generator)).argmax(dim=-1)


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
    return (probs.detach().log() - _race(probs, generator)).argmax(dim=-1)


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


def _race(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw logarithms of standard exponential variates, in float32 at least."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(generator, Source):
        return generator.log_exponential(like.shape, dtype)
    return _log_exponential(like.shape, dtype, like.device, generator)


def _log_exponential(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    race = torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator)
    return race.clamp_min_(torch.finfo(dtype).tiny).log_()  # a zero would let anything win
