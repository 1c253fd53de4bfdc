"""Pickles what an environment holds, by value, or says what in it cannot be pickled.

An object that pickles by being made anew, as those of gymnasium's ``EzPickle`` do, or that leaves attributes out, would
come back in another state. It counts as one that cannot be pickled.
"""

from __future__ import annotations

import copyreg
import io
import pickle
import sys
from collections.abc import Iterator, Mapping
from enum import Enum
from types import BuiltinFunctionType, FunctionType, MethodType, ModuleType
from typing import Any

__all__ = ["NotSavedError", "dumps", "find_culprit", "loads"]

Key = tuple[Any, ...]
"""Says where an object is that is not pickled, but taken from the environment into which the state is restored."""

_TRUSTED = frozenset(sys.stdlib_module_names) | {"numpy", "torch"}
"""The packages whose classes pickle all that they hold."""

_DEPTH = 30


class NotSavedError(Exception):
    """An object is not pickled with all that it holds. The message says why."""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, kept: Mapping[int, Key]) -> None:
        super().__init__(file, protocol=5)
        self._kept = kept

    def persistent_id(self, obj: Any) -> Key | None:
        return self._kept.get(id(obj))

    def reducer_override(self, obj: Any) -> Any:
        why = _why_not_whole(obj)
        if why:
            raise NotSavedError(why)
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: Mapping[Key, Any]) -> None:
        super().__init__(file)
        self._kept = kept

    def persistent_load(self, pid: Any) -> Any:
        if pid not in self._kept:
            raise ValueError(f"there is nothing at {pid} in this environment")
        return self._kept[pid]


def dumps(value: Any, kept: Mapping[int, Key]) -> bytes:
    """Pickle a value.

    Parameters
    ----------
    kept : mapping of int to tuple
        By the ``id()`` of each object that is not to be pickled: the key under which :func:`loads` finds it.

    Raises
    ------
    Exception
        What pickling raises; :class:`NotSavedError` if an object would be pickled without all that it holds.
    """
    file = io.BytesIO()
    _Pickler(file, kept).dump(value)
    return file.getvalue()


def loads(data: bytes, kept: Mapping[Key, Any]) -> Any:
    """Unpickle what :func:`dumps` returned; ``kept`` has the objects that were not pickled, by their keys."""
    return _Unpickler(io.BytesIO(data), kept).load()


def find_culprit(value: Any, path: str, kept: Mapping[int, Key]) -> tuple[str, Any, Exception] | None:
    """Return the path to the innermost object that cannot be pickled, the object, and the reason; None if all can."""
    error = _error_of(value, kept)
    if error is None:
        return None
    for _ in range(_DEPTH):
        inside = () if _why_not_whole(value) else _children(value)
        found = ((step, child, _error_of(child, kept)) for step, child in inside)
        step, child, why = next((one for one in found if one[2] is not None), ("", None, None))
        if why is None:
            break
        path, value, error = path + step, child, why
    return path, value, error


def _error_of(value: Any, kept: Mapping[int, Key]) -> Exception | None:
    try:
        dumps(value, kept)
    except Exception as error:
        return error
    return None


def _children(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        yield from ((f"[{key!r}]", one) for key, one in value.items())
    elif isinstance(value, list | tuple):
        yield from ((f"[{k}]", one) for k, one in enumerate(value))
    elif not isinstance(value, type | FunctionType):
        yield from ((f".{name}", one) for name, one in getattr(value, "__dict__", {}).items())


def _why_not_whole(obj: Any) -> str:
    """Return why pickling would not keep all that an object holds; an empty string if it would."""
    if isinstance(obj, type | FunctionType | BuiltinFunctionType | MethodType | ModuleType | Enum):
        return ""
    cls = type(obj)
    if any(base.__name__ == "EzPickle" for base in cls.__mro__):
        return "pickling makes it anew, from the arguments of its constructor (EzPickle)"
    own = getattr(obj, "__dict__", None)
    if not own or cls.__module__.partition(".")[0] in _TRUSTED or not _pickles_in_its_own_way(cls):
        return ""
    reduced = obj.__reduce_ex__(5)
    if isinstance(reduced, str):
        return ""
    state = reduced[2] if len(reduced) > 2 else None
    if isinstance(state, tuple) and len(state) == 2:  # attributes, and slots
        state = state[0]
    missing = sorted(own.keys() - (state.keys() if isinstance(state, dict) else set()))
    how = "__getstate__" if isinstance(state, dict) else "__reduce__"
    return f"its `{how}` leaves out {', '.join(map(repr, missing))}" if missing else ""


def _pickles_in_its_own_way(cls: type) -> bool:
    names = ("__reduce__", "__reduce_ex__", "__getstate__")
    own = any(getattr(cls, name, None) is not getattr(object, name, None) for name in names)
    return own or cls in copyreg.dispatch_table
