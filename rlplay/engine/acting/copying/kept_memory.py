"""Saves which tensors in an actor's attributes share memory, and makes tensors that share memory in the same way."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from .shared_memory import address_of_storage

__all__ = ["Place", "Remade", "address_of", "places_of"]

Place = tuple[int | str, int, list[int]]
"""The place of a tensor in memory. First, which memory: a number, or the name of the parameter or buffer that owns the
memory; -1 if the tensor is empty, or of a kind without memory. Then the offset in this memory, in elements, and the
strides."""


def places_of(tensors: Sequence[Tensor], weights: Mapping[str, Tensor]) -> list[Place]:
    """Return the place of each tensor. Pieces of memory are numbered in the order in which they first occur."""
    known: dict[int, int | str] = {address_of(x): name for name, x in weights.items()}
    known[0] = -1
    found: list[Place] = []
    n_met = 0
    for x in tensors:
        at = address_of(x)
        if at not in known:
            known[at], n_met = n_met, n_met + 1
        found.append((known[at], 0, []) if not at else (known[at], int(x.storage_offset()), list(x.stride())))
    return found


def address_of(x: Tensor) -> int:
    """Return the address of a tensor's memory, 0 if it has none."""
    return address_of_storage(x) if x.numel() else 0


class Remade:
    """Makes tensors at the places of the saved ones, so that tensors which shared memory share it again.

    Parameters
    ----------
    saved : sequence of tensor
        The values of all saved tensors.
    places : sequence of Place
        The places of these tensors.
    stays : mapping of int to tensor
        By the number of a memory: a tensor of the new copy that keeps that memory.
    weights : mapping of str to tensor
        Those of the new copy.
    device : torch.device
        Where tensors are made.
    """

    def __init__(
        self,
        saved: Sequence[Tensor],
        places: Sequence[Place],
        stays: Mapping[int, Tensor],
        weights: Mapping[str, Tensor],
        device: torch.device,
    ) -> None:
        self._device, self._memory = device, dict[int | str, Any]()
        n_bytes: dict[int | str, int] = {}
        for x, (memory, offset, strides) in zip(saved, places, strict=True):
            last = offset + sum((n - 1) * step for n, step in zip(x.shape, strides, strict=False))
            n_bytes[memory] = max(n_bytes.get(memory, 0), (last + 1) * x.itemsize)
        for memory, size in n_bytes.items():
            there = weights.get(memory) if isinstance(memory, str) else stays.get(memory)
            if there is not None and there.untyped_storage().nbytes() >= size:
                self._memory[memory] = there.untyped_storage()
            else:
                self._memory[memory] = torch.empty(size, dtype=torch.uint8, device=device).untyped_storage()

    def make(self, saved: Tensor, place: Place) -> Tensor:
        """Return a new tensor of the same shape and dtype, whose values are still to be written."""
        memory, offset, strides = place
        if memory == -1:
            return torch.empty_like(saved, device=self._device)
        made = torch.empty(0, dtype=saved.dtype, device=self._device)
        return made.set_(self._memory[memory], offset, saved.shape, strides)
