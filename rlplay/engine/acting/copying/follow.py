"""Follows references into a copy that ``copy.deepcopy`` leaves as they are: functions and weak references.

``copy.deepcopy`` returns functions and weak references themselves, so that what it copies still refers to the original.
Here they are made anew: a function gets cells of its own, which hold copies of what the original's cells hold.
"""

from __future__ import annotations

import copy
import functools
import types
import weakref
from collections import defaultdict, deque
from typing import Any

import numpy as np
from torch import Tensor

from ...envs.saving.functions import found_by_name
from .parts import BUILTIN_METHODS, WEAK_CONTAINERS, is_atomic, referent_of, slots_of
from .walk import Walk

__all__ = ["Follower", "note_weak"]


class _ProxyOf:
    """Stands for a ``weakref.proxy`` while the copy is made."""

    def __init__(self, referent: Any) -> None:
        self.referent = referent

    def __deepcopy__(self, memo: Any) -> _ProxyOf:
        return self


_IMMUTABLE = (tuple, frozenset, types.MethodType, weakref.ref, _ProxyOf, *BUILTIN_METHODS)

_ANNOTATIONS = "__annotate__" if hasattr(types.FunctionType, "__annotate__") else "__annotations__"
"""From Python 3.14 on, looking at the annotations of a function evaluates them, which may fail."""


def note_weak(memo: dict[Any, Any], found: Walk) -> list[tuple[Any, Any]]:
    """Note in the memo of ``copy.deepcopy`` what stands for weak containers and proxies, which it copies wrongly.

    Returns
    -------
    list of (original, copy)
        The weak containers; the copies are empty.
    """
    containers = []
    for place in found:
        kind = type(place.value)
        if kind in weakref.ProxyTypes:
            referent = referent_of(place.value)
            memo[id(place.value)] = place.value if referent is None else _ProxyOf(referent)
        elif isinstance(place.value, weakref.ref) and kind is not weakref.ref:
            memo[id(place.value)] = place.value  # as copy.deepcopy does with weakref.ref itself
        elif kind in WEAK_CONTAINERS:
            empty: Any = kind()
            memo[id(place.value)] = empty
            containers.append((place.value, empty))
    return containers


