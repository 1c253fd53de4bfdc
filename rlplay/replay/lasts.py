"""The true last observations of episodes: a ring that grows, since nobody knows how many there will be."""

from __future__ import annotations

from collections import deque
from typing import Any

import torch
from torch import Tensor

from .. import nested
from ..nested import Nested

__all__ = ["Lasts"]


class Lasts:
    """Rows in the order in which they came, as many as belong to the fragments that are held.

    The ``k``-th row that ever came has the number ``k``, and is at its number modulo the ring's size. The ring's size
    doubles when the rows would not fit; it never shrinks.

    Parameters
    ----------
    rows : nested tensors, ``(R, ...)``
        The ring. It is written to.
    n_fragments : int
        How many fragments are held.
    """

    def __init__(self, rows: Nested, n_fragments: int) -> None:
        self.rows = rows
        self._held: deque[int] = deque(maxlen=n_fragments)  # how many rows each fragment has
        self._n_rows = 0  # how many ever came

    def append(self, rows: Nested, k: int) -> Tensor:
        """Copy the ``k`` rows of the next fragment; let go those of the oldest if there would be too many fragments.

        Returns
        -------
        int64 tensor, ``(k,)``
            Their numbers.
        """
        full = len(self._held) == self._held.maxlen
        self._make_room(sum(self._held) - (self._held[0] if full else 0), k)
        self._held.append(k)
        ring = nested.leaves(self.rows)
        numbers = self._n_rows + torch.arange(k, device=ring[0].device)
        for leaf, new in zip(ring, nested.leaves(rows), strict=True):
            leaf[numbers % len(leaf)] = new.to(leaf.device)
        self._n_rows += k
        return numbers

    def __getitem__(self, numbers: Tensor) -> Nested:
        """Return new tensors with the rows of these numbers; those of a number that is not there mean nothing."""
        return nested.map(lambda leaf: leaf.index_select(0, numbers % len(leaf)), self.rows)

    def state_dict(self) -> dict[str, Any]:
        """Return everything; the tensors are shared."""
        return {"rows": self.rows, "held": list(self._held), "n_rows": self._n_rows}

    @classmethod
    def restored(cls, state: dict[str, Any], n_fragments: int, device: torch.device) -> Lasts:
        """Make one of what :meth:`state_dict` returned."""
        lasts = cls(nested.map(lambda leaf: leaf.to(device, copy=True), state["rows"]), n_fragments)
        lasts._held.extend(state["held"])
        lasts._n_rows = int(state["n_rows"])
        return lasts

    def _make_room(self, n_kept: int, k: int) -> None:
        """Double the ring until there is room for ``k`` rows more than the newest ``n_kept``, which stay."""
        size = old = len(nested.leaves(self.rows)[0])
        while size < n_kept + k:
            size *= 2
        if size == old:
            return

        def grown(leaf: Tensor) -> Tensor:
            numbers = torch.arange(self._n_rows - n_kept, self._n_rows, device=leaf.device)
            new = leaf.new_zeros(size, *leaf.shape[1:])
            new[numbers % size] = leaf[numbers % old]
            return new

        self.rows = nested.map(grown, self.rows)
