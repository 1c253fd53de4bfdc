"""The slot: host memory of one fragment, with numpy views for the environments and tensors for copies.

This module must not import steppers, actors or lanes.
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

_ALIGNMENT = 64
"""Bytes of a cache line."""


class Slot:
    """Host memory for what the environments give in one fragment, and one extra row for true last observations.

    One slab of memory holds all leaves, since page-locked memory is allocated in powers of two bytes. The slab is never
    delivered: fragments are copied out of it. All views that a step needs are made once.

    Attributes
    ----------
    state : State of tensors, ``(1+T, B, ...)``
    env : Outcome of tensors, ``(T, B, ...)``
        ``final`` is ``()``.
    last : State of tensors, ``(1, B, ...)``
        The row of true last observations.
    slab : uint8 tensor
        The whole memory.
    slab_layout : SlabLayout
        How the slab is divided.
    rows : list of StateRow, ``1+T`` of them
        Numpy views of ``state``.
    outcomes : list of OutcomeRow, ``T`` of them
        Numpy views of ``env``.
    last_row : StateRow
        Numpy view of ``last``.
    """

    def __init__(
        self, state: State, info: dict[str, Leaf], absent: list[Any], n_steps: int, n_envs: int, allocate: Allocate
    ) -> None:
        """Divide a slab among the leaves, and make the views.

        Parameters
        ----------
        state : State of Leaf
            The layout of a state.
        info : dict of Leaf
            The layout of the recorded entries of the environments' info.
        absent : list
            For each leaf of ``info``: the value that is recorded if an environment does not give the entry.
        """
        reserved: list[ArrayLocation] = []

        def reserve(n: int) -> Callable[[Leaf], ArrayLocation]:
            """Return a function that reserves ``n`` rows of a leaf, at the next aligned address of the slab."""

            def reserve_leaf(leaf: Leaf) -> ArrayLocation:
                start = -(-(reserved[-1].start + reserved[-1].size) // _ALIGNMENT) * _ALIGNMENT if reserved else 0
                dtype = torch.empty(0, dtype=leaf.dtype, device="cpu").numpy().dtype
                reserved.append(ArrayLocation(start, (n, n_envs, *leaf.shape), dtype))
                return reserved[-1]

            return reserve_leaf

        locations = (
            nested.map(reserve(1 + n_steps), state),
            nested.map(reserve(n_steps), outcome_layout(info)),
            nested.map(reserve(1), state),
        )
        self.slab = allocate((reserved[-1].start + reserved[-1].size,), torch.uint8)
        self.slab.zero_()

        def view(part: ArrayLocation) -> Tensor:
            return self.slab[part.start : part.start + part.size].view(dtype_of(part.dtype)).view(part.shape)

        self.state: State
        self.env: Outcome
        self.last: State
        self.state, self.env, self.last = nested.map(view, locations)
        in_state, in_outcomes, in_last = map(nested.leaves, locations)
        self.slab_layout = SlabLayout(in_state, in_outcomes, in_last, n_obs=len(nested.leaves(state.obs)))
        self.rows, self.outcomes, self.last_row = view_rows(self.slab.numpy(), self.slab_layout)
        self._absent = absent

    def clear(self) -> None:
        """Set outcomes to their defaults before the next fragment: nothing ended, all valid, no info."""
        self.state.fin[1:] = False
        self.env.terminated.fill_(False)
        self.env.truncated.fill_(False)
        self.env.valid.fill_(True)
        for leaf, absent in zip(nested.leaves(self.env.info), self._absent, strict=True):
            leaf.numpy()[...] = absent
