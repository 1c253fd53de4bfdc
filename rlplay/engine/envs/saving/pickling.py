"""Pickles what environments hold, by value, or says what in it cannot be pickled.

What arrays, tensors and environments share is found first (:class:`Survey`), so that they share it again once restored.
"""

from __future__ import annotations

import io
import pickle
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from enum import Enum
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

from .functions import reduced
from .memory import Block, Span, blocks_of, is_tensor, span_of, view_of, with_gradient
from .whole import NotSavedError, check_whole, why_not_whole

__all__ = ["CODE", "FUNCTION", "Key", "Survey", "common_key", "dumps", "find_culprit", "loads"]

Key = tuple[Any, ...]
"""Says where an object is that is not pickled, but taken from the environment into which the state is restored."""

FUNCTION, CODE = "function", "code"
"""The keys of functions that pickle does not find by their names, and of the code of those that are made anew, are one
of these words, the name of the function and the fingerprint."""

_DEPTH = 30

_ATOMS = frozenset({int, float, complex, bool, str, bytes, type(None)})
"""The types of numbers and strings, which are most of what is pickled and need no further look."""

_CONSTANT = (
    *(int, float, complex, str, bytes, tuple, frozenset, type(None), Enum, np.dtype, np.generic),
    *(type, MethodType, ModuleType),
)
"""The types of objects that do not change. Environments that share one of these are not connected by it."""


class Survey:
    """Finds what environments share before they are pickled: memory of arrays and tensors, and other objects.

    All objects that it finds are kept alive, so that each ``id()`` and each address stays its own.

    Parameters
    ----------
    kept : mapping of int to tuple
        As for :func:`dumps`; for all environments.
    """

    def __init__(self, kept: Mapping[int, Key]) -> None:
        self.kept = kept
        self.common: dict[int, Any] = {}
        """What several environments refer to, by its ``id()``."""
        self._seen: dict[int, tuple[Any, int]] = {}
        self._spans: list[Span] = []
        self._blocks: list[Block] = []
        self._starts: list[tuple[str, int]] = []

    def look_at(self, value: Any, kept: Mapping[int, Key], number: int) -> None:
        """Register all objects inside of ``value``, which belongs to the environment with this number.

        Raises
        ------
        Exception
            As :func:`dumps` does.
        """
        _Surveyor(self, kept, number).dump(value)

    def note(self, obj: Any, number: int) -> None:
        """Note that an environment refers to an object."""
        _, first = self._seen.setdefault(id(obj), (obj, number))
        if first != number:
            self.common[id(obj)] = obj

    def note_memory(self, obj: Any, number: int) -> None:
        """Note the memory of an object, if it is an array or a tensor."""
        span = span_of(obj, number)
        if span is not None:
            self._spans.append(span)

    def finish(self) -> None:
        """Find out which memory is shared, once all environments have been looked at."""
        found = blocks_of(self._spans)
        self._blocks, self._starts = [block for _, block in found], [(place, block.start) for place, block in found]
        self.common |= {id(block): block for block in self._blocks if len(block.owners) > 1}

    def block_of(self, obj: Any) -> Block | None:
        """Return the shared memory that an array or a tensor lies in; None if it is anything else, or lies in none."""
        span = span_of(obj, 0) if self._blocks else None
        if span is None:
            return None
        k = bisect_right(self._starts, (span.place, span.start)) - 1
        within = k >= 0 and self._starts[k][0] == span.place and span.end <= self._blocks[k].end
        return self._blocks[k] if within else None

    def owner_of(self, obj: Any) -> Any:
        """Return what an array has its memory from, if that is no array or tensor and is pickled, too; else None."""
        owner = obj
        while isinstance(owner, np.ndarray | memoryview):
            owner = owner.base if isinstance(owner, np.ndarray) else owner.obj
        return None if owner is obj or is_tensor(owner) or id(owner) not in self._seen else owner


class _Nowhere:
    def write(self, data: Any) -> None:
        """Forget the data."""


class _Surveyor(pickle.Pickler):
    def __init__(self, survey: Survey, kept: Mapping[int, Key], number: int) -> None:
        super().__init__(_Nowhere(), protocol=5)
        self._survey, self._kept, self._kept_by_all, self._number = survey, kept, survey.kept, number

    def persistent_id(self, obj: Any) -> Key | None:
        if type(obj) in _ATOMS:
            return None
        key = self._kept.get(id(obj)) or self._kept_by_all.get(id(obj))
        if key is None and not isinstance(obj, _CONSTANT) and "__qualname__" not in vars(type(obj)):  # no function
            self._survey.note(obj, self._number)
        return key

    def reducer_override(self, obj: Any) -> Any:
        check_whole(obj)
        self._survey.note_memory(obj, self._number)
        if type(obj) is np.ndarray and not obj.dtype.hasobject:
            return _nothing, ()
        found = with_gradient(obj, (_nothing, (), vars(obj)) if is_tensor(obj) and view_of(obj, None) else None)
        found = found or reduced(obj, self._kept_by_all)
        return NotImplemented if found is None else found


