"""Shared memory in which one fragment and its weights travel between two processes."""

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

__all__ = ["SharedFragmentSpec", "SharedFragment"]

_ALIGNMENT = 64  # bytes: a cache line


class SharedFragment(NamedTuple):
    """Memory that two processes share: a fragment on its way, and the true last states that belong to it."""

    blank: Fragment
    final: Nested
    """A ``Final`` with room for as many ends as there are transitions, or ``()``. Pages that nothing is written to take
    no memory."""
    weights: list[Tensor]
    """Those that the next fragment is collected with."""


class SharedFragmentSpec(NamedTuple):
    """What a region has to hold."""

    layout: Fragment
    plan: Plan
    n_envs: int
    weights: list[tuple[tuple[int, ...], torch.dtype]]

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        carver = _Carver(None)
        self._carved(carver)
        return carver.used

    def region(self, memory: Tensor) -> SharedFragment:
        """Carve it out of a slab."""
        return self._carved(_Carver(memory))

    def _carved(self, carver: _Carver) -> SharedFragment:
        layout, plan, n_envs, forms = self
        blank = blank_fragment(layout, plan.n_steps, n_envs, carver)
        final: Nested = ()
        if plan.final:
            room = plan.n_steps * n_envs
            t, b = carver((room,), torch.int64), carver((room,), torch.int64)
            obs, actor = (blank_rows(tree, 1, room, carver) for tree in (layout.state.obs, layout.actor))
            final = Final(t, b, *nested.map(lambda x: x[0], (obs, actor)))
        return SharedFragment(blank, final, [carver(*form) for form in forms])


class _Carver:
    """Allocates from a slab; without one, it only counts."""

    def __init__(self, memory: Tensor | None) -> None:
        self._memory, self.used = memory, 0

    def __call__(self, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate; what is allocated without a slab is on the meta device."""
        start, size = self.used, prod(shape) * dtype.itemsize
        self.used += -(-size // _ALIGNMENT) * _ALIGNMENT
        if self._memory is None:
            return torch.empty(tuple(shape), dtype=dtype, device="meta")
        return self._memory[start : start + size].view(dtype).view(tuple(shape))
