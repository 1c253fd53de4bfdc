"""The slot: host memory of the rows of a fragment, with NumPy views for the environments and tensors for copies.

This module must not import steppers, actors or lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import prod
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ..core import Outcome, State
from ..stepping.blocks import ALIGNMENT, ArrayLocation, BlockLayout, SlotLayout
from .layout import Allocate, Leaf, dtype_of, numpy_dtype_of, outcome_layout

__all__ = ["NO_COPIES", "Blocks", "GroupBlocks", "HostRows", "RowCopies", "RowLayout", "Slot", "in_words"]

_LEAF_ALIGNMENT = 16
"""Bytes of the widest number, a complex128."""


class RowLayout(NamedTuple):
    """Where the leaves of a row lie in a block, in the structures that a fragment has them in."""

    state: State
    """The location of each leaf of a state."""
    env: Outcome
    """The location of each leaf of the outcome of the transition that has led to it. ``final`` is ``()``."""
    block: BlockLayout
    """The same as flat lists."""

    @classmethod
    def of(cls, state: State, info: dict[str, Leaf], width: int) -> RowLayout:
        """Divide a block among the leaves of ``width`` environments.

        Parameters
        ----------
        state : State of Leaf
            The layout of a state.
        info : dict of Leaf
            The layout of the recorded entries of the environments' info.
        """
        end = 0

        def place(leaf: Leaf) -> ArrayLocation:
            nonlocal end
            location = ArrayLocation(_align(end, _LEAF_ALIGNMENT), (width, *leaf.shape), numpy_dtype_of(leaf.dtype))
            end = location.stop
            return location

        obs, act = (nested.map(place, tree) for tree in (state.obs, state.act))  # the order in memory
        state = State(place(state.stepno), obs, act, place(state.rew), place(state.fin))
        env = nested.map(place, outcome_layout(info))
        block = BlockLayout(
            nested.leaves(obs), nested.leaves(act), state.stepno, state.rew, state.fin,
            env.terminated, env.truncated, env.valid, nested.leaves(env.info), _align(end, ALIGNMENT),
        )  # fmt: skip
        return cls(state, env, block)


class Blocks:
    """Rows of one turn, on the host or on a device, as tensors.

    Attributes
    ----------
    memory : uint8 tensor, ``(n, size)``
        A block for each row.
    state : State of tensors, ``(n, b, ...)``
    env : Outcome of tensors, ``(n, b, ...)``
        For each row the outcome of the transition that has led to it.
    fragment : State and Outcome of tensors
        The same as a fragment has them: no transition has led to its first row.
    """

    def __init__(self, memory: Tensor, layout: RowLayout) -> None:
        """Make the views."""
        self.memory, self.layout = memory, layout

        def view(location: ArrayLocation) -> Tensor:
            part = memory[:, location.start : location.stop].view(dtype_of(location.dtype))
            return part.view(len(memory), *location.shape)

        self.state: State
        self.env: Outcome
        self.state, self.env = nested.map(view, (layout.state, layout.env))
        self.fragment: tuple[State, Outcome] = self.state, nested.map(lambda x: x[1:], self.env)

    def select(self, index: Tensor) -> Tensor:
        """Return a copy of the block of one row, uint8 ``(1, size)``; ``index`` is an int64 tensor ``(1,)``."""
        return _as_words(self.memory).index_select(0, index).view(torch.uint8)

    def write(self, index: Tensor, block: Tensor) -> None:
        """Write the block of one row, uint8 ``(1, size)``; ``index`` is an int64 tensor ``(1,)``."""
        _as_words(self.memory).index_copy_(0, index, _as_words(block))

    def actions(self, t: int) -> Tensor:
        """Return the bytes of all leaves of the action in one row, a uint8 tensor."""
        return self.memory[t, self.layout.block.actions]

    def action_leaves(self, memory: Tensor) -> list[Tensor]:
        """Return the leaves of an action, ``(1, b, ...)``, as views of memory like that of :meth:`actions`."""
        start = self.layout.block.actions.start

        def view(location: ArrayLocation) -> Tensor:
            part = memory[location.start - start : location.stop - start].view(dtype_of(location.dtype))
            return part.view(1, *location.shape)

        return [view(location) for location in self.layout.block.act]


class RowCopies(NamedTuple):
    """Which rows of the slot are copied to the actor's device, and from it, at one step."""

    up: int | None
    """The row that is copied to the actor's device before the step. None if the device has it already."""
    down: int | None
    """The row that the actions are copied into after the step. None if the step is virtual."""


NO_COPIES = RowCopies(None, None)