def _nothing() -> None:
    """Stand for what makes an array or a tensor, whose elements no survey has to look at."""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, kept: Mapping[int, Key], survey: Survey, met: dict[int, int] | None) -> None:
        super().__init__(file, protocol=5)
        self._survey, self._kept, self._kept_by_all = survey, kept, survey.kept
        self._common, self._met = ({}, {}) if met is None else (survey.common, met)

    def persistent_id(self, obj: Any) -> Key | None:
        if type(obj) in _ATOMS:
            return None
        key = self._kept.get(id(obj)) or self._kept_by_all.get(id(obj))
        if key is None and self._common and id(obj) in self._common:
            key = common_key(self._met.setdefault(id(obj), len(self._met)))
        return key

    def reducer_override(self, obj: Any) -> Any:
        if isinstance(obj, Block):
            return NotImplemented
        check_whole(obj)
        block, owner = self._survey.block_of(obj), self._survey.owner_of(obj)
        view = view_of(obj, block)
        if owner is not None or (block is not None and view is None):
            other = "another array or tensor" if owner is None else f"a {type(owner).__name__} of the environment"
            raise NotSavedError(
                f"it shares memory with {other}; only NumPy arrays of numbers and tensors on the CPU, of no subclass, "
                "share it again once they are restored"
            )
        found = with_gradient(obj, view) or reduced(obj, self._kept_by_all)
        return NotImplemented if found is None else found


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, kept: Mapping[Key, Any]) -> None:
        super().__init__(file)
        self._kept = kept

    def persistent_load(self, pid: Any) -> Any:
        if pid not in self._kept and pid[0] in (FUNCTION, CODE):
            raise ValueError(
                f"the function `{pid[1]}`, as it was when it was saved, is in none of the environments that go on; "
                "define it at the top level of a module, or hold all such functions from the beginning"
            )
        if pid not in self._kept:
            raise ValueError(f"there is nothing at {pid}, among the environments that go on together")
        return self._kept[pid]


def dumps(value: Any, kept: Mapping[int, Key], survey: Survey, met: dict[int, int] | None = None) -> bytes:
    """Pickle a value.

    Parameters
    ----------
    kept : mapping of int to tuple
        By the ``id()`` of each object that is not to be pickled: the key under which :func:`loads` finds it. It comes
        before that of the survey.
    survey : Survey
        It has looked at the value, and is finished.
    met : dict of int to int, optional
        Gets the ``id()`` of each object that is met and that several environments share, and numbers these. They are
        not pickled: :func:`loads` finds them under :func:`common_key`. Without it they are pickled, too.

    Raises
    ------
    Exception
        What pickling raises; :class:`.whole.NotSavedError` if an object would be pickled without all that it holds.
    """
    file = io.BytesIO()
    _Pickler(file, kept, survey, met).dump(value)
    return file.getvalue()


def loads(data: bytes, kept: Mapping[Key, Any]) -> Any:
    """Unpickle what :func:`dumps` returned; ``kept`` has the objects that were not pickled, by their keys."""
    return _Unpickler(io.BytesIO(data), kept).load()


def common_key(number: int) -> Key:
    """Return the key of an object that several environments share, by the number that it got."""
    return "common", number


def find_culprit(value: Any, path: str, dump: Callable[[Any], object]) -> tuple[str, Any, Exception] | None:
    """Return the path to the innermost object that cannot be pickled, the object, and the error; None if all can be.

    Parameters
    ----------
    dump : callable
        Pickles a value, or raises an exception.
    """
    error = _error_of(value, dump)
    if error is None:
        return None
    for _ in range(_DEPTH):
        inside = () if why_not_whole(value) else _children(value)
        found = ((step, child, _error_of(child, dump)) for step, child in inside)
        step, child, why = next((one for one in found if one[2] is not None), ("", None, None))
        if why is None:
            break
        path, value, error = path + step, child, why
    return path, value, error


def _error_of(value: Any, dump: Callable[[Any], object]) -> Exception | None:
    try:
        dump(value)
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
