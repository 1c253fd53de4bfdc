"""What environments write into: rows of numpy views, cut from one slab of host memory.

Knows numpy alone, so that a process that does nothing but step environments need not load torch.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

__all__ = ["Array", "ArrayLocation", "SlabLayout", "Episode", "OutcomeRow", "StateRow", "view_rows"]

Array = npt.NDArray[Any]


class Episode(NamedTuple):
    """A whole episode that ended in a delivered fragment."""

    env: int
    """The environment's index."""
    ret: float
    """The undiscounted sum of its rewards, as the environment gave them."""
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
        """Look at some of the environments alone."""
        obs, act = ([leaf[columns] for leaf in leaves] for leaves in (self.obs, self.act))
        return StateRow(self.stepno[columns], obs, act, self.rew[columns], self.fin[columns])

    def begin(self) -> None:
        """Make this the very first row, but for the observations: nothing has been done or received yet."""
        self.fin[:] = True
        for leaf in (self.stepno, self.rew, *self.act):
            leaf[...] = 0


class OutcomeRow(NamedTuple):
    """What is noted of the transition ``t -> t+1``, as numpy views of shape ``(B, ...)``; ``info`` in a flat list."""

    terminated: Array
    truncated: Array
    valid: Array
    info: list[Array]

    def part(self, columns: slice) -> OutcomeRow:
        """Look at some of the environments alone."""
        info = [leaf[columns] for leaf in self.info]
        return OutcomeRow(self.terminated[columns], self.truncated[columns], self.valid[columns], info)


@dataclass(frozen=True)
class ArrayLocation:
    """Where in a slab an array lies, ``(n, B, ...)``."""

    start: int
    """In bytes."""
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def size(self) -> int:
        """How many bytes it takes."""
        return prod(self.shape) * self.dtype.itemsize


class SlabLayout(NamedTuple):
    """How a slab is divided into the arrays of a slot. It can be pickled."""

    state: list[ArrayLocation]
    """``(1+T, B, ...)``: the leaves of a state in their order, with ``n_obs`` of observations and then actions."""
    outcomes: list[ArrayLocation]
    """``(T, B, ...)``: terminated, truncated, valid, and the leaves of the info."""
    last: list[ArrayLocation]
    """``(1, B, ...)``: like ``state``."""
    n_obs: int
    """How many leaves an observation has."""


def view_rows(slab: Array, slab_layout: SlabLayout) -> tuple[list[StateRow], list[OutcomeRow], StateRow]:
    """Make the views of a slab: its ``1+T`` rows, its ``T`` outcome, and the row of true last observations."""

    def cut(part: ArrayLocation) -> Array:
        return slab[part.start : part.start + part.size].view(part.dtype).reshape(part.shape)

    def rows(parts: list[ArrayLocation]) -> list[StateRow]:
        stepno, *between, rew, fin = map(cut, parts)
        obs, act = between[: slab_layout.n_obs], between[slab_layout.n_obs :]
        return [
            StateRow(stepno[t], [leaf[t] for leaf in obs], [leaf[t] for leaf in act], rew[t], fin[t])
            for t in range(len(rew))
        ]

    terminated, truncated, valid, *info = map(cut, slab_layout.outcomes)
    outcomes = [
        OutcomeRow(terminated[t], truncated[t], valid[t], [leaf[t] for leaf in info]) for t in range(len(valid))
    ]
    (last,) = rows(slab_layout.last)
    return rows(slab_layout.state), outcomes, last
