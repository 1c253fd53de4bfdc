"""Blocks: how the rows of the environments lie in host memory. Must import neither torch nor threads.

A *block* is one row of the environments of one turn, side by side in memory, so that one copy brings it to a device.
The leaves of the observation come first, then those of the action, then all that is small: step count, reward, ``fin``,
and the outcome of the transition that has led to the row. A *slot* is a slab of memory with some blocks of each turn.
Environments write into NumPy views of it, which are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import accumulate
from math import prod
from typing import Any, NamedTuple

import numpy as np

from ..envs.rows import Array, OutcomeRow, StateRow

__all__ = ["ALIGNMENT", "ArrayLocation", "BlockLayout", "SlotLayout", "TurnRows"]

ALIGNMENT = 64
"""Bytes of a cache line. Blocks begin at multiples of it."""


@dataclass(frozen=True)
class ArrayLocation:
    """The location of one array ``(b, ...)`` in a block."""

    start: int
    """The offset of its first byte."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def stop(self) -> int:
        """The offset behind its last byte."""
        return self.start + prod(self.shape) * self.dtype.itemsize


class BlockLayout(NamedTuple):
    """How a block is divided: a row of states, and the outcome of the transition to it. It can be pickled."""

    obs: list[ArrayLocation]
    act: list[ArrayLocation]
    stepno: ArrayLocation
    rew: ArrayLocation
    fin: ArrayLocation
    terminated: ArrayLocation
    truncated: ArrayLocation
    valid: ArrayLocation
    info: list[ArrayLocation]
    size: int
    """In bytes."""

    @property
    def actions(self) -> slice:
        """The bytes of all leaves of the action."""
        return slice(self.act[0].start, self.act[-1].stop) if self.act else slice(0, 0)

    @property
    def small(self) -> slice:
        """The bytes of all that is neither observation nor action."""
        return slice(self.stepno.start, self.size)

    def views(self, block: Array) -> tuple[StateRow, OutcomeRow]:
        """Make the views of one block, a uint8 array of ``size`` elements."""

        def view(location: ArrayLocation) -> Array:
            return block[location.start : location.stop].view(location.dtype).reshape(location.shape)

        obs, act, info = ([view(location) for location in these] for these in (self.obs, self.act, self.info))
        state = StateRow.of(view(self.stepno), obs, act, view(self.rew), view(self.fin))
        return state, OutcomeRow(view(self.terminated), view(self.truncated), view(self.valid), info)


class TurnRows(NamedTuple):
    """The rows of one turn in a slot, as NumPy views."""

    rows: list[StateRow]
    outcomes: list[OutcomeRow]
    """For each row, the outcome of the transition that has led to it."""
    last: StateRow
    """The row of true last observations."""

    def part(self, columns: slice) -> TurnRows:
        """Return views of some of the turn's environments only."""
        rows = [row.part(columns) for row in self.rows]
        outcomes = [outcome.part(columns) for outcome in self.outcomes]
        return TurnRows(rows, outcomes, self.last.part(columns))

    def steps(self) -> list[tuple[StateRow, StateRow, OutcomeRow]]:
        """List for each row what a step from it reads and writes; the last row is followed by the first."""
        following = [*range(1, len(self.rows)), 0]
        return [(row, self.rows[k], self.outcomes[k]) for row, k in zip(self.rows, following, strict=True)]


class SlotLayout(NamedTuple):
    """How a slot is divided: for each turn its rows, then one for true last observations. It can be pickled."""

    turns: list[BlockLayout]
    n_rows: int

    @property
    def size(self) -> int:
        """The size in bytes."""
        return sum(layout.size for layout in self.turns) * (self.n_rows + 1)

    def divide(self, slab: Any) -> list[Any]:
        """Return views of the blocks of each turn, ``(n_rows + 1, size)``, of a uint8 array or tensor."""
        sizes = [layout.size * (self.n_rows + 1) for layout in self.turns]
        starts = accumulate(sizes, initial=0)
        parts = [slab[start : start + size] for start, size in zip(starts, sizes, strict=False)]
        return [part.reshape(self.n_rows + 1, -1) for part in parts]

    def rows(self, slab: Array) -> list[TurnRows]:
        """Make the views of the rows of each turn."""
        return [_rows(layout, blocks) for layout, blocks in zip(self.turns, self.divide(slab), strict=True)]


def _rows(layout: BlockLayout, blocks: Sequence[Array]) -> TurnRows:
    views = [layout.views(block) for block in blocks]
    states, outcomes = [state for state, _ in views], [outcome for _, outcome in views]
    return TurnRows(states[:-1], outcomes[:-1], states[-1])
