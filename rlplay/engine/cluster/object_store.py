"""Tensors on their way through Ray's object store: the bytes of each are an array, which Ray passes without pickling.

What is read from the store is a view of memory that all processes of a node share. Ray marks it as read-only.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ... import nested
from ...dtypes import as_bytes
from ...nested import Nested
from ..core import Final, Fragment
from ..memory.layout import Leaf, blank_fragment

__all__ = ["Bytes", "PartForms", "bytes_of", "tensor_over"]

Bytes = npt.NDArray[np.uint8]


def bytes_of(tree: Nested) -> list[Bytes]:
    """Return the bytes of each leaf, a tensor of any dtype on the host; views where tensors are contiguous."""
    return [as_bytes(leaf).numpy() for leaf in nested.leaves(tree)]


def tensor_over(memory: Bytes, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Return a tensor over bytes, which it keeps alive. It must not be written to if they are read-only."""
    return torch.from_numpy(np.asarray(_Readable(memory))).view(dtype).view(tuple(shape))


class _Readable:
    """Presents read-only memory as other memory: torch warns of what is read-only, since one could write to it."""

    def __init__(self, memory: Bytes) -> None:
        self._memory = memory
        self.__array_interface__: dict[str, Any] = {**memory.__array_interface__, "data": (memory.ctypes.data, False)}


class PartForms:
    """How the bytes of a part are read: structures, shapes and dtypes.

    Parameters
    ----------
    layout : Fragment of Leaf
        The layout of a fragment.
    n_steps, n_envs : int
        The number of steps, and of the environments of a part.
    """

    def __init__(self, layout: Fragment, n_steps: int, n_envs: int) -> None:
        blank = blank_fragment(layout, n_steps, n_envs, _without_memory)
        self._leaves, self._structure = nested.flatten(blank)
        index = Leaf((), torch.int64)
        self._final = Final(index, index, layout.state.obs, layout.actor)

    def fragment(self, parts: Sequence[Bytes]) -> Any:
        """Return a fragment over the bytes of its leaves."""
        pairs = zip(parts, self._leaves, strict=True)
        return self._structure.unflatten([tensor_over(x, form.shape, form.dtype) for x, form in pairs])

    def finals(self, parts: Sequence[Bytes], n: int) -> Any:
        """Return a ``Final`` with ``n`` entries over the bytes of its leaves."""
        leaves, structure = nested.flatten(self._final)
        pairs = zip(parts, leaves, strict=True)
        return structure.unflatten([tensor_over(x, (n, *leaf.shape), leaf.dtype) for x, leaf in pairs])


def _without_memory(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    return torch.empty(tuple(shape), dtype=dtype, device="meta")
