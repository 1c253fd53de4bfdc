"""The kernel of :mod:`rlplay.algo.returns`: ``x_t = a_t + b_t x_{t+1}`` for all ``t < T``, given ``x_T = end``.

It has two forms, since two things are dear in two places.

The *walk* goes from the last row to the first: two operations a row, on NumPy arrays. On the host that is hard to beat:
a row fits into the nearest cache, an operation costs a fraction of a microsecond, and each number is touched once.

The *scan* is for tensors on a device, where each operation is a launch, and ``2 T`` launches in a row are what is dear
(and for ``torch.compile``, on the host, too, where it becomes a few loops, soon compiled).
A row is the affine map ``x -> a + b x``, and maps compose: ``k`` steps and then ``k`` steps are ``2 k`` steps. So the
windows over 1, 2, 4, ... rows are made from each other, all rows at once, until they reach the end: five launches for
each doubling (Hillis and Steele, 1986, "Data Parallel Algorithms"). A tree over the rows would touch fewer numbers, but
takes more launches, and rounds a row by where it stands in the tree. Here, as in the walk, a row depends on the rows
from it to the end of its episode and on nothing else, to the last bit.

In both, a coefficient of zero lets nothing through, not even NaN or infinity. Nothing is divided, and nothing waits for
the device. In the scan, a product of coefficients too small for its dtype is zero like any other.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import torch

__all__ = ["ahead", "backward", "through"]


def backward(a: Any, b: Any, end: Any) -> Any:
    """Solve ``x_t = a_t + b_t x_{t+1}``, given ``x_T = end``.

    Parameters
    ----------
    a : float array, ``(T, B, ...)``
        What each step adds; ``T >= 1``. NumPy arrays are walked over, torch tensors are scanned.
    b : float array, broadcasts to ``a``
        The coefficients, ``>= 0``; not infinite.
    end : float array, ``(B, ...)``
        ``x_T``.

    Returns
    -------
    float array, ``(T, B, ...)``
        ``x_t``: a new array of the kind, dtype and device of ``a``.
    """
    return _scan(a, b, end) if isinstance(a, torch.Tensor) else _walk(a, b, end)


def ahead(a: Any, b: Any, end: Any, x: Any, n: int) -> Any:
    """Apply ``x_t <- a_t + b_t x_{t+1}`` to all ``t`` at once, ``n`` times, with ``x_T = end`` always.

    Parameters
    ----------
    a, b, end
        See :func:`backward`.
    x : float array, ``(T, B, ...)``
        Where to start.
    n : int in [0, T]
        How many times. On the host the time taken is proportional to it, on a device to its logarithm.

    Returns
    -------
    float array, ``(T, B, ...)``
        A new array of the kind, dtype and device of ``a``.
    """
    if isinstance(a, torch.Tensor):
        x = torch.cat([x, end[None]])
        for k, window in _windows(a, b, end, n):
            if n & k:
                x = _look(window, k, x)
    else:
        x = np.concatenate([x, end[None]])
        for _ in range(n):
            np.add(a, through(b, x[1:]), x[:-1])
    return x[:-1]


def through(b: Any, x: Any) -> Any:
    """Multiply, where zero lets nothing through: zero times NaN is zero here.

    The host looks whether there is anything to be stopped, as that is quick; a device is not asked.
    """
    product = b * x
    if isinstance(product, torch.Tensor):
        return product.masked_fill_(b == 0, 0.0)
    return product if np.isfinite(product).all() else np.where(b == 0, 0.0, product)


def _walk(a: Any, b: Any, end: Any) -> Any:
    """Go from the last row to the first; anew, minding zeros, if something came up that zeros have to stop."""
    solved = np.empty_like(a)
    backwards = list(zip(solved[::-1], a[::-1], b[::-1], strict=True))
    x = end
    for x_t, a_t, b_t in backwards:
        np.multiply(b_t, x, x_t)
        np.add(a_t, x_t, x_t)
        x = x_t
    if not np.isfinite(solved).all():  # otherwise nothing on the way was NaN or infinite: it would have stayed so
        x = end
        for x_t, a_t, b_t in backwards:
            np.add(a_t, through(b_t, x), x_t)
            x = x_t
    return solved


def _scan(a: Any, b: Any, end: Any) -> Any:
    """Double the windows until two in a row reach from each row to the end."""
    *_, (k, window) = _windows(a, b, end, len(a))
    return _look(window, k, window[0])[:-1]


def _windows(a: Any, b: Any, end: Any, longest: int) -> Iterator[tuple[int, Any]]:
    """Yield ``k = 1, 2, 4, ... <= longest``, each with the maps ``(a, b)`` over the ``k`` rows from ``t`` on.

    They are one tensor ``(2, 1+T, B, ...)``, which the next ones overwrite. Its row ``T`` is ``x -> end + 0 x``. The
    windows of the last ``k`` rows are cut short there, and are complete: their ``a`` is the answer.
    """
    stop = torch.zeros_like(end)[None]
    window = torch.stack([torch.cat([a, end[None]]), torch.cat([b.expand_as(a), stop])])
    largest = torch.finfo(window.dtype).max
    k = 1
    while k <= longest:
        yield k, window
        if 2 * k <= longest:
            near_a, near_b = window[:, :-k]
            carried_a, carried_b = through(near_b, window[:, k:])
            near_a += carried_a
            torch.clamp(carried_b, max=largest, out=near_b)  # not infinite: zero may come upon it
        k *= 2


def _look(window: Any, k: int, x: Any) -> Any:
    """Carry ``x``, ``(1+T, B, ...)``, back through windows of ``k`` rows."""
    a, b = window
    return torch.cat([a[:-k] + through(b[:-k], x[k:]), a[-k:]])
