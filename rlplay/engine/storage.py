"""Where fragments lie: one host slot seen through numpy and torch at once, and blank fragments on any device.

Knows shapes and memory. Not who fills it, nor when.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import nested
from ..nested import Nested
from .core import Fragment, Outcome, State
from .rows import Cut, Cuts, read

__all__ = [
    "Leaf",
    "Slot",
    "blank",
    "blank_hx",
    "blank_rows",
    "dtype_of",
    "fields_to_leaves",
    "outcome_layout",
    "state_layout",
]

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]

_ALIGNMENT = 64  # bytes: a cache line


@dataclass(frozen=True)
class Leaf:
    """What one environment contributes to one row: a shape (without time and batch) and a dtype."""

    shape: tuple[int, ...]
    dtype: torch.dtype


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
    slab : uint8 tensor
        All of it.
    cuts : Cuts
        How the slab is divided.
    rows : list of Row, ``1 + T`` of them, the numpy views of ``state``
    marks : list of Marks, ``T`` of them, the numpy views of ``env``
    last_row : Row, the numpy view of ``last``
    """

    def __init__(
        self, state: State, info: dict[str, Leaf], absent: list[Any], n_steps: int, n_envs: int, allocate: Allocate
    ) -> None:
        """Lay the leaves out. ``absent`` has, for each info leaf, the number that stands for "not there"."""
        cut: list[Cut] = []

        def reserve(n: int) -> Callable[[Leaf], Cut]:
            def one(leaf: Leaf) -> Cut:
                start = -(-(cut[-1].start + cut[-1].size) // _ALIGNMENT) * _ALIGNMENT if cut else 0
                dtype = torch.empty(0, dtype=leaf.dtype, device="cpu").numpy().dtype
                cut.append(Cut(start, (n, n_envs, *leaf.shape), dtype))
                return cut[-1]

            return one

        places = (
            nested.map(reserve(1 + n_steps), state),
            nested.map(reserve(n_steps), outcome_layout(info)),
            nested.map(reserve(1), state),
        )
        self.slab = allocate((cut[-1].start + cut[-1].size,), torch.uint8)
        self.slab.zero_()

        def carve(part: Cut) -> Tensor:
            return self.slab[part.start : part.start + part.size].view(dtype_of(part.dtype)).view(part.shape)

        self.state: State
        self.env: Outcome
        self.last: State
        self.state, self.env, self.last = nested.map(carve, places)
        found_state, found_marks, found_last = map(nested.leaves, places)
        self.cuts = Cuts(found_state, found_marks, found_last, n_obs=len(nested.leaves(state.obs)))
        self.rows, self.marks, self.last_row = read(self.slab.numpy(), self.cuts)
        self._absent = absent

    def clear(self) -> None:
        """Make every transition one that nothing happened in, before the next fragment is filled in."""
        self.state.fin[1:] = False
        self.env.terminated.fill_(False)
        self.env.truncated.fill_(False)
        self.env.valid.fill_(True)
        for leaf, absent in zip(nested.leaves(self.env.info), self._absent, strict=True):
            leaf.numpy()[...] = absent


def dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    """Name torch's counterpart of a numpy dtype.

    Raises
    ------
    TypeError
        If there is none.
    """
    return torch.from_numpy(np.empty(0, dtype)).dtype
