"""The kernel of :mod:`rlplay.algo.returns`: ``x_t = a_t + b_t x_{t+1}`` for all ``t < T``, given ``x_T = end``.

There are two implementations.

The *walk* is for NumPy arrays. The walk goes from the last row to the first, with two operations per row. On the host
this is fast: a row fits into the first-level cache, an operation takes a fraction of a microsecond, and each number is
read once.

The *scan* is for torch tensors. On a device every operation is a kernel launch, and the ``2 T`` launches of a walk
would take most of the time. (Under ``torch.compile`` the scan is used on the host as well, since the compiler turns the
scan into a few loops, which compile fast.) Row ``t`` is the affine map ``x -> a_t + b_t x``. Composing two maps over
``k`` rows gives a map over ``2 k`` rows. So the maps over 1, 2, 4, ... rows, called windows, are computed for all rows
at once, until they reach the end: five launches for each doubling (Hillis and Steele, 1986, "Data Parallel
Algorithms"). A tree over the rows would need fewer operations on numbers but more launches, and the rounding of a row
would depend on its position in the tree. Here, as in the walk, a row depends only on the rows from it to the end of its
episode, to the last bit.

In both implementations a coefficient of zero stops NaN and infinity: the product counts as zero. Nothing is divided,
and the host never waits for the device. In the scan, a product of coefficients that underflows counts as zero in this
sense.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["iterate", "solve", "times"]


def solve(a: Any, b: Any, end: Any) -> Any:
    """Solve ``x_t = a_t + b_t x_{t+1}``, given ``x_T = end``.

    Parameters
    ----------
    a : float array, ``(T, B, ...)``
        The constant terms; ``T >= 1``. NumPy arrays are solved by the walk, torch tensors by the scan.
    b : float array, broadcasts to ``a``
        The coefficients, ``>= 0`` and finite.
    end : float array, ``(B, ...)``
        ``x_T``.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``x_t``: a new array of the kind, dtype and device of ``a``.
    """
    return _scan(a, b, end) if isinstance(a, torch.Tensor) else _walk(a, b, end)


def iterate(a: Any, b: Any, end: Any, x: Any, n: int) -> Any:
    """Apply ``x_t <- a_t + b_t x_{t+1}`` to all ``t`` at once, ``n`` times, with ``x_T = end`` each time.

    Parameters
    ----------
    a, b, end
        See :func:`solve`.
    x : float array, ``(T, B, ...)``
        The initial values.
    n : int in [0, T]
        The number of times. The time taken is proportional to it on the host, and to its logarithm on a device.

    Returns
    -------
    float array, ``(T, B, ...)``
        A new array of the kind, dtype and device of ``a``.
    """
    if isinstance(a, torch.Tensor):
        x = torch.cat([x, end[None]])
        for k, window in _windows(a, b, end, n):
            if n & k:
                x = _apply_window(window, k, x)
    else:
        x = np.concatenate([x, end[None]])
        for _ in range(n):
            np.add(a, times(b, x[1:]), x[:-1])
    return x[:-1]


def times(b: Any, x: Any) -> Any:
    """Multiply ``b`` and ``x``, where ``b = 0`` gives zero even if ``x`` is NaN or infinite.

    NumPy arrays are corrected only if the product is not finite, which is quick to check. For tensors the check would
    make the host wait, so the correction is always made.
    """
    product = b * x
    if isinstance(product, torch.Tensor):
        return product.masked_fill_(b == 0, 0.0)
    return product if np.isfinite(product).all() else np.where(b == 0, 0.0, product)


def _walk(a: Any, b: Any, end: Any) -> Any:
    """Solve from the last row to the first: with plain products, and again by :func:`times` if NaN or inf occur."""
    solved = np.empty_like(a)
    backwards = list(zip(solved[::-1], a[::-1], b[::-1], strict=True))
    x = end
    for x_t, a_t, b_t in backwards:
        np.multiply(b_t, x, x_t)
        np.add(a_t, x_t, x_t)
        x = x_t
    if not np.isfinite(solved).all():  # a NaN or infinity on the way always remains in `solved`
        x = end
        for x_t, a_t, b_t in backwards:
            np.add(a_t, times(b_t, x), x_t)
            x = x_t
    return solved


def _scan(a: Any, b: Any, end: Any) -> Any:
    """Solve by the largest windows: two of them, one after the other, reach from each row to the end."""
    *_, (k, window) = _windows(a, b, end, len(a))
    return _apply_window(window, k, window[0])[:-1]


def _windows(a: Any, b: Any, end: Any, longest: int) -> Iterator[tuple[int, Any]]:
    """Yield ``k = 1, 2, 4, ... <= longest``, each with the maps ``(a, b)`` over the ``k`` rows from ``t`` on.

    The maps are one tensor ``(2, 1+T, B, ...)``, which the next iteration overwrites. Row ``T`` is the constant map
    ``x -> end + 0 x``. So the windows of the last ``k`` rows reach the end: their ``a`` is already the solution.
    """
    zeros = torch.zeros_like(end)[None]
    window = torch.stack([torch.cat([a, end[None]]), torch.cat([b.expand_as(a), zeros])])
    largest = torch.finfo(window.dtype).max
    k = 1
    while k <= longest:
        yield k, window
        if 2 * k <= longest:
            near_a, near_b = window[:, :-k]
            product_a, product_b = times(near_b, window[:, k:])
            near_a += product_a
            torch.clamp(product_b, max=largest, out=near_b)  # the coefficients must stay finite
        k *= 2


def _apply_window(window: Any, k: int, x: Any) -> Any:
    """Apply the maps over ``k`` rows to ``x``, ``(1+T, B, ...)``: row ``t`` of the result is ``a_t + b_t x_{t+k}``."""
    a, b = window
    return torch.cat([a[:-k] + times(b[:-k], x[k:]), a[-k:]])
