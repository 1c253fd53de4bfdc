"""Sends a behaviour copy to another process."""

from __future__ import annotations

import io
import pickle
from types import NoneType
from typing import Any

import cloudpickle
import torch

from ...core import BaseActorModule
from .copy_actor import ActorCopy

__all__ = ["packed"]


def packed(copied: ActorCopy) -> BaseActorModule:
    """Return what pickles as the copy, and arrives as a module; the copy itself if nothing is special about it.

    Tensors that share memory do so no longer once they are pickled one by one.

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
    return parcel if copied.shared else copied.module


class _Parcel:
    def __init__(self, module: BaseActorModule) -> None:
        self._module = module

    def __reduce__(self) -> Any:
        file = io.BytesIO()
        torch.save(self._module, file, pickle_module=cloudpickle)
        return _unpacked, (file.getvalue(),)


def _unpacked(data: bytes) -> Any:
    return torch.load(io.BytesIO(data), pickle_module=pickle, weights_only=False)
