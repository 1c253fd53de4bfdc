"""Tensors and arrays of an actor that share memory with its weights, such as a kept view of a parameter.

In the copy they share memory with the weights of the copy, in the same way.
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

from ...envs.saving.memory import blocks_of, span_of
from .walk import Place, Walk

__all__ = ["Memory", "SharedView", "address_of_storage", "check_arrays", "check_shared", "copy_weights_into"]


class SharedView(NamedTuple):
    """What shares memory with a weight of the learner's actor."""

    path: str
    """Where the learner's actor has it."""
    weight: str
    """The name of the weight."""
    other: str | None
    """The name of the other weight, if it is a parameter or a buffer itself."""
    original: Any
    """A weak reference to the tensor or array of the learner's actor."""
    distance: int
    """The distance of its first byte from the first byte of the weight."""


class Memory:
    """The memory of weights: tells which weight a tensor or an array shares memory with.

    Parameters
    ----------
    weights : mapping of str to Tensor
        By their names.
    """

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self._names: dict[int, str] = {}  # by the address of the storage
        self._on_host: list[tuple[int, int, str]] = []  # first and last address, and the name
        for name, weight in weights.items():
            start = address_of_storage(weight)
            if start and start not in self._names:
                self._names[start] = name
                if weight.device.type == "cpu":
                    self._on_host.append((start, start + weight.untyped_storage().nbytes(), name))

    def weight_beside(self, value: Any) -> str | None:
        """Return the name of a weight that shares memory with a tensor or an array; None if none does."""
        if isinstance(value, Tensor):
            return self._names.get(address_of_storage(value))
        if isinstance(value, np.ndarray) and value.size:
            at = value.__array_interface__["data"][0]
            return next((name for start, end, name in self._on_host if start <= at < end), None)
        return None


def address_of_storage(tensor: Tensor) -> int:
    """Return the address of a tensor's storage; 0 if it has none that can be looked at."""
    try:
        return tensor.untyped_storage().data_ptr() if tensor.layout is torch.strided else 0
    except Exception:  # subclasses of Tensor that have no storage raise different types
        return 0


def copy_weights_into(
    memo: dict[Any, Any], found: Walk, weights: Mapping[str, Tensor], device: torch.device
) -> list[SharedView]:
    """Copy weights to a device where ``copy.deepcopy`` would not do it right, and note them in its memo.

    These are weights on another device, and all that share memory with other tensors or arrays of the actor: they share
    it in the copy.

    Parameters
    ----------
    memo : dict
        The second argument of ``copy.deepcopy``.
    found : Walk
        Over the learner's actor.

    Raises
    ------
    TypeError
        If an array shares memory with a weight, and the copy is to be on a device.
    """
    names = {id(weight): name for name, weight in weights.items()}
    memory = Memory(weights)
    members: dict[str, list[Place]] = {}
    for place in found:
        name = memory.weight_beside(place.value)
        if name is not None:
            members.setdefault(name, []).append(place)
    shared: list[SharedView] = []
    for name, places in members.items():
        first = weights[name]
        if len(places) == 1 and first.device == device:
            continue  # copy.deepcopy does it right
        if len(places) == 1:
            memo[id(places[0].value)] = _like(places[0].value, first.detach().to(device, copy=True))
            continue
        storage = _copy_storage(first, device)
        for place in places:
            value = place.value
            other = names.get(id(value))
            if isinstance(value, np.ndarray):
                memo[id(value)] = _array_over(storage, value, first, place.path)
            else:
                memo[id(value)] = _like(value, _view_of(storage, value))
            if other != name and (other is None or _overlap(first, value)):
                original = weakref.ref(value)
                shared.append(SharedView(place.path, name, other, original, _address(value) - first.data_ptr()))
    return shared