class Follower:
    """Changes a copy in place, so that it refers to copies wherever there are any.

    Parameters
    ----------
    memo : dict
        That of the ``copy.deepcopy`` by which the copy was made: copies by the ``id`` of their originals. What is
        copied here is added.
    """

    def __init__(self, memo: dict[Any, Any]) -> None:
        self._memo = memo
        self._followed: dict[int, tuple[Any, Any]] = {}  # a value, and what takes its place, by the id of the value
        self._cells: dict[int, tuple[Any, types.CellType]] = {}
        self._kept_alive: list[Any] = []
        self._note_copies()

    def _note_copies(self) -> None:
        self.copies = {id(value) for value in self._memo.values()}

    def follow(self, value: Any) -> Any:
        """Return what takes the place of a value in the copy; it may be the value itself, changed in place."""
        if is_atomic(value) or isinstance(value, type | Tensor):
            return self._memo.get(id(value), value) if isinstance(value, Tensor) else value
        if id(value) in self._followed:
            return self._followed[id(value)][1]
        copied = self._memo.get(id(value), value)
        if copied is not value:
            replacement = self.follow(copied)
        elif isinstance(value, _IMMUTABLE):
            replacement = self._made_anew(value)
            if id(value) in self._followed:  # followed meanwhile, by way of what it holds
                return self._followed[id(value)][1]
        elif isinstance(value, types.FunctionType):
            return self._follow_function(value)
        else:
            self._followed[id(value)] = value, value
            if id(value) in self.copies:  # anything else may be used by others
                self._change(value)
            return value
        self._followed[id(value)] = value, replacement
        return replacement

    def fill(self, original: Any, empty: Any) -> None:
        """Fill the copy of a weak container. What only the original refers to, weakly, is referred to by both."""
        if isinstance(original, weakref.WeakSet):
            for item in list(original):
                empty.add(self.follow(item))
        elif isinstance(original, weakref.WeakKeyDictionary):
            for key, item in list(original.items()):
                empty[self.follow(key)] = self._copied(item)
        else:
            for key, item in list(original.items()):
                empty[self._copied(key)] = self.follow(item)

    def _copied(self, value: Any) -> Any:
        """Return a copy of a value that the copy of the actor reaches, or the value itself if it cannot be copied."""
        if is_atomic(value) or id(value) in self._memo or id(value) in self.copies:
            return self.follow(value)
        trial = dict(self._memo)
        try:
            copied = copy.deepcopy(value, trial)
        except Exception:  # whatever cannot be copied stays shared; copy_actor refuses it if that would be wrong
            return self.follow(value)
        self._kept_alive.append(trial)
        self._memo.update(trial)
        self._note_copies()
        return self.follow(copied)

    def _made_anew(self, value: Any) -> Any:
        """Make an object anew that cannot be changed in place, if anything that it refers to has a copy."""
        if isinstance(value, _ProxyOf):
            return weakref.proxy(self.follow(value.referent))
        if isinstance(value, weakref.WeakMethod):
            method = value()
            return value if method is None else weakref.WeakMethod(self.follow(method))
        if isinstance(value, weakref.ref):
            target, callback = self.follow(value()), self.follow(value.__callback__)
            if type(value) is not weakref.ref or (target is value() and callback is value.__callback__):
                return value
            return weakref.ref(target, callback)
        if isinstance(value, types.MethodType):
            owner, function = self._copied(value.__self__), value.__func__
            name = getattr(function, "__name__", "")
            if not any(vars(kind).get(name) is function for kind in type(owner).__mro__):
                function = self.follow(function)
            unchanged = owner is value.__self__ and function is value.__func__
            return value if unchanged else types.MethodType(function, owner)
        if isinstance(value, BUILTIN_METHODS):
            owner = self._copied(value.__self__)
            return value if owner is value.__self__ else getattr(owner, value.__name__)
        parts = [self.follow(part) for part in value]
        if all(one is other for one, other in zip(parts, value, strict=True)):
            return value
        return (frozenset if isinstance(value, frozenset) else tuple).__new__(type(value), parts)

    def _follow_function(self, function: types.FunctionType) -> types.FunctionType:
        state = (function.__closure__, function.__defaults__, function.__kwdefaults__, vars(function))
        # a global function of a module is not copied: all who use it share it
        if not any(state) or found_by_name(function.__module__, function.__qualname__) is function:
            self._followed[id(function)] = function, function
            return function
        new_cells: list[tuple[types.CellType, types.CellType]] = []
        for cell in function.__closure__ or ():
            if id(cell) not in self._cells:
                self._cells[id(cell)] = cell, types.CellType()
                new_cells.append(self._cells[id(cell)])
        cells = tuple(self._cells[id(cell)][1] for cell in function.__closure__ or ())
        made = types.FunctionType(function.__code__, function.__globals__, function.__name__, None, cells or None)
        self._followed[id(function)] = function, made
        self.copies.add(id(made))
        for name in ("__module__", "__qualname__", "__doc__", _ANNOTATIONS):
            setattr(made, name, getattr(function, name))
        for cell, new in new_cells:
            if cell != types.CellType():
                new.cell_contents = self._copied(cell.cell_contents)
        made.__defaults__ = self._copied(function.__defaults__)
        made.__kwdefaults__ = self._copied(function.__kwdefaults__)
        vars(made).update((name, self._copied(part)) for name, part in vars(function).items())
        return made

    def _change(self, value: Any) -> None:
        """Let an object that was copied refer to copies."""
        if isinstance(value, functools.partial):
            args, keywords = self.follow(value.args), self.follow(value.keywords)
            value.__setstate__((self.follow(value.func), args, keywords, vars(value)))  # type: ignore[attr-defined]
        elif isinstance(value, dict):
            self._change_dict(value)
            if isinstance(value, defaultdict):
                value.default_factory = self.follow(value.default_factory)
        elif isinstance(value, list | deque):
            for i, part in enumerate(value):
                new = self.follow(part)
                if new is not part:
                    value[i] = new
        elif isinstance(value, set):
            parts = [self.follow(part) for part in value]
            if not value.issuperset(parts):
                value.clear()
                value.update(parts)
        elif isinstance(value, np.ndarray) and value.dtype.hasobject:
            for i, part in enumerate(value.flat):
                value.flat[i] = self.follow(part)
        attributes = getattr(value, "__dict__", None)
        if isinstance(attributes, dict):
            self._change_dict(attributes)
        for name, part in list(slots_of(value)):
            new = self.follow(part)
            if new is not part:
                object.__setattr__(value, name, new)

    def _change_dict(self, value: dict[Any, Any]) -> None:
        for key, part in list(value.items()):
            new = self.follow(part)
            if new is not part:
                dict.__setitem__(value, key, new)
        items = [(self.follow(key), part) for key, part in value.items()]
        if any(new is not key for (new, _), key in zip(items, value, strict=True)):
            value.clear()
            value.update(items)
