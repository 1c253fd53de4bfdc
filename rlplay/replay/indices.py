"""Draws the ids of items (transitions or columns) in proportion to priorities, without reading the items' contents.

Ids and positions
=================

An *item* is a transition of a fragment, or a whole column of it. The ``k``-th item that was ever stored has the *id*
``k``. Ids never repeat, so a priority for an item that has been evicted is not given to the item that replaced it. An
item's *position* is its id modulo the number of items that the ring holds.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sumtree import SumTree

__all__ = ["IndexSampler"]


class IndexSampler:
    """A ring of items with priorities. The items of a fragment are added together, and evict the oldest fragment's.

    Parameters
    ----------
    n_fragments : int >= 1
        The number of fragments whose items are held.
    n_items : int >= 1
        The number of items of each fragment.
    device : torch.device
        The device of priorities and ids.
    """

    def __init__(self, n_fragments: int, n_items: int, device: torch.device) -> None:
        self._n_items, self._n_positions, self._n_issued = n_items, n_fragments * n_items, 0
        self._tree = SumTree(self._n_positions, device)
        self._largest = torch.ones((), dtype=torch.float64, device=device)

    @property
    def limit(self) -> float:
        """The largest priority that is accepted: the sum of all is then finite."""
        return self._tree.limit

    @property
    def n_issued(self) -> int:
        """The number of items that were ever added."""
        return self._n_issued

    def all_ids(self) -> Tensor:
        """Return the ids of all items that may be drawn, oldest first: int64 ``(K,)``. The host waits for a device."""
        oldest = max(0, self._n_issued - self._n_positions)
        ids = torch.arange(oldest, self._n_issued, device=self._tree.device)
        return ids[self._tree[ids % self._n_positions] > 0]

    def append(self, eligible: Tensor) -> None:
        """Add the items of the next fragment, with the largest priority so far, which is 1 at first.

        Parameters
        ----------
        eligible : bool tensor, ``(n_items,)``
            Which of the fragment's items may be drawn.
        """
        positions = self._n_issued % self._n_positions + torch.arange(self._n_items, device=self._tree.device)
        self._tree.set(positions, eligible * self._largest)
        self._n_issued += self._n_items

    def update(self, ids: Tensor, priorities: Tensor) -> None:
        """Set the priorities of some items. If an id is repeated, the largest of its priorities is stored.

        Parameters
        ----------
        ids : int64 tensor, ``(N,)``
            Ids of items that have been evicted or are not eligible are ignored.
        priorities : float64 tensor, ``(N,)``
            Priorities that are negative, not finite or above :attr:`limit` are ignored.
        """
        positions = ids % self._n_positions
        held = (ids >= max(0, self._n_issued - self._n_positions)) & (ids < self._n_issued)
        accepted = held & (self._tree[positions] > 0) & (priorities >= 0) & (priorities <= self.limit)
        priorities = torch.where(accepted, priorities, 0.0)
        self._tree.set(torch.where(accepted, positions, -1), priorities)
        self._largest = torch.cat([self._largest[None], priorities]).amax()

    def draw(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw ``n`` items, one from each of ``n`` equal segments of the priorities' sum (stratified sampling).

        The items are in the order of their positions. An item whose fraction of the sum is ``P`` is drawn ``n P`` times
        on average. Every count differs from ``n P`` by less than two, so counts vary less than in independent draws.

        Returns
        -------
        ids : int64 tensor, ``(n,)``
        priorities : float64 tensor, ``(n,)``

        Raises
        ------
        RuntimeError
            No item is eligible. This is checked on the CPU only, since the host would have to wait for another device.
            On another device the priorities returned are zero and the ids are arbitrary.
        """
        device, total = self._tree.device, self._tree.total
        if device.type == "cpu" and not total > 0:
            raise RuntimeError("There is nothing to sample: no transition that the buffer holds is valid.")
        jitter = torch.rand(n, dtype=torch.float64, device=device, generator=generator)
        positions = self._tree.find((torch.arange(n, device=device) + jitter) * (total / n))
        newest = self._n_issued - 1
        return newest - (newest - positions) % self._n_positions, self._tree[positions]

    def state_dict(self) -> dict[str, Any]:
        """Return the state as new tensors and numbers."""
        return {"tree": self._tree.state_dict(), "largest": self._largest.clone(), "n_issued": self._n_issued}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Replace the state by that of a sampler with the same ``n_fragments`` and ``n_items``."""
        self._tree.load_state_dict(state["tree"])
        self._largest = state["largest"].to(self._tree.device, copy=True)
        self._n_issued = int(state["n_issued"])