def check_arrays(found: Walk, weights: Mapping[str, Tensor]) -> None:
    """Check that no array shares memory with another array, or with a tensor that is no weight.

    ``copy.deepcopy`` copies each array by itself, so that the copies would share nothing.

    Raises
    ------
    TypeError
        If one does.
    """
    memory = Memory(weights)
    places = [x for x in found if isinstance(x.value, np.ndarray | Tensor) and memory.weight_beside(x.value) is None]
    spans = [span for k, place in enumerate(places) if (span := span_of(place.value, k)) is not None]
    for _, block in blocks_of(spans):
        some = [places[k] for k in sorted(block.owners)]
        arrays = [place for place in some if isinstance(place.value, np.ndarray)]
        if arrays and len(some) > 1:
            other = next(place for place in some if place is not arrays[-1])
            raise TypeError(
                f"`{arrays[-1].path}` is a NumPy array that shares memory with `{other.path}`, which is lost in the "
                "behaviour copy: keep one of them, and make the other in `step`; or keep tensors, whose views stay "
                "views."
            )


def check_shared(shared: list[SharedView], weights: Mapping[str, Tensor]) -> None:
    """Check that the learner's actor still has its weights in memory that it shares, as the copy does.

    Raises
    ------
    ValueError
        If not.
    """
    for view in shared:
        value = view.original() if view.other is None else weights[view.other]
        weight = weights[view.weight]
        if value is not None and _address(value) - weight.data_ptr() != view.distance:
            raise ValueError(
                f"`{view.path}` shared its memory with the actor's {view.weight!r} when the feed was made, and no "
                "longer does, since one of both has been replaced: write into the parameter in place (`copy_`), or "
                "make a new feed after such a change."
            )


def _address(value: Any) -> int:
    return int(value.data_ptr() if isinstance(value, Tensor) else value.__array_interface__["data"][0])


def _overlap(one: Tensor, other: Tensor) -> bool:
    """Return whether the spans of two tensors of one storage overlap."""
    spans = [
        (x.data_ptr(), x.data_ptr() + sum((n - 1) * step for n, step in zip(x.shape, x.stride(), strict=True)))
        for x in (one, other)
    ]
    return max(start for start, _ in spans) <= min(end for _, end in spans)


def _copy_storage(tensor: Tensor, device: torch.device) -> torch.UntypedStorage:
    whole = torch.empty(0, dtype=torch.uint8, device=tensor.device).set_(tensor.untyped_storage())
    return whole.to(device, copy=True).untyped_storage()


def _view_of(storage: torch.UntypedStorage, tensor: Tensor) -> Tensor:
    """Return a view of a storage that is as the tensor is in its own storage."""
    view = torch.empty(0, dtype=tensor.dtype, device=storage.device)
    view.set_(storage, tensor.storage_offset(), tensor.size(), tensor.stride())
    return view.conj() if tensor.is_conj() else view


def _like(value: Tensor, data: Tensor) -> Tensor:
    """Make a tensor with these data, of the type of ``value``."""
    if type(value) is nn.Parameter:
        return nn.Parameter(data, value.requires_grad)
    if isinstance(value, nn.Parameter):
        made: Tensor = torch.Tensor._make_subclass(type(value), data, value.requires_grad)
        return made
    return data if type(value) is Tensor else data.as_subclass(type(value))


def _array_over(storage: torch.UntypedStorage, array: Any, weight: Tensor, path: str) -> Any:
    """Return an array over a storage that is as ``array`` is in the storage of ``weight``."""
    if storage.device.type != "cpu":
        raise TypeError(
            f"`{path}` is a NumPy array that shares memory with a weight of the actor, which a copy on a device "
            "cannot follow: keep a tensor instead, such as `weight.detach()`."
        )
    whole = torch.empty(0, dtype=torch.uint8, device="cpu").set_(storage).numpy()
    offset = _address(array) - address_of_storage(weight)
    return np.ndarray(array.shape, array.dtype, whole, offset, array.strides).view(type(array))
