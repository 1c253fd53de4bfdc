"""The memory that captured steps read and write, at addresses that do not change."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .... import nested
from ....nested import Nested
from ...core import State
from ...memory.lane import Lane
from ...memory.slot import NO_COPIES, GroupBlocks, RowCopies

__all__ = ["CaptureMemory", "copy_at_once"]


class CaptureMemory:
    """The memory that captured steps of a group read and write, at addresses that do not change.

    Attributes
    ----------
    width : int
        ``b``, the number of environments in the group.
    index : int64 tensor, ``(1,)``
        The row that the next step reacts to.
    acts : list of tensors, ``(1, b, ...)``
        Where the leaves of the latest action are written.
    infos : list of tensors, ``(n, b, ...)``
        The rows of each leaf of the actor's info.
    hx, hx_leaves : nested tensors, and list of their leaves, ``(L, b, ...)``
        The recurrent state before that row, not yet reset.
    """

    def __init__(
        self,
        rows: GroupBlocks,
        acts: list[Tensor],
        infos: list[Tensor],
        hx: Nested,
        allocate: Callable[[Sequence[int], torch.dtype], Tensor],
    ) -> None:
        """Use the rows, ``acts`` and ``infos`` as they are; allocate the rest."""
        self._rows, self.acts, self.infos, self._host = rows, acts, infos, rows.host
        self.width = rows.inside.stop - rows.inside.start
        self.index = allocate((1,), torch.int64).zero_()
        self.hx = nested.map(lambda x: allocate(x.shape, x.dtype).copy_(x), hx)
        self.hx_leaves = nested.leaves(self.hx)
        if self._host is not None:
            self._uploaded = allocate((1, *self._host.blocks[0].shape), torch.uint8)

    @property
    def has_host_rows(self) -> bool:
        """Whether captured steps may copy rows between host and device."""
        return self._host is not None

    def copies(self, *, virtual: bool) -> list[RowCopies]:
        """Return each combination of copies that captured steps of this kind make between host and device."""
        if self._host is None:
            return [NO_COPIES]
        return [one for one in self._host.copies if (one.down is None) == virtual]

    def row(self) -> State:
        """Return a copy of the row at the index, selected on the device."""
        return self._rows.select(self.index)

    def uploaded_row(self, lane: Lane, copies: RowCopies) -> State:
        """Return a copy of the row at the index. If ``copies`` names a host row, that is first written there."""
        if self._host is None or copies.up is None:
            return self.row()
        lane.copy(self._uploaded[0], self._host.blocks[copies.up])
        self._rows.blocks.write(self.index, self._uploaded)
        return self._rows.state_in(self._uploaded)

    def download_action(self, lane: Lane, copies: RowCopies) -> None:
        """Copy the latest action into the host row that ``copies`` names, if any."""
        if self._host is not None and copies.down is not None:
            lane.copy(self._host.acts[copies.down], self._host.answered)


def copy_at_once(pairs: Sequence[tuple[Tensor, Tensor]]) -> None:
    """Copy each pair's second tensor into its first, as if at once: a source may share memory with a target."""
    written = {_address(target) for target, _ in pairs}
    values = [value.clone() if _address(value) in written and value is not target else value for target, value in pairs]
    for (target, _), value in zip(pairs, values, strict=True):
        if value is not target:
            target.copy_(value)


def _address(x: Tensor) -> int:
    return x.untyped_storage().data_ptr()
