"""Masks, and means over the valid transitions: what every loss takes its means with.

The rows that are left out must be finite (mask what goes *into* a computation, rather than what comes out: a zero
gradient times an infinite activation is NaN). None of these makes the host wait for the device.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["like", "mean", "normalised"]


def like(mask: Tensor, x: Tensor) -> Tensor:
    """Give a mask trailing dimensions, so that it broadcasts over those of ``x``."""
    return mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim))


def mean(x: Tensor, valid: Tensor) -> Tensor:
    """Average over the valid transitions; zero if there are none.

    Parameters
    ----------
    x : float tensor, ``(T, B)``
    valid : bool tensor, ``(T, B)``

    Returns
    -------
    float tensor, ``()``
    """
    return (x * valid).sum() / valid.sum().clamp(min=1)


def normalised(x: Tensor, valid: Tensor) -> Tensor:
    """Bring to mean zero and deviation one, over the valid transitions.

    Parameters
    ----------
    x : float tensor, ``(T, B)``
    valid : bool tensor, ``(T, B)``

    Returns
    -------
    float tensor, ``(T, B)``
    """
    centred = x - mean(x, valid)
    return centred / (mean(centred.square(), valid).sqrt() + 1e-8)
