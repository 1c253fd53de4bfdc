"""Sends a behaviour copy to another process."""

from __future__ import annotations

import io
import pickle
from types import NoneType
from typing import Any

import cloudpickle
import torch

from ....dtypes import as_movable
from ...core import BaseActorModule
from .copy_actor import ActorCopy
from .shared_memory import address_of_storage
from .walk import Walk

__all__ = ["packed"]


def packed(copied: ActorCopy) -> BaseActorModule:
    """Return what pickles as the copy, and arrives as a module; the copy itself if nothing is special about it.

    Tensors that share memory do so no longer once they are pickled one by one, and those of some dtypes cannot be
    unpickled then.

    Raises
    ------
    TypeError
        If an array shares memory with a weight.
    """
    for view in copied.shared:
        if not isinstance(view.original(), torch.Tensor | NoneType):
            raise TypeError(
                f"`{view.path}` is a NumPy array that shares memory with a weight of the actor, which is lost on the "
                "way to another process: keep a tensor instead, such as `weight.detach()`."
            )
    parcel: Any = _Parcel(copied.module)
    return parcel if _needs_parcel(copied.module) else copied.module


def _needs_parcel(module: BaseActorModule) -> bool:
    tensors = [place.value for place in Walk(module, with_code=False) if isinstance(place.value, torch.Tensor)]
    storages = [address for address in map(address_of_storage, tensors) if address]
    return len(set(storages)) < len(storages) or any(as_movable(x) is not x for x in tensors)


class _Parcel:
    def __init__(self, module: BaseActorModule) -> None:
        self._module = module

    def __reduce__(self) -> Any:
        file = io.BytesIO()
        torch.save(self._module, file, pickle_module=cloudpickle)
        return _unpacked, (file.getvalue(),)


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), pickle_module=pickle, weights_only=False)
