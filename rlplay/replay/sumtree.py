"""A sum tree: non-negative numbers, and in logarithmic time the place where their cumulative sum passes a point.

It knows numbers alone. All verbs but :meth:`SumTree.check_valid` are device operations that never make the host wait.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["SumTree"]


class SumTree:
    """A complete binary tree in one float64 tensor, in which every node is the sum of its two children.

    Node 1 is the root, nodes ``2i`` and ``2i + 1`` are the children of node ``i``, and the values are the last row.
    Parents are always computed anew from their children, never adjusted by differences, so that nothing drifts.

    Parameters
    ----------
    capacity : int >= 1
        How many values it holds. All are zero at first.
    device : torch.device or str, optional
        Where. It must have float64.

    Notes
    -----
    Schaul et al. (2016), "Prioritized Experience Replay", appendix B.2.1.
    """

    def __init__(self, capacity: int, device: torch.device | str | None = None) -> None:
        if capacity < 1:
            raise ValueError(f"`capacity` must be a number of values >= 1, got {capacity}.")
        self.capacity = capacity
        self._depth = (capacity - 1).bit_length()
        self._first = 1 << self._depth  # the node of the first value
        # node 0 belongs to no tree: whatever is to be left out is written there
        self._nodes = torch.zeros(2 * self._first, dtype=torch.float64, device=device)

    @property
    def device(self) -> torch.device:
        """Where it is."""
        return self._nodes.device

    @property
    def total(self) -> Tensor:
        """The sum of all values: float64, no dimensions, a new tensor."""
        return self._nodes[1].clone()

    def __getitem__(self, positions: Tensor) -> Tensor:
        """Return the values at int64 positions ``(N,)``: float64 ``(N,)``, a new tensor."""
        return self._nodes[self._first + positions]

    def set(self, positions: Tensor, values: Tensor) -> None:
        """Set some values.

        Parameters
        ----------
        positions : int64 tensor, ``(N,)``
            From 0 to ``capacity - 1``; -1 is left out. Where a position is repeated, the largest of its values is
            taken, on every device.
        values : float tensor, ``(N,)``
            Finite and not negative.

        Raises
        ------
        ValueError
            A position or a value is none of these. This is checked on the CPU alone, since the host would have to wait
            for any other device.
        """
        if self.device.type == "cpu":
            self._check(positions, values)
        node = torch.where(positions < 0, 0, self._first + positions)
        self._nodes.index_fill_(0, node, 0.0).scatter_reduce_(0, node, values.to(self._nodes), "amax")
        for _ in range(self._depth):
            node = node // 2
            self._nodes[node] = self._nodes[2 * node] + self._nodes[2 * node + 1]

    def find(self, points: Tensor) -> Tensor:
        """Find where the cumulative sum of the values passes some points.

        Parameters
        ----------
        points : float64 tensor, ``(N,)``
            From 0 to the total. A point that rounding has put at or above it counts as just below.

        Returns
        -------
        int64 tensor, ``(N,)``
            The positions ``i`` with ``sum(values[:i]) <= point < sum(values[:i + 1])``, up to rounding. Their values
            are never zero, unless all values are.
        """
        node = torch.ones_like(points, dtype=torch.int64)
        for _ in range(self._depth):
            left = 2 * node
            below = self._nodes[left]
            beyond = ~(points < below) & (self._nodes[left + 1] > 0)
            points = torch.where(beyond, points - below, points)
            node = left + beyond
        return node - self._first

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values, from which everything else follows: float64 ``(capacity,)``, a new tensor."""
        return {"values": self._nodes[self._first : self._first + self.capacity].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Take over the values of a tree of the same capacity.

        Raises
        ------
        ValueError
            The capacity is another.
        """
        values = state["values"]
        if values.shape != (self.capacity,):
            raise ValueError(
                f"The tree has `capacity={self.capacity}`, what is loaded has {tuple(values.shape)} values."
            )
        self._nodes[self._first : self._first + self.capacity] = values
        for level in reversed(range(self._depth)):
            start, stop = 1 << level, 2 << level
            self._nodes[start:stop] = self._nodes[2 * start : 2 * stop : 2] + self._nodes[2 * start + 1 : 2 * stop : 2]

    def check_valid(self) -> tuple[bool, str]:
        """Check every sum, and that values are finite, not negative, and none beyond the capacity.

        The host waits for the device.

        Returns
        -------
        ok : bool
        message : str
            What is wrong, and where; empty if nothing is.
        """
        nodes, first = self._nodes.cpu(), self._first
        wrong = {
            "is negative or not finite": ~((nodes >= 0) & nodes.isfinite()),
            "is beyond the capacity, and not zero": (nodes != 0).index_fill(
                0, torch.arange(first + self.capacity), False
            ),
            "is not the sum of its children": nodes[:first] != nodes[0::2] + nodes[1::2],
        }
        for message, where in wrong.items():
            if where[1:].any():
                return False, f"node {1 + int(where[1:].nonzero()[0])} {message}"
        return True, ""

    def _check(self, positions: Tensor, values: Tensor) -> None:
        """Refuse positions and values that would spoil the tree."""
        inside = (positions >= -1) & (positions < self.capacity)
        if not inside.all():
            raise ValueError(f"`positions` must be from -1 to {self.capacity - 1}, got {positions[~inside][0].item()}.")
        fits = (values >= 0) & values.isfinite()
        if not fits.all():
            raise ValueError(f"`values` must be finite and not negative, got {values[~fits][0].item()}.")
