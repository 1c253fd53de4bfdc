"""Layouts: the shape and dtype of each leaf of a fragment; and uninitialised memory of these shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..core import Fragment, Outcome, State
from ..envs.info import Entries

__all__ = [
    "Leaf",
    "blank_fragment",
    "blank_hx",
    "blank_rows",
    "blank_tensors",
    "dtype_of",
    "info_layout",
    "numpy_dtype_of",
    "outcome_layout",
    "state_layout",
    "whole_layout",
]

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]
"""Allocates an uninitialised tensor of a shape and dtype."""


@dataclass(frozen=True)
class Leaf:
    """A shape and a dtype: of what one environment gives in one row, or of a whole tensor of a fragment."""

    shape: tuple[int, ...]
    dtype: torch.dtype


def state_layout(obs: Nested, act: Nested) -> State:
    """Return the layout of a state, from the fields of the observation space and of the action space."""
    obs, act = _leaves_of(obs), _leaves_of(act)
    return State(stepno=Leaf((), torch.int64), obs=obs, act=act, rew=Leaf((), torch.float32), fin=Leaf((), torch.bool))


def info_layout(entries: Entries) -> dict[str, Leaf]:
    """Return the layout of the recorded entries of the environments' info, by their names."""
    return {entry.name: _leaves_of(entry.field) for entry in entries.entries}


def _leaves_of(fields: Nested) -> Nested:
    """Convert fields, which have numpy dtypes, to leaves with torch dtypes."""
    return nested.map(lambda field: Leaf(field.shape, dtype_of(field.dtype)), fields)


def outcome_layout(info: dict[str, Leaf]) -> Outcome:
    """Return the layout of an outcome, from that of the environments' info. ``final`` is ``()``."""
    flag = Leaf((), torch.bool)
    return Outcome(terminated=flag, truncated=flag, valid=flag, info=info, final=())


def whole_layout(layout: Fragment, n_steps: int, n_envs: int) -> Fragment:
    """Return the layout of a fragment with the shapes of its whole tensors.

    ``layout`` has the shapes of one environment in one row; here the dimensions of time and batch are added.
    """
    return Fragment(
        state=_whole_rows(layout.state, 1 + n_steps, n_envs),
        actor=_whole_rows(layout.actor, 1 + n_steps, n_envs),
        env=_whole_rows(layout.env, n_steps, n_envs),
        hx=_whole_hx(layout.hx, n_envs),
    )


def blank_tensors(whole: Nested, allocate: Allocate) -> Nested:
    """Allocate a tensor for each leaf. Each is memory of its own: keeping one keeps no other alive."""
    return nested.map(lambda leaf: allocate(leaf.shape, leaf.dtype), whole)


def blank_fragment(layout: Fragment, n_steps: int, n_envs: int, allocate: Allocate) -> Fragment:
    """Allocate a blank fragment. ``layout`` has :class:`Leaf` instead of tensors."""
    return blank_tensors(whole_layout(layout, n_steps, n_envs), allocate)  # type: ignore[no-any-return]


def blank_rows(layout: Nested, n: int, n_envs: int, allocate: Allocate) -> Nested:
    """Allocate ``n`` rows, ``(n, B, ...)``."""
    return blank_tensors(_whole_rows(layout, n, n_envs), allocate)


def blank_hx(layout: Nested, n_envs: int, allocate: Allocate) -> Nested:
    """Allocate a recurrent state, ``(L, B, ...)``. The shapes in ``layout`` are ``(L, ...)``."""
    return blank_tensors(_whole_hx(layout, n_envs), allocate)


def _whole_rows(layout: Nested, n: int, n_envs: int) -> Nested:
    return nested.map(lambda leaf: Leaf((n, n_envs, *leaf.shape), leaf.dtype), layout)


def _whole_hx(layout: Nested, n_envs: int) -> Nested:
    return nested.map(lambda leaf: Leaf((leaf.shape[0], n_envs, *leaf.shape[1:]), leaf.dtype), layout)


def dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    """Return the torch dtype that corresponds to a numpy dtype.

    Raises
    ------
    TypeError
        If there is none.
    """
    return torch.from_numpy(np.empty(0, dtype)).dtype


@cache
def numpy_dtype_of(dtype: torch.dtype) -> np.dtype[Any]:
    """Return the numpy dtype that corresponds to a torch dtype; float32 for bfloat16, which numpy does not have."""
    known = torch.float32 if dtype == torch.bfloat16 else dtype
    return torch.empty(0, dtype=known, device="cpu").numpy().dtype
