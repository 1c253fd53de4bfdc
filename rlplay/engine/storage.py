"""Where fragments lie: one host slot seen through numpy and torch at once, and blank fragments on any device.

Knows shapes and memory. Not who fills it, nor when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .. import nested
from ..nested import Nested
from .core import Fragment, Outcome, State

__all__ = [
    "Array",
    "Leaf",
    "Marks",
    "Row",
    "Slot",
    "blank",
    "blank_hx",
    "blank_rows",
    "dtype_of",
    "fields_to_leaves",
    "outcome_layout",
    "state_layout",
]

Array = npt.NDArray[Any]
Allocate = Callable[[Sequence[int], torch.dtype], Tensor]

_ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True)
class Leaf:
    """What one environment contributes to one row: a shape (without time and batch) and a dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


class Row(NamedTuple):
    """Row ``t`` of the states, as numpy views: leaves have shape ``(B, ...)``; ``obs`` and ``act`` are flat lists."""

    stepno: Array
    obs: list[Array]
    act: list[Array]
    rew: Array
    fin: Array

    def begin(self) -> None:
        """Make this the very first row, but for the observations: nothing has been done or received yet."""
        self.fin[:] = True
        for leaf in (self.stepno, self.rew, *self.act):
            leaf[...] = 0


class Marks(NamedTuple):
    """What is noted of the transition ``t -> t+1``, as numpy views of shape ``(B, ...)``; ``info`` in a flat list."""

    terminated: Array
    truncated: Array
    valid: Array
    info: list[Array]


def state_layout(obs: Nested, act: Nested) -> State:
    """Complete the leaves of observation and action to those of a whole state."""
    return State(stepno=Leaf((), torch.int64), obs=obs, act=act, rew=Leaf((), torch.float32), fin=Leaf((), torch.bool))


def fields_to_leaves(described: Nested) -> Nested:
    """Say in torch's terms what the fields of a space say in numpy's."""
    return nested.map(lambda field: Leaf(field.shape, dtype_of(field.dtype)), described)


def outcome_layout(info: dict[str, Leaf]) -> Outcome:
    """Complete the leaves of the environments' info to those of an outcome, without ``final``."""
    flag = Leaf((), torch.bool)
    return Outcome(terminated=flag, truncated=flag, valid=flag, info=info, final=())


def blank(layout: Fragment, n_steps: int, n_envs: int, allocate: Allocate) -> Fragment:
    """Allocate an uninitialised fragment. ``layout`` holds :class:`Leaf` instead of tensors."""
    return Fragment(
        state=blank_rows(layout.state, 1 + n_steps, n_envs, allocate),
        actor=blank_rows(layout.actor, 1 + n_steps, n_envs, allocate),
        env=blank_rows(layout.env, n_steps, n_envs, allocate),
        hx=blank_hx(layout.hx, n_envs, allocate),
    )


def blank_rows(layout: Nested, n: int, n_envs: int, allocate: Allocate) -> Nested:
    """Allocate rows ``(n, B, ...)``, a tensor a leaf, so that keeping one leaf keeps no other alive."""
    return nested.map(lambda leaf: allocate((n, n_envs, *leaf.shape), leaf.dtype), layout)


def blank_hx(layout: Nested, n_envs: int, allocate: Allocate) -> Nested:
    """Allocate a recurrent state ``(L, B, ...)``: the batch is the second dimension."""
    return nested.map(lambda leaf: allocate((leaf.shape[0], n_envs, *leaf.shape[1:]), leaf.dtype), layout)


class Slot:
    """Host memory for what environments give in one fragment, and for one row beside: the true last observations.

    All of it lies in one slab (page-locked memory is handed out in powers of two), which is never given away. Every
    view that a step needs is made here, once.

    Attributes
    ----------
    state : State of tensors, ``(1+T, B, ...)``
    env : Outcome of tensors, ``(T, B, ...)``; ``final`` is ``()``
    last : State of tensors, ``(1, B, ...)``
    rows : list of Row, ``1 + T`` of them, the numpy views of ``state``
    marks : list of Marks, ``T`` of them, the numpy views of ``env``
    last_row : Row, the numpy view of ``last``
    """

    def __init__(
        self, state: State, info: dict[str, Leaf], absent: list[Any], n_steps: int, n_envs: int, allocate: Allocate
    ) -> None:
        """Lay the leaves out. ``absent`` has, for each info leaf, the number that stands for "not there"."""
        cut: list[tuple[int, tuple[int, ...], torch.dtype]] = []
        size = 0

        def reserve(n: int) -> Callable[[Leaf], int]:
            def one(leaf: Leaf) -> int:
                nonlocal size
                shape = (n, n_envs, *leaf.shape)
                cut.append((size, shape, leaf.dtype))
                size += -(-prod(shape) * leaf.dtype.itemsize // _ALIGNMENT) * _ALIGNMENT
                return len(cut) - 1

            return one

        places = (
            nested.map(reserve(1 + n_steps), state),
            nested.map(reserve(n_steps), outcome_layout(info)),
            nested.map(reserve(1), state),
        )
        slab = allocate((size,), torch.uint8)
        slab.zero_()

        def carve(place: int) -> Tensor:
            start, shape, dtype = cut[place]
            return slab[start : start + prod(shape) * dtype.itemsize].view(dtype).view(shape)

        self.state: State
        self.env: Outcome
        self.last: State
        self.state, self.env, self.last = nested.map(carve, places)
        self.rows = _rows(self.state)
        self.marks = _marks(self.env)
        (self.last_row,) = _rows(self.last)
        self._absent = absent

    def clear(self) -> None:
        """Make every transition one that nothing happened in, before the next fragment is filled in."""
        self.state.fin[1:] = False
        self.env.terminated.fill_(False)
        self.env.truncated.fill_(False)
        self.env.valid.fill_(True)
        for leaf, absent in zip(nested.leaves(self.env.info), self._absent, strict=True):
            leaf.numpy()[...] = absent


def _rows(state: State) -> list[Row]:
    stepno, rew, fin = state.stepno.numpy(), state.rew.numpy(), state.fin.numpy()
    obs = [leaf.numpy() for leaf in nested.leaves(state.obs)]
    act = [leaf.numpy() for leaf in nested.leaves(state.act)]
    return [
        Row(stepno[t], [leaf[t] for leaf in obs], [leaf[t] for leaf in act], rew[t], fin[t]) for t in range(len(rew))
    ]


def _marks(env: Outcome) -> list[Marks]:
    terminated, truncated, valid = env.terminated.numpy(), env.truncated.numpy(), env.valid.numpy()
    info = [leaf.numpy() for leaf in nested.leaves(env.info)]
    return [Marks(terminated[t], truncated[t], valid[t], [leaf[t] for leaf in info]) for t in range(len(valid))]


def dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    """Name torch's counterpart of a numpy dtype.

    Raises
    ------
    TypeError
        If there is none.
    """
    return torch.from_numpy(np.empty(0, dtype)).dtype
