"""Which items are drawn, how often, and what they are called. It knows neither fragments nor what an item holds."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .sumtree import SumTree

__all__ = ["Sampler"]


class Sampler:
    """A ring of items that are drawn in proportion to their priorities.

    Items come in groups of one size, and the oldest group is evicted by the newest. The ``k``-th item that ever came
    has the id ``k``: ids never repeat, so what is said of an item that is gone does not hit the one in its place. An
    item's place in the ring is its id modulo the ring's size.

    Parameters
    ----------
    n_groups, n_items : int >= 1
        How many groups are held, and how many items each of them has.
    device : torch.device
        Where.
    """

    def __init__(self, n_groups: int, n_items: int, device: torch.device) -> None:
        self._n_items, self._n_places, self._n_issued = n_items, n_groups * n_items, 0
        self._tree = SumTree(self._n_places, device)
        self._largest = torch.ones((), dtype=torch.float64, device=device)

    def issue(self, eligible: Tensor) -> None:
        """Take in the next group, with the largest priority there has been so far, 1 at first.

        Parameters
        ----------
        eligible : bool tensor, ``(n_items,)``
            Which of its items may be drawn at all.
        """
        places = self._n_issued % self._n_places + torch.arange(self._n_items, device=self._tree.device)
        self._tree.set(places, eligible * self._largest)
        self._n_issued += self._n_items

    def update(self, ids: Tensor, priorities: Tensor) -> None:
        """Give some items new priorities. Where an id is repeated, the largest is taken.

        Parameters
        ----------
        ids : int64 tensor, ``(N,)``
            Those of items that are evicted, or not eligible, are ignored.
        priorities : float64 tensor, ``(N,)``
            Those that are not finite, or negative, are ignored.
        """
        places = ids % self._n_places
        held = (ids >= max(0, self._n_issued - self._n_places)) & (ids < self._n_issued)
        stands = held & (self._tree[places] > 0) & (priorities >= 0) & priorities.isfinite()
        priorities = torch.where(stands, priorities, 0.0)
        self._tree.set(torch.where(stands, places, -1), priorities)
        self._largest = torch.cat([self._largest[None], priorities]).amax()

    def draw(self, n: int, generator: torch.Generator | None) -> tuple[Tensor, Tensor]:
        """Draw some items, one from each of ``n`` equal segments of the priorities' sum.

        So they come in the order of their places, and an item whose share is ``P`` is drawn ``n P`` times on average
        and always less than two times more or fewer. That is less noise than independent draws have.

        Returns
        -------
        ids : int64 tensor, ``(n,)``
        priorities : float64 tensor, ``(n,)``

        Raises
        ------
        RuntimeError
            No item may be drawn. On devices other than the CPU nobody looks, since the host would have to wait: there
            the priorities that are returned are zero, and the ids mean nothing.
        """
        device, total = self._tree.device, self._tree.total
        if device.type == "cpu" and not total > 0:
            raise RuntimeError("There is nothing to sample: no transition that the buffer holds is valid.")
        jitter = torch.rand(n, dtype=torch.float64, device=device, generator=generator)
        places = self._tree.find((torch.arange(n, device=device) + jitter) * (total / n))
        newest = self._n_issued - 1
        return newest - (newest - places) % self._n_places, self._tree[places]

    def state_dict(self) -> dict[str, Any]:
        """Return everything, as new tensors and numbers."""
        return {"tree": self._tree.state_dict(), "largest": self._largest.clone(), "n_issued": self._n_issued}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Take over the items of a sampler made with the same numbers."""
        self._tree.load_state_dict(state["tree"])
        self._largest = state["largest"].to(self._tree.device, copy=True)
        self._n_issued = int(state["n_issued"])
