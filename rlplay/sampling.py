"""Functions to draw actions with a given random generator, so that a seeded run repeats exactly.

Actors pass ``generator=self.generator``. With ``None`` the functions draw from torch's global generator.

No action is drawn from NaN: where a row of logits, probabilities or action values has a NaN, the functions give -1,
which is no action. The engine refuses -1, and names the environment and the step: before the action reaches the
environment, or after the fragment if the environments are in torch. The functions raise no error themselves, so that
they can be compiled and captured, and so that the host does not wait for a device.

Imports nothing of ``rlplay``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

__all__ = ["Source", "bernoulli", "categorical", "epsilon_greedy", "log_exponential", "multinomial"]


class Source(torch.Generator):
    """A random generator with a stock of noise for :func:`categorical` and :func:`multinomial`, drawn for many calls.

    Noise in stock costs a third of noise drawn call by call. On the host, the ``self.generator`` of a behaviour copy is
    a :class:`Source`. Any function that takes a ``torch.Generator`` accepts it; noise that is already in stock does not
    change by such draws.
    """

    def __init__(self, device: torch.device | str = "cpu") -> None:
        """Start with an empty stock. ``device`` is passed on to ``torch.Generator.__new__``."""
        self._stock: dict[tuple[torch.Size, torch.dtype], Iterator[tuple[Tensor, Any]]] = {}

    def manual_seed(self, seed: int) -> Source:
        """Set the seed, and empty the stock."""
        self._stock.clear()
        super().manual_seed(seed)
        return self

    def set_state(self, state: Tensor) -> Any:
        """Set the state of the generator, and empty the stock. The stock is not part of the state."""
        self._stock.clear()
        return super().set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and what is left of the stock: tensors on the host."""
        stock = []
        for (shape, dtype), rest in self._stock.items():
            left = list(rest)
            self._stock[shape, dtype] = iter(left)  # an iterator cannot be looked into, but it can be replaced
            none = torch.empty((0, *shape), dtype=dtype, device="cpu")
            stock.append(torch.stack([row for row, _ in left]).cpu() if left else none)
        return {"generator": self.get_state(), "stock": stock}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned: the same draws follow as there."""
        self.set_state(state["generator"].cpu())
        for rows in state["stock"]:
            rows = rows.to(self.device, copy=True)
            numbers = rows.numpy() if rows.is_cpu else [None] * len(rows)
            self._stock[rows.shape[1:], rows.dtype] = zip(rows.unbind(), numbers, strict=True)

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
        return self.take(shape, dtype)[0]

    def take(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Any]:
        """Return the same as :meth:`log_exponential`, and a NumPy view of it (None on a device)."""
        stock = self._stock.get((shape, dtype))
        noise = next(stock, None) if stock is not None else None
        if noise is None:
            n = max(1, _STOCK // max(1, shape.numel()))
            tensor = log_exponential(torch.empty((n, *shape), dtype=dtype, device=self.device), self)
            stock = zip(tensor.unbind(), tensor.numpy() if tensor.is_cpu else [None] * n, strict=True)
            self._stock[shape, dtype] = stock
            noise = next(stock)
        return noise


_FEW = 256
"""Up to so many numbers NumPy compares faster than torch."""

_NOISE_DTYPES = (torch.float32, torch.float64)
"""Noise has the dtype of the scores if it is one of these, else float32."""

_STOCK = 4096
"""How many numbers are drawn at once, unless a single tensor has more."""


def categorical(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the categorical distribution given by logits, by the Gumbel-max trick.

    Returns the ``argmax`` of ``logits - log(e)`` with independent standard exponential variates ``e``.

    Parameters
    ----------
    logits : float tensor, ``(..., n)``
        Log-probabilities up to a constant, which need not be normalised. An action with ``-inf`` is never drawn, unless
        all have ``-inf``: then the first action is drawn.
    generator : torch.Generator, optional
        On the device of ``logits``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``logits``. -1 where any of the ``n`` logits is NaN.
    """
    if type(generator) is Source:
        numbers = _few_numbers(logits)
        if numbers is not None:
            return _best_of_few(numbers - generator.take(logits.shape, logits.dtype)[1])
    return _best(logits.detach() - _noise_like(logits, generator))


