"""Shapes and dtypes of a fragment's leaves, and blank memory of these shapes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..core import Fragment, Outcome, State

__all__ = [
    "Leaf",
    "blank_fragment",
    "blank_hx",
    "blank_rows",
    "dtype_of",
    "fields_to_leaves",
    "outcome_layout",
    "state_layout",
]

Allocate = Callable[[Sequence[int], torch.dtype], Tensor]


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


def blank_fragment(layout: Fragment, n_steps: int, n_envs: int, allocate: Allocate) -> Fragment:
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


def dtype_of(dtype: np.dtype[Any]) -> torch.dtype:
    """Name torch's counterpart of a numpy dtype.

    Raises
    ------
    TypeError
        If there is none.
    """
    return torch.from_numpy(np.empty(0, dtype)).dtype