class HostRows(NamedTuple):
    """The rows of a slot that belong to one group alone, so that its captured steps may copy them to the device."""

    blocks: list[Tensor]
    """The uint8 block of each row."""
    acts: list[Tensor]
    """The bytes of the action in each block."""
    answered: Tensor
    """The bytes of the action that the actor has answered with, on its device."""
    copies: list[RowCopies]
    """Each combination of copies that occurs at a step of any fragment."""


class GroupBlocks(NamedTuple):
    """The part of a turn's blocks that belongs to one group."""

    blocks: Blocks
    inside: slice
    """The group's environments, out of those of the turn."""
    host: HostRows | None = None
    """The host rows that captured steps copy. None if captured steps must not copy them."""

    @property
    def state(self) -> State:
        """The states, ``(n, b, ...)``, as views."""
        return nested.map(lambda x: x[:, self.inside], self.blocks.state)  # type: ignore[no-any-return]

    def select(self, index: Tensor) -> State:
        """Return a copy of one row, ``(1, b, ...)``, by one gather; ``index`` is an int64 tensor ``(1,)``."""
        return self.state_in(self.blocks.select(index))

    def state_in(self, memory: Tensor) -> State:
        """Return the states in other blocks, uint8 ``(n, size)``, as views."""
        return GroupBlocks(Blocks(memory, self.blocks.layout), self.inside).state


class Slot:
    """Host memory for the rows of each turn, and one more row for true last observations.

    One slab of memory holds all blocks, since page-locked memory is allocated in powers of two bytes. The slab is never
    delivered: fragments are copied out of it. All views that a step needs are made once.

    Attributes
    ----------
    layout : SlotLayout
        How the slab is divided.
    slab : uint8 tensor
        The whole memory.
    turns : list of TurnRows
        NumPy views of the rows of each turn.
    blocks : list of Blocks
        The same as tensors.
    lasts : list of Blocks, with one row each
        The rows of true last observations.
    """

    def __init__(self, layouts: Sequence[RowLayout], absent: Sequence[Any], n_rows: int, allocate: Allocate) -> None:
        """Divide a slab among the turns, and make the views.

        Parameters
        ----------
        layouts : sequence of RowLayout
            Of each turn.
        absent : sequence
            For each recorded entry of the environments' info: the value if an environment does not give it.
        n_rows : int
            The number of rows.
        """
        self.layout = SlotLayout([layout.block for layout in layouts], n_rows)
        self.slab = allocate((self.layout.size,), torch.uint8)
        self.slab.zero_()
        self.turns = self.layout.rows(self.slab.numpy())
        divided = list(zip(self.layout.divide(self.slab), layouts, strict=True))
        self.blocks = [Blocks(memory[:n_rows], layout) for memory, layout in divided]
        self.lasts = [Blocks(memory[n_rows:], layout) for memory, layout in divided]
        self._valid = [one.env.valid.numpy() for one in self.blocks]
        self._clear = [_clearing(memory.numpy(), layout.block, absent) for memory, layout in divided]

    def count_valid(self, turn: int, rows: int | slice) -> int:
        """Return how many actions the environments of a turn have carried out in the transitions to these rows."""
        return int(np.count_nonzero(self._valid[turn][rows]))

    def clear(self, turn: int, row: int) -> None:
        """Set all that is small in a row to what it is before a step: nothing ended, all valid, no info."""
        self._clear[turn](row)


def _clearing(blocks: Any, layout: BlockLayout, absent: Sequence[Any]) -> Callable[[int], None]:
    """Return a function that clears one of the blocks, by one copy."""
    template = blocks[0].copy()
    _, outcome = layout.views(template)
    outcome.valid[...] = True
    for leaf, value in zip(outcome.info, absent, strict=True):
        leaf[...] = value
    small = [block[layout.small].data for block in blocks]
    cleared = template[layout.small].tobytes()

    def clear(row: int) -> None:
        small[row][:] = cleared

    return clear


def in_words(rows: Tensor) -> Tensor:
    """View rows ``(n, b, ...)`` as int64 ``(n, ...)`` if each environment has bytes, and a multiple of 8 of them.

    A device copies rows with gaps between them number by number. One byte takes as long as one int64, so there are
    eight times as many numbers to copy without this view.
    """
    if not rows.numel() or rows.element_size() * prod(rows.shape[2:]) % 8:
        return rows
    return _as_words(rows.view(len(rows), prod(rows.shape[1:])))


def _as_words(blocks: Tensor) -> Tensor:
    """View bytes as int64: a device that copies number by number has eight times fewer to copy."""
    return blocks.view(torch.int64)


def _align(offset: int, alignment: int) -> int:
    return -(-offset // alignment) * alignment
