"""A sum tree: stores non-negative values, and finds in logarithmic time where their cumulative sum passes a point.

The host does not wait for the device, except in :meth:`SumTree.check_valid`. The module must import only torch.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

__all__ = ["SumTree"]


class SumTree:
    """A complete binary tree in one float64 tensor, in which every node is the sum of its two children.

    Node 1 is the root, nodes ``2i`` and ``2i + 1`` are the children of node ``i``, and the values are the leaves.
    A parent is always computed as the sum of its children, never adjusted by a difference, so rounding errors do not
    accumulate.

    Parameters
    ----------
    capacity : int >= 1
        The number of values. All are zero at first.
    device : torch.device or str, optional
        The device of the values. It must support float64.

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
        # node 0 is not part of the tree; values for position -1 are written to it
        self._nodes = torch.zeros(2 * self._first, dtype=torch.float64, device=device)

    @property
    def device(self) -> torch.device:
        """The device of the values."""
        return self._nodes.device

    @property
    def limit(self) -> float:
        """The largest value that is accepted: the sum of ``capacity`` such values is a finite float64 number."""
        return float(torch.finfo(torch.float64).max / (2 * self._first))

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
            From 0 to ``capacity - 1``; -1 is ignored. If a position is repeated, the largest of its values is stored,
            on every device.
        values : float tensor, ``(N,)``
            Not negative, and at most :attr:`limit`.

        Raises
        ------
        ValueError
            A position is out of range, or a value is negative, not finite or above :attr:`limit`. This is checked on
            the CPU only, since the host would have to wait for another device.
        """
        if self.device.type == "cpu":
            self._check(positions, values)
        node = torch.where(positions < 0, 0, self._first + positions)
        self._nodes.index_fill_(0, node, 0.0).scatter_reduce_(0, node, values.to(self._nodes), "amax")
        nodes, node = _fast(self._nodes), _fast(node)
        for _ in range(self._depth):
            node = node >> 1
            nodes[node] = nodes[2 * node] + nodes[2 * node + 1]

    def find(self, points: Tensor) -> Tensor:
        """Find the positions where the cumulative sum of the values passes some points.

        Parameters
        ----------
        points : float64 tensor, ``(N,)``
            From 0 to the total. Points that rounding has moved to the total or above count as just below it.

        Returns
        -------
        int64 tensor, ``(N,)``
            The positions ``i`` with ``sum(values[:i]) <= point < sum(values[:i + 1])``, up to rounding. The values at
            these positions are not zero, unless all values are zero.
        """
        found = torch.ones_like(points, dtype=torch.int64)
        nodes, node, rest = _fast(self._nodes), _fast(found), _fast(points)
        for _ in range(self._depth):
            left = 2 * node
            left_sum = nodes[left]  # the sum of all values in the left subtree
            go_right = ~(rest < left_sum) & (nodes[left + 1] > 0)
            rest = rest - go_right * left_sum
            node = left + go_right
        return torch.as_tensor(node - self._first, device=self.device)

    def state_dict(self) -> dict[str, Tensor]:
        """Return the values: float64 ``(capacity,)``, a new tensor. Loading computes the sums from the values."""
        return {"values": self._nodes[self._first : self._first + self.capacity].clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Replace the values by those of a tree of the same capacity.

        Raises
        ------
        ValueError
            The capacity of the other tree differs.
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
        """Check that every sum is right, values are finite and not negative, and leaves beyond the capacity are zero.

        The host waits for the device.

        Returns
        -------
        ok : bool
        message : str
            Names the first node that is wrong, and says how; empty if every node is right.
        """
        nodes, first = self._nodes.cpu(), self._first
        wrong = {
            "is negative or not finite": ~((nodes >= 0) & nodes.isfinite()),
            "is beyond the capacity, and not zero": (nodes != 0).index_fill(
                0, torch.arange(first + self.capacity, device="cpu"), False
            ),
            "is not the sum of its children": nodes[:first] != nodes[0::2] + nodes[1::2],
        }
        for message, where in wrong.items():
            if where[1:].any():
                return False, f"node {1 + int(where[1:].nonzero()[0])} {message}"
        return True, ""

    def _check(self, positions: Tensor, values: Tensor) -> None:
        """Raise for a position out of range, or a value that is negative or not finite."""
        inside = (positions >= -1) & (positions < self.capacity)
        if not inside.all():
            raise ValueError(f"`positions` must be from -1 to {self.capacity - 1}, got {positions[~inside][0].item()}.")
        fits = (values >= 0) & (values <= self.limit)
        if not fits.all():
            raise ValueError(
                f"`values` must be finite and not negative, got {values[~fits][0].item()}; each may be at most "
                f"{self.limit:.3g}, so that their sum is finite."
            )


def _fast(x: Tensor) -> Any:
    """Return a NumPy view of a tensor on the CPU, where an operation on few numbers takes a fraction of torch's time.

    The operators that are used here mean the same for both.
    """
    return x.numpy() if x.device.type == "cpu" else x
