"""Memory shared by a collector process and the consumer's process: a fragment and the weights to collect it with."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..collector.messages import Plan
from ..core import Final, Fragment
from ..memory.layout import blank_fragment, blank_rows

__all__ = ["Allocator", "SharedFragment", "SharedFragmentSpec", "SharedWeights"]

_ALIGNMENT = 64
"""Bytes of a cache line; every tensor begins at a multiple of it."""


class SharedFragment(NamedTuple):
    """Tensors in the memory that a collector process and the consumer's process share."""

    fragment: Fragment
    """``T`` steps of the process's environments; written by the collector process."""
    final: Nested
    """A ``Final`` with ``T * B`` entries; the first K are filled in, K = number of episodes that ended. ``()`` if the
    plan has no ``final``. The system allocates a page of this memory at the first write to it."""
    weights: list[Tensor]
    """The weights for the next fragment; written by the consumer's process."""


class SharedFragmentSpec(NamedTuple):
    """The shapes and dtypes of all tensors of a :class:`SharedFragment`."""

    layout: Fragment
    """The fragment's structure, with a ``Leaf`` (shape and dtype, without rows and environments) for each tensor."""
    plan: Plan
    n_envs: int
    """The number of environments of the collector process, ``B``."""
    weight_forms: list[tuple[tuple[int, ...], torch.dtype]]
    """Shape and dtype of each weight."""

    @property
    def size(self) -> int:
        """The size in bytes."""
        allocator = Allocator(None)
        self._allocate(allocator)
        return allocator.used

    def divide(self, memory: Tensor) -> SharedFragment:
        """Return the tensors as views of a uint8 tensor of ``size`` elements."""
        return self._allocate(Allocator(memory))

    def _allocate(self, allocator: Allocator) -> SharedFragment:
        layout, plan, n_envs, weight_forms = self
        fragment = blank_fragment(layout, plan.n_steps, n_envs, allocator)
        final: Nested = ()
        if plan.final:
            n_entries = plan.n_steps * n_envs  # every step may end an episode
            t, b = allocator((n_entries,), torch.int64), allocator((n_entries,), torch.int64)
            obs, actor = (blank_rows(tree, 1, n_entries, allocator) for tree in (layout.state.obs, layout.actor))
            final = Final(t, b, *nested.map(lambda x: x[0], (obs, actor)))
        return SharedFragment(fragment, final, [allocator(*form) for form in weight_forms])


class SharedWeights(NamedTuple):
    """The shapes and dtypes of weights that lie in shared memory."""

    forms: list[tuple[tuple[int, ...], torch.dtype]]

    @property
    def size(self) -> int:
        """The size in bytes; at least 1, since no memory of size 0 can be mapped."""
        allocator = Allocator(None)
        for form in self.forms:
            allocator(*form)
        return max(1, allocator.used)

    def divide(self, memory: Tensor) -> list[Tensor]:
        """Return the weights as views of a uint8 tensor of ``size`` elements."""
        allocator = Allocator(memory)
        return [allocator(*form) for form in self.forms]


class Allocator:
    """Allocates consecutive tensors from a block of memory; without a block it only counts their bytes."""

    def __init__(self, memory: Tensor | None) -> None:
        self._memory, self.used = memory, 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a tensor; without a block of memory the tensor is on the meta device."""
        start, size = self.used, prod(shape) * dtype.itemsize
        self.used += -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        return self._memory[start : start + size].view(dtype).view(tuple(shape))
