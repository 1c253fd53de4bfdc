"""Tensors of any dtype: their bytes, float32 instead of less, and moving data where PyTorch lacks most operations.

It lacks them for unsigned integers of more than 8 bits, and for float8. Moving data (gathering, scattering, stacking,
filling with zeros) does not depend on what the bits mean. So such tensors are viewed as signed integers of the same
width, moved, and viewed as their own dtype again. Imports nothing of ``rlplay``.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

__all__ = ["as_bytes", "as_movable", "at_least_float32", "move"]

_SIGNED_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_MOVED_AS = {
    dtype: _SIGNED_INTEGERS[dtype.itemsize]
    for dtype in vars(torch).values()
    if isinstance(dtype, torch.dtype)
    and (dtype in (torch.uint16, torch.uint32, torch.uint64) or (dtype.is_floating_point and dtype.itemsize == 1))
}


def as_movable(x: Tensor) -> Tensor:
    """Return a view of the tensor as signed integers if its dtype lacks operations, else the tensor itself."""
    dtype = _MOVED_AS.get(x.dtype)
    return x if dtype is None else x.view(dtype)


def move(fn: Callable[..., Any], x: Tensor, *others: Tensor) -> Any:
    """Return ``fn(x, *others)``, where all arguments and the tensor that is returned have the same dtype.

    ``fn`` must only move data, or fill with zeros.
    """
    dtype = _MOVED_AS.get(x.dtype)
    if dtype is None:
        return fn(x, *others)
    return fn(x.view(dtype), *(other.view(dtype) for other in others)).view(x.dtype)


def as_bytes(x: Tensor) -> Tensor:
    """Return the bytes of a tensor of any dtype, uint8 ``(n,)``, without gradients; a view if it is contiguous."""
    return x.detach().contiguous().reshape(-1).view(torch.uint8)


def at_least_float32(x: Tensor) -> Tensor:
    """Return a tensor in float32 if its dtype has less precision, else as it is. In 16 bits, sums lose small terms."""
    return x.to(torch.promote_types(x.dtype, torch.float32))
