"""The rows that environments write into: numpy views of one contiguous slab of host memory.

Imports numpy only, so that a process that only steps environments need not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = [
    "Array",
    "ArrayLocation",
    "SlabLayout",
    "Episode",
    "OutcomeRow",
    "StateRow",
    "flat_view",
    "vector_slices",
    "view_rows",
]

Array = npt.NDArray[Any]

_MEMORYVIEW_DTYPES = "?bBhHiIlLqQfd"
"""The dtypes that a memoryview can be cast to and that numpy calls by the same letter."""


class Episode(NamedTuple):
    """A whole episode that ended in a delivered fragment."""

    env: int
    """The environment's index."""
    ret: float
    """The undiscounted sum of its rewards, as the environment returned them."""
    length: int
    """Its length in environment steps."""


class StateRow(NamedTuple):
    """Row ``t`` of the states, as numpy views: leaves have shape ``(B, ...)``; ``obs`` and ``act`` are flat lists."""

    stepno: Array
    obs: list[Array]
    act: list[Array]
    rew: Array
    fin: Array

    def part(self, columns: slice) -> StateRow:
        """Return views of some of the environments only."""
        obs, act = ([leaf[columns] for leaf in leaves] for leaves in (self.obs, self.act))
        return StateRow(self.stepno[columns], obs, act, self.rew[columns], self.fin[columns])

    def begin(self) -> None:
        """Write all of row 0 of the first fragment but the observations: ``fin`` is True, all else is zero."""
        self.fin[:] = True
        for leaf in (self.stepno, self.rew, *self.act):
            leaf[...] = 0


class OutcomeRow(NamedTuple):
    """The outcome of the transition ``t -> t+1``, as numpy views of shape ``(B, ...)``; ``info`` is a flat list."""

    terminated: Array
    truncated: Array
    valid: Array
    info: list[Array]

    def part(self, columns: slice) -> OutcomeRow:
        """Return views of some of the environments only."""
        info = [leaf[columns] for leaf in self.info]
        return OutcomeRow(self.terminated[columns], self.truncated[columns], self.valid[columns], info)


@dataclass(frozen=True)
class ArrayLocation:
    """The location of one array ``(n, B, ...)`` in a slab."""

    start: int
    """The offset of its first byte."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """The number of bytes."""
        return prod(self.shape) * self.dtype.itemsize


class SlabLayout(NamedTuple):
    """The locations of all arrays of a slot in its slab. It can be pickled."""

    state: list[ArrayLocation]
    """``(1+T, B, ...)``: ``stepno``, the ``n_obs`` leaves of ``obs``, the leaves of ``act``, ``rew``, ``fin``."""
    outcomes: list[ArrayLocation]
    """``(T, B, ...)``: ``terminated``, ``truncated``, ``valid``, the leaves of ``info``."""
    last: list[ArrayLocation]
    """``(1, B, ...)``: a row like those of ``state``, for the true last observations."""
    n_obs: int
    """The number of leaves of an observation."""


def view_rows(slab: Array, slab_layout: SlabLayout) -> tuple[list[StateRow], list[OutcomeRow], StateRow]:
    """Make the views of a slab: its ``1+T`` rows, its ``T`` outcomes, and the row of true last observations."""

    def view(location: ArrayLocation) -> Array:
        raw = slab[location.start : location.start + location.size]
        return raw.view(location.dtype).reshape(location.shape)

    def rows(locations: list[ArrayLocation]) -> list[StateRow]:
        stepno, *between, rew, fin = map(view, locations)
        obs, act = between[: slab_layout.n_obs], between[slab_layout.n_obs :]
        return [
            StateRow(stepno[t], [leaf[t] for leaf in obs], [leaf[t] for leaf in act], rew[t], fin[t])
            for t in range(len(rew))
        ]

    terminated, truncated, valid, *info = map(view, slab_layout.outcomes)
    outcomes = [
        OutcomeRow(terminated[t], truncated[t], valid[t], [leaf[t] for leaf in info]) for t in range(len(valid))
    ]
    (last,) = rows(slab_layout.last)
    return rows(slab_layout.state), outcomes, last


def flat_view(leaf: Array) -> memoryview:
    """Return a view of a contiguous array without its dimensions."""
    char: Any = leaf.dtype.char
    return leaf.data.cast("B").cast(char)


def vector_slices(shape: tuple[int, ...], dtype: np.dtype[Any], n_envs: int) -> list[slice]:
    """Return each environment's slice of a flat row if an observation is a vector, else an empty list.

    Assigning to a slice of a memoryview checks length and dtype and copies, in half the time of a numpy assignment.
    """
    if len(shape) != 1 or shape[0] == 0 or dtype.char not in _MEMORYVIEW_DTYPES:
        return []
    (n,) = shape
    return [slice(j * n, (j + 1) * n) for j in range(n_envs)]
