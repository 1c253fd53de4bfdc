"""The memory that captured steps read and write, at addresses that do not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ...core import State

__all__ = ["CaptureMemory", "copy_at_once"]


class CaptureMemory:
    """The memory that captured steps of a group read and write, at addresses that do not change.

    Attributes
    ----------
    width : int
        ``b``, the number of environments in the group.
    index : int64 tensor, ``(1,)``
        The row that the next step reacts to.
    infos : list of tensors, ``(n, b, ...)``
        The rows of each leaf of the actor's info.
    hx, hx_leaves : nested tensors, and list of their leaves, ``(L, b, ...)``
        The recurrent state before that row, not yet reset.
    acts : list of tensors, ``(1, b, ...)``
        The leaves of the latest action.
    """

    def __init__(
        self, state: State, info: Nested, hx: Nested, allocate: Callable[[Sequence[int], torch.dtype], Tensor]
    ) -> None:
        """Allocate everything but the rows, ``state`` and ``info``, which are ``(n, b, ...)`` and used as they are."""
        self._rows, self._structure = nested.flatten(state)
        self.infos = nested.leaves(info)
        self.index = allocate((1,), torch.int64).zero_()
        self.hx = nested.map(lambda x: allocate(x.shape, x.dtype).copy_(x), hx)
        self.hx_leaves = nested.leaves(self.hx)
        self.acts = [allocate((1, *x.shape[1:]), x.dtype) for x in nested.leaves(state.act)]

    def row(self) -> State:
        """Return a copy of the row at the index, selected on the device."""
        selected = [rows.index_select(0, self.index) for rows in self._rows]
        return self._structure.unflatten(selected)  # type: ignore[return-value]

    def step_from_first_row(self, step: Callable[[], None]) -> None:
        """Set the index to 0 and call ``step``."""
        self.index.zero_()
        step()


def copy_at_once(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each pair's second tensor into its first, as if at once: a source may share memory with a target."""
    written = {_address(target) for target, _ in pairs}
    values = [value.clone() if _address(value) in written and value is not target else value for target, value in pairs]
    for (target, _), value in zip(pairs, values, strict=True):
        if value is not target:
            target.copy_(value)


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
