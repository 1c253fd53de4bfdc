"""Functions to draw actions with a given random generator, so that a seeded run repeats exactly.

Actors pass ``generator=self.generator``. With ``None`` the functions draw from torch's global generator.

No action is drawn from NaN: where a row of logits, probabilities or action values has a NaN, the functions give -1,
which is no action: before it reaches an environment it is refused, with the environment and the step. The functions
raise no error themselves, so that they can be compiled and captured, and so that the host does not wait for a device.

Imports nothing of ``rlplay``.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Source", "categorical", "epsilon_greedy", "multinomial"]


class Source(torch.Generator):
    """A random generator with a stock of noise for :func:`categorical` and :func:`multinomial`, drawn for many calls.

    Noise in stock costs a third of noise drawn call by call. On the host, the ``self.generator`` of a behaviour copy is
    a :class:`Source`. Any function that takes a ``torch.Generator`` accepts it; noise that is already in stock does not
    change by such draws.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Start with an empty stock. ``device`` is passed on to ``torch.Generator.__new__``."""
        self._stock: dict[tuple[torch.Size, torch.dtype], Iterator[Tensor]] = {}

    def manual_seed(self, seed: int) -> Source:
        """Set the seed, and empty the stock."""
        self._stock.clear()
        super().manual_seed(seed)
        return self

    def set_state(self, state: Tensor) -> Any:
        """Set the state of the generator, and empty the stock. The stock is not part of the state."""
        self._stock.clear()
        return super().set_state(state)

    def log_exponential(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return logarithms of standard exponential variates, from the stock.

        Parameters
        ----------
        shape : torch.Size
        dtype : torch.dtype
            float32 or float64.

        Returns
        -------
        tensor
            Of this shape and dtype, on the generator's device. It must not be written to.
        """
        stock = self._stock.get((shape, dtype))
        noise = next(stock, None) if stock is not None else None
        if noise is None:
            n = max(1, _STOCK // max(1, shape.numel()))
            stock = iter(_log_exponential((n, *shape), dtype, self.device, self).unbind())
            self._stock[shape, dtype] = stock
            noise = next(stock)
        return noise


_FEW = 4096
"""Up to so many numbers NumPy compares faster than torch."""

_STOCK = 4096
"""How many numbers are drawn at once, unless a single tensor has more."""


def categorical(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the categorical distribution given by logits, by the Gumbel-max trick.

    Returns the ``argmax`` of ``logits - log(e)`` with independent standard exponential variates ``e``.

    Parameters
    ----------
    logits : float tensor, ``(..., n)``
        Log-probabilities up to a constant; An action with ``-inf`` is never drawn. They need not be normalised.
    generator : torch.Generator, optional
        On the device of ``logits``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``logits``. -1 where any of the ``n`` logits is NaN.
    """
    return _best(logits.detach(), _noise_like(logits, generator), generator)


def multinomial(probs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the categorical distribution given by probabilities, as :func:`categorical` from their logarithms.

    Parameters
    ----------
    probs : float tensor, ``(..., n)``
        Non-negative weights. An action with weight zero is never drawn. They need not be normalised.
    generator : torch.Generator, optional
        On the device of ``probs``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``probs``. -1 where any of the ``n`` weights is NaN or negative.
    """
    return _best(probs.detach().log(), _noise_like(probs, generator), generator)


def epsilon_greedy(q: Tensor, epsilon: float | Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Choose the action of the largest value, or with probability ``epsilon`` an action drawn uniformly.

    Parameters
    ----------
    q : float tensor, ``(..., n)``
        Action values.
    epsilon : float, or float tensor that broadcasts to ``(...)``
        The probability of a uniformly drawn action, which may be the greedy one. If it follows a schedule, it may be a
        plain attribute of the actor; with ``compile=True`` keep it in a buffer.
    generator : torch.Generator, optional
        On the device of ``q``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``q``. -1 where any of the ``n`` values is NaN, whether or not a random action was due.
    """
    greedy = _best(q.detach(), None, generator)
    random = torch.empty(greedy.shape, dtype=torch.int64, device=q.device).random_(0, q.shape[-1], generator=generator)
    explore = torch.rand(greedy.shape, device=q.device, generator=generator) < epsilon
    return torch.where(explore & (greedy >= 0), random, greedy)


def _best(scores: Tensor, noise: Tensor | None, generator: torch.Generator | None) -> Tensor:
    """Return the index of the largest of ``scores - noise``, the first if there are several; -1 where any is NaN.

    ``generator`` tells whether this may be a step of a behaviour copy on the host. No compiler traces such a step, and
    NumPy needs less than half of torch's time for few numbers.
    """
    if type(generator) is Source and scores.numel() <= _FEW and not torch.compiler.is_compiling():
        index = _best_by_numpy(scores, noise)
        if index is not None:
            return index
    if noise is not None:
        scores = scores - noise
    largest, index = scores.max(dim=-1)
    return index.masked_fill_(largest.isnan(), -1)  # a NaN counts as the largest


def _best_by_numpy(scores: Tensor, noise: Tensor | None) -> Tensor | None:
    """Return the same as :func:`_best`; None if a number is NaN, or if NumPy would not compute the same."""
    try:
        numbers = scores.numpy()
    except (RuntimeError, TypeError):  # inside of a transformation such as vmap, or a dtype that NumPy does not have
        return None
    if noise is not None:
        if noise.dtype != scores.dtype:
            return None
        numbers = numbers - noise.numpy()
    squares = np.vdot(numbers, numbers)  # NaN if and only if a number is NaN
    return torch.from_numpy(np.asarray(numbers.argmax(axis=-1))) if squares == squares else None


def _noise_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw logarithms of standard exponential variates, of the shape of ``like``, in float32 or its dtype if wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(generator, Source):
        return generator.log_exponential(like.shape, dtype)
    return _log_exponential(like.shape, dtype, like.device, generator)


def _log_exponential(
    shape: Sequence[int], dtype: torch.dtype, device: torch.device, generator: torch.Generator | None
) -> Tensor:
    variates = torch.empty(shape, dtype=dtype, device=device).exponential_(generator=generator)
    return variates.clamp_min_(torch.finfo(dtype).tiny).log_()  # log(0) = -inf would win against any logits