def multinomial(probs: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw from the categorical distribution given by probabilities, as :func:`categorical` from their logarithms.

    Parameters
    ----------
    probs : float tensor, ``(..., n)``
        Non-negative weights, which need not be normalised. An action with weight zero is never drawn, unless all
        weights are zero: then the first action is drawn.
    generator : torch.Generator, optional
        On the device of ``probs``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``probs``. -1 where any of the ``n`` weights is NaN or negative.
    """
    return categorical(probs.detach().log(), generator=generator)


def bernoulli(logits: Tensor, *, generator: torch.Generator | None = None) -> Tensor:
    """Draw independent bits, given the log-odds of the value 1.

    Parameters
    ----------
    logits : float tensor, ``(...)``
        With ``-inf`` the bit is 0, with ``inf`` it is 1.
    generator : torch.Generator, optional
        On the device of ``logits``.

    Returns
    -------
    int64 tensor, ``(...)``
        On the device of ``logits``: 0 or 1; -1 where the logit is NaN.
    """
    p = logits.detach().to(torch.promote_types(logits.dtype, torch.float32)).sigmoid()
    drawn = torch.rand(p.shape, dtype=p.dtype, device=p.device, generator=generator) < p
    return drawn.long().masked_fill(p.isnan(), -1)


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
    numbers = _few_numbers(q) if type(generator) is Source else None
    greedy = _best(q.detach()) if numbers is None else _best_of_few(numbers)
    random = torch.randint(q.shape[-1], greedy.shape, dtype=torch.int64, device=q.device, generator=generator)
    explore = torch.rand(greedy.shape, dtype=torch.float32, device=q.device, generator=generator) < epsilon
    return torch.where(explore & (greedy >= 0), random, greedy)


def _best(scores: Tensor) -> Tensor:
    """Return the index of the largest score, the first if there are several; -1 where any score is NaN."""
    largest, index = scores.max(dim=-1)
    return index.masked_fill_(largest.isnan(), -1)  # a NaN counts as the largest


def _few_numbers(scores: Tensor) -> Any:
    """Return a NumPy view of the scores; None if they are many, or if they have no such view.

    For few numbers NumPy is faster than torch.
    """
    if scores.numel() > _FEW or scores.dtype not in _NOISE_DTYPES or torch.compiler.is_compiling():
        return None
    try:
        return scores.numpy()
    except RuntimeError:  # with gradients, or inside of a transformation such as vmap
        return None


def _best_of_few(numbers: Any) -> Tensor:
    """Return the same as :func:`_best` for a NumPy array."""
    index = np.asarray(numbers.argmax(axis=-1))
    total = sum(numbers.ravel().tolist())
    if total != total:  # NaN, or both infinities
        index = np.where(np.isnan(numbers).any(axis=-1), -1, index)
    return torch.from_numpy(index)


def _noise_like(like: Tensor, generator: torch.Generator | None) -> Tensor:
    """Draw logarithms of standard exponential variates, of the shape of ``like``, in float32 or its dtype if wider."""
    dtype = torch.promote_types(like.dtype, torch.float32)
    if isinstance(generator, Source):
        return generator.log_exponential(like.shape, dtype)
    return log_exponential(torch.empty(like.shape, dtype=dtype, device=like.device), generator)


def log_exponential(target: Tensor, generator: torch.Generator | None) -> Tensor:
    """Fill a float tensor with logarithms of standard exponential variates, and return it."""
    # log(0) = -inf would win against any logits
    return target.exponential_(generator=generator).clamp_min_(torch.finfo(target.dtype).tiny).log_()
