"""Masks, and means over the valid transitions, for the losses.

Elements that are not valid must still be finite, since a mean multiplies them by zero, and zero times infinity is NaN.
Therefore mask the inputs of a computation and not only its result: a zero gradient times an infinite activation is NaN
as well.

The host never waits for the device.
"""

from __future__ import annotations

from torch import Tensor

__all__ = ["like", "mean", "normalised"]


def like(mask: Tensor, x: Tensor) -> Tensor:
    """Append dimensions of size 1 to a mask, so that it broadcasts over the trailing dimensions of ``x``."""
    return mask.view(*mask.shape, *(1,) * (x.ndim - mask.ndim))


def mean(x: Tensor, valid: Tensor) -> Tensor:
    """Compute the mean over the valid transitions; zero if there are none.

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
    """Shift and scale to mean zero and standard deviation one over the valid transitions.

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
