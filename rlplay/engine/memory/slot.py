"""Where fragments lie: one host slot seen through numpy and torch at once, and blank fragments on any device.

Knows shapes and memory. Not who fills it, nor when.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ..core import Outcome, State
from ..envs.rows import ArrayLocation, SlabLayout, view_rows
from .layout import Allocate, Leaf, dtype_of, outcome_layout

__all__ = ["Slot"]

_ALIGNMENT = 64  # bytes: a cache line


class Slot:
    """Host memory for what environments give in one fragment, and for one row beside: the true last observations.

    All of it lies in one slab (page-locked memory is handed out in powers of two), which is never given away. Every
    view that a step needs is made here, once.

    Attributes
    ----------
    state : State of tensors, ``(1+T, B, ...)``
    env : Outcome of tensors, ``(T, B, ...)``; ``final`` is ``()``
    last : State of tensors, ``(1, B, ...)``
    slab : uint8 tensor
        All of it.
    slab_layout : SlabLayout
        How the slab is divided.
    rows : list of StateRow, ``1 + T`` of them, the numpy views of ``state``
    outcome : list of OutcomeRow, ``T`` of them, the numpy views of ``env``
    last_row : StateRow, the numpy view of ``last``
    """

    def __init__(
        self, state: State, info: dict[str, Leaf], absent: list[Any], n_steps: int, n_envs: int, allocate: Allocate
    ) -> None:
        """Lay the leaves out. ``absent`` has, for each info leaf, the number that stands for "not there"."""
        cut: list[ArrayLocation] = []

        def reserve(n: int) -> Callable[[Leaf], ArrayLocation]:
            def one(leaf: Leaf) -> ArrayLocation:
                start = -(-(cut[-1].start + cut[-1].size) // _ALIGNMENT) * _ALIGNMENT if cut else 0
                dtype = torch.empty(0, dtype=leaf.dtype, device="cpu").numpy().dtype
                cut.append(ArrayLocation(start, (n, n_envs, *leaf.shape), dtype))
                return cut[-1]

            return one

        places = (
            nested.map(reserve(1 + n_steps), state),
            nested.map(reserve(n_steps), outcome_layout(info)),
            nested.map(reserve(1), state),
        )
        self.slab = allocate((cut[-1].start + cut[-1].size,), torch.uint8)
        self.slab.zero_()

        def carve(part: ArrayLocation) -> Tensor:
            return self.slab[part.start : part.start + part.size].view(dtype_of(part.dtype)).view(part.shape)

        self.state: State
        self.env: Outcome
        self.last: State
        self.state, self.env, self.last = nested.map(carve, places)
        found_state, found_marks, found_last = map(nested.leaves, places)
        self.slab_layout = SlabLayout(found_state, found_marks, found_last, n_obs=len(nested.leaves(state.obs)))
        self.rows, self.outcomes, self.last_row = view_rows(self.slab.numpy(), self.slab_layout)
        self._absent = absent

    def clear(self) -> None:
        """Make every transition one that nothing happened in, before the next fragment is filled in."""
        self.state.fin[1:] = False
        self.env.terminated.fill_(False)
        self.env.truncated.fill_(False)
        self.env.valid.fill_(True)
        for leaf, absent in zip(nested.leaves(self.env.info), self._absent, strict=True):
            leaf.numpy()[...] = absent
