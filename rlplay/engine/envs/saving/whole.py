"""Tells whether an object would be pickled with all that it holds.

An object that pickles by being made anew, as those of gymnasium's ``EzPickle`` do, or that leaves attributes or items
out, would come back in another state. It counts as one that cannot be pickled.
"""

from __future__ import annotations

import copyreg
import sys
from collections import deque
from collections.abc import Iterable, Iterator
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

__all__ = ["NotSavedError", "check_whole", "is_trusted", "why_not_whole"]

_TRUSTED = frozenset(sys.stdlib_module_names) - {"__main__"} | {"numpy", "torch"}
"""The packages whose classes pickle all that they hold."""

_CONTAINERS: tuple[Any, ...] = (list, tuple, set, frozenset, deque)


class NotSavedError(Exception):
    """Pickling an object would lose some of what it holds. The message says what, or why."""


def is_trusted(thing: Any) -> bool:
    """Whether a class or a function is of the standard library, NumPy or torch, whose objects pickle all they hold."""
    return str(getattr(thing, "__module__", "")).partition(".")[0] in _TRUSTED


def check_whole(obj: Any) -> None:
    """Raise :class:`NotSavedError` if pickling would not keep all that an object holds."""
    why = why_not_whole(obj)
    if why:
        raise NotSavedError(why)


def why_not_whole(obj: Any) -> str:
    """Return why pickling would not keep all that an object holds; an empty string if it would."""
    cls = type(obj)
    if isinstance(obj, np.ma.MaskedArray) and obj.hardmask:
        return "pickling leaves out that its mask is hard"
    if is_trusted(cls):
        return ""
    if isinstance(obj, type | FunctionType | BuiltinFunctionType | MethodType | ModuleType | Enum):
        return ""
    if any(base.__name__ == "EzPickle" for base in cls.__mro__):
        return "pickling makes it anew, from the arguments of its constructor (EzPickle)"
    if not _pickles_in_its_own_way(cls):
        return ""
    attributes, slots, items = getattr(obj, "__dict__", {}), _slots_of(obj), list(_items_of(obj))
    loses_class = isinstance(obj, np.random.Generator | np.random.RandomState)  # by NumPy's own `__reduce__`
    if not (attributes or slots or items or loses_class):
        return ""
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str):
        return ""
    if loses_class and not any(x is cls for x in _walk(reduced)):
        return f"pickling makes it an object of NumPy's own class, `{cls.__mro__[1].__name__}`"
    _, args, state, list_items, dict_items = (*reduced, None, None, None)[:5]
    kept = {id(x) for x in _walk((args, state, list(list_items or ()), list(dict_items or ())))}
    if isinstance(state, tuple) and len(state) == 2:  # attributes, and slots
        state = state[0]
    saved = state if isinstance(state, dict) else {}
    missing = {k for k, x in attributes.items() if k not in saved or (saved[k] is None and x is not None)}
    missing |= {name for name, x in slots.items() if id(x) not in kept}
    how = "__getstate__" if isinstance(state, dict) else "__reduce__"
    if missing:
        return f"its `{how}` leaves out {', '.join(map(repr, sorted(missing)))}"
    return f"its `{how}` leaves out items" if any(id(x) not in kept for x in items) else ""


def _pickles_in_its_own_way(cls: type) -> bool:
    names = ("__reduce__", "__reduce_ex__", "__getstate__")
    own = any(getattr(cls, name, None) is not getattr(object, name, None) for name in names)
    return own or cls in copyreg.dispatch_table


def _slots_of(obj: Any) -> dict[str, Any]:
    """Return what an object keeps in slots, by the names of these."""
    names: Iterable[str] = copyreg._slotnames(type(obj))  # type: ignore[attr-defined]
    return {name: getattr(obj, name) for name in names if hasattr(obj, name)}


def _items_of(obj: Any) -> Iterator[Any]:
    """Yield the items of a container, and the values of a dict, whatever its class makes of iterating."""
    if isinstance(obj, dict):
        yield from dict.values(obj)
    for kind in _CONTAINERS:
        if isinstance(obj, kind):
            yield from kind.__iter__(obj)


def _walk(value: Any) -> Iterator[Any]:
    """Yield what containers of Python's own types hold, at any depth."""
    pending, seen = [value], set[int]()
    while pending:
        one = pending.pop()
        if type(one) in (dict, *_CONTAINERS) and id(one) not in seen:
            seen.add(id(one))
            for x in one.values() if type(one) is dict else one:
                pending.append(x)
                yield x
