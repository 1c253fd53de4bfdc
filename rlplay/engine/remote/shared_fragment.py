"""The memory that a collector process and the consumer's process share: one fragment and its weights."""

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
    """Tensors in shared memory."""

    blank: Fragment
    """``T`` steps of the process's environments; written by the collector process."""
    final: Nested
    """A ``Final`` with ``T * B`` rows, of which the first K are filled in; ``()`` if the plan has no ``final``. Pages
    that are never written to take no memory."""
    weights: list[Tensor]
    """The weights for the next fragment; written by the consumer's process."""


class SharedFragmentSpec(NamedTuple):
    """The shapes and dtypes of all tensors of a :class:`SharedFragment`."""

    layout: Fragment
    plan: Plan
    n_envs: int
    weights: list[tuple[tuple[int, ...], torch.dtype]]

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
        layout, plan, n_envs, weights = self
        blank = blank_fragment(layout, plan.n_steps, n_envs, allocator)
        final: Nested = ()
        if plan.final:
            n_rows = plan.n_steps * n_envs
            t, b = allocator((n_rows,), torch.int64), allocator((n_rows,), torch.int64)
            obs, actor = (blank_rows(tree, 1, n_rows, allocator) for tree in (layout.state.obs, layout.actor))
            final = Final(t, b, *nested.map(lambda x: x[0], (obs, actor)))
        return SharedFragment(blank, final, [allocator(*weight) for weight in weights])


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
    """Allocates consecutive tensors from a block of memory; without one it only counts their bytes."""

    def __init__(self, memory: Tensor | None) -> None:
        self._memory, self.used = memory, 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate a tensor; without a block of memory it is on the meta device."""
        start, size = self.used, prod(shape) * dtype.itemsize
        self.used += -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        return self._memory[start : start + size].view(dtype).view(tuple(shape))
