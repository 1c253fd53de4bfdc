"""Walks over all that an actor reaches, and remembers a path to each object."""

from __future__ import annotations

import types
import weakref
from collections import defaultdict, deque
from collections.abc import Iterator
from typing import Any, NamedTuple

from .parts import CLASS, class_attributes, held_parts, is_atomic, names_in_code, used_globals

__all__ = ["Place", "Walk"]

_CALLED_BY_THE_ENGINE = ("step", "reset", "forward")


class Place(NamedTuple):
    """An object, and how it was found."""

    value: Any
    """Kept alive, so that its ``id`` stays its own."""
    parent: Place | None
    how: str
    """How the parent refers to it, in Python notation."""
    by_code: bool
    """Whether it was found by way of a class or of a global variable, and by no other way."""

    @property
    def path(self) -> str:
        """The path from the root."""
        return (self.parent.path if self.parent is not None else "") + self.how


class Walk:
    """All objects that an object reaches, by their ``id``.

    Parameters
    ----------
    root : object
        Where to begin.
    with_code : bool
        Whether to follow what functions and classes use by a name as well: the global variables and the class
        attributes whose names occur in the code of functions that are reached. What only special methods use that a
        copy does not run (such as ``__init__``) is left out.
    """

    def __init__(self, root: Any, *, with_code: bool) -> None:
        self._with_code = with_code
        self._places: dict[int, Place] = {}
        self._queue, self._queue_by_code = deque[Place](), deque[Place]()
        self.used_names = set(_CALLED_BY_THE_ENGINE)
        """The names that the code of the functions uses that are reached."""
        self._not_used: dict[str, list[Place]] = defaultdict(list)  # attributes of classes, by name
        self._add(Place(root, None, "actor", by_code=False))
        while self._queue or self._queue_by_code:  # first all that needs no code
            self._expand((self._queue or self._queue_by_code).popleft())

    def __iter__(self) -> Iterator[Place]:
        """Iterate over all places, those without code first."""
        return iter(self._places.values())

    def __contains__(self, value: Any) -> bool:
        """Return whether an object was reached."""
        return id(value) in self._places

    def place_of(self, key: int) -> Place | None:
        """Return where the object with this ``id`` was found."""
        return self._places.get(key)

    def _add(self, place: Place) -> None:
        if not is_atomic(place.value) and id(place.value) not in self._places:
            self._places[id(place.value)] = place
            (self._queue_by_code if place.by_code else self._queue).append(place)

    def _expand(self, place: Place) -> None:
        value = place.value
        for how, part in held_parts(value):
            self._add(Place(part, place, how, place.by_code))
        if not self._with_code or type(value) in weakref.ProxyTypes:
            return
        if isinstance(value, types.FunctionType):
            self._use(names_in_code(value.__code__))
            for how, part in used_globals(value):
                self._add(Place(part, place, how, by_code=True))
        elif isinstance(value, type):
            for base in value.__bases__:
                self._add(Place(base, place, f".{base.__name__}", by_code=True))
            for name, part in class_attributes(value):
                found = Place(part, place, f".{name}", by_code=True)
                if name in self.used_names or (name.startswith("__") and name.endswith("__")):
                    self._add(found)
                else:
                    self._not_used[name].append(found)
        if not isinstance(value, type):
            self._add(Place(type(value), place, CLASS, by_code=True))

    def _use(self, names: set[str]) -> None:
        """Add the attributes of classes that have these names."""
        for name in names - self.used_names:
            for place in self._not_used.pop(name, ()):
                self._add(place)
        self.used_names |= names
