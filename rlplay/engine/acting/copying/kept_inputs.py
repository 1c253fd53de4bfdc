"""Copies the inputs that an actor keeps in its attributes, before the engine writes to their memory again."""

from __future__ import annotations

from collections import deque
from collections.abc import Collection, Iterable
from typing import Any

from torch import Tensor, nn

from ..plain_attributes import NOT_LOOKED_AT
from .kept_memory import address_of

__all__ = ["copy_kept_inputs"]

_ATOMS = frozenset({bool, int, float, complex, str, bytes, type(None)})


def copy_kept_inputs(modules: Iterable[nn.Module], memory: Collection[int]) -> None:
    """Replace the tensors in attributes of modules that lie in some memory by copies.

    Looks into lists, tuples, dicts and deques, at any depth. A tensor that is kept twice has one copy.

    Parameters
    ----------
    modules : iterable of Module
        Parameters, buffers and submodules are not looked at.
    memory : collection of int
        The addresses of storages.
    """
    known: dict[int, Any] = {}
    for module in modules:
        own = module.__dict__
        for key in own.keys() - NOT_LOOKED_AT:
            value = own[key]
            if type(value) not in _ATOMS and (copy := _copied(value, memory, known)) is not value:
                own[key] = copy


def _copied(value: Any, memory: Collection[int], known: dict[int, Any]) -> Any:
    """Return a value without tensors that lie in the memory. Lists, dicts and deques stay the same objects."""
    if id(value) in known:
        return known[id(value)][1]
    if isinstance(value, Tensor):
        at = address_of(value)
        copy: Any = value.clone() if at and at in memory else value
    elif isinstance(value, list | deque | dict):
        known[id(value)] = value, value  # a container may be inside of itself
        for key, part in list(value.items() if isinstance(value, dict) else enumerate(value)):
            if type(part) not in _ATOMS and (new := _copied(part, memory, known)) is not part:
                value[key] = new
        return value
    elif isinstance(value, tuple):
        parts = [_copied(part, memory, known) for part in value]
        changed = any(new is not part for new, part in zip(parts, value, strict=True))
        copy = (type(value)(*parts) if hasattr(value, "_fields") else tuple(parts)) if changed else value
    else:
        return value
    known[id(value)] = value, copy  # also keeps the value alive, so that its `id` stays its own
    return copy
