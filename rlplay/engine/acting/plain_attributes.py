"""Plain attributes of modules, such as an epsilon: numbers, strings, booleans and None. They flow with the snapshots.

An attribute flows when the learner's value differs from what it was at the learner's previous snapshot. So what the
copy changes itself stays as it is until the learner changes it. Imports nothing else of ``rlplay``.
"""

from __future__ import annotations

from collections.abc import Mapping
from numbers import Number
from typing import Any, NamedTuple

import numpy as np
from torch import nn

__all__ = [
    "NOT_LOOKED_AT",
    "NO_CHANGES",
    "AttributeName",
    "PlainChange",
    "PlainChanges",
    "PlainWatch",
    "apply_changes",
    "dotted",
    "load_plain",
    "plain_of",
]

AttributeName = tuple[str, str]
"""The name of a module, as in ``named_modules()``, and that of its attribute."""

NOT_LOOKED_AT = frozenset(vars(nn.Module())) | {"generator", "_compiled_call_impl"}
"""Attributes that are torch's or the engine's own."""

_MISSING = object()


class PlainChange(NamedTuple):
    """The last change of an attribute."""

    number: int
    """The number of the snapshot at which it was seen."""
    present: bool
    """False if the attribute was deleted."""
    value: Any
    """None if it was deleted."""


class PlainChanges(NamedTuple):
    """All attributes that the learner has changed since the copy was made, as of one snapshot.

    A copy that has skipped snapshots finds in it all that it has missed, by the numbers.
    """

    number: int
    """The number of the snapshot: 1 for the first."""
    changes: dict[AttributeName, PlainChange]
    """Never written to again."""


NO_CHANGES = PlainChanges(0, {})


class PlainWatch:
    """Looks at the plain attributes of the learner's actor, at each snapshot.

    Parameters
    ----------
    modules : mapping of str to module
        The modules that the copy was made of, by name.
    """

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        self._seen = plain_of(modules)
        self._latest = NO_CHANGES

    def look(self, modules: Mapping[str, nn.Module]) -> PlainChanges:
        """Return what has changed up to now.

        Raises
        ------
        ValueError
            If an attribute is no longer plain. Nothing is noted then.
        """
        number, found = self._latest.number + 1, dict[AttributeName, PlainChange]()
        for name, module in modules.items():
            seen, own = self._seen[name], module.__dict__
            for key in own.keys() - NOT_LOOKED_AT:
                value, before = own[key], seen.get(key, _MISSING)
                if before is value:
                    continue
                if not _is_plain(value):
                    if before is _MISSING:
                        continue
                    raise ValueError(
                        f"the actor's {dotted((name, key))!r} was {before!r} and is now a {type(value).__name__}: only "
                        "numbers, strings, booleans and None flow to the behaviour copy. Keep tensors in buffers, or "
                        "make a new feed after such a change."
                    )
                if before is _MISSING or not _same(before, value):
                    found[name, key] = PlainChange(number, True, value)
                else:
                    seen[key] = value  # an equal one: the next look is faster
            found.update(((name, key), PlainChange(number, False, None)) for key in seen if key not in own)
        for (name, key), change in found.items():
            if change.present:
                self._seen[name][key] = change.value
            else:
                del self._seen[name][key]
        changes = self._latest.changes | found if found else self._latest.changes
        self._latest = PlainChanges(number, changes)
        return self._latest

    def state_dict(self) -> dict[str, Any]:
        """Return what has been seen, and all changes; the values themselves are not copied."""
        return {"seen": {name: dict(seen) for name, seen in self._seen.items()}, "latest": self._latest}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned: what differs from there at the next look has changed."""
        self._seen = {name: dict(seen) for name, seen in state["seen"].items()}
        self._latest = state["latest"]


def plain_of(modules: Mapping[str, nn.Module]) -> dict[str, dict[str, Any]]:
    """Return the plain attributes of each module, by the names of modules and of attributes."""
    return {name: _plain(module) for name, module in modules.items()}


def load_plain(
    modules: Mapping[str, nn.Module], plain: Mapping[str, Mapping[str, Any]], *, keep_others: bool = False
) -> None:
    """Replace all plain attributes of modules by those that :func:`plain_of` returned.

    ``keep_others``: attributes that are not among these stay; otherwise they are deleted.
    """
    for name, module in modules.items():
        for key in () if keep_others else _plain(module).keys() - plain[name].keys():
            del module.__dict__[key]
        module.__dict__.update(plain[name])


def apply_changes(modules: Mapping[str, nn.Module], snapshot: PlainChanges, adopted: int) -> int:
    """Write the changes into modules that are newer than the snapshot number ``adopted``; return the new number."""
    if snapshot.number > adopted:
        for (name, key), change in snapshot.changes.items():
            if change.number > adopted:
                if change.present:
                    modules[name].__dict__[key] = change.value
                else:
                    modules[name].__dict__.pop(key, None)
    return max(snapshot.number, adopted)


def dotted(name: AttributeName) -> str:
    """Return the name of an attribute as it is written after ``actor.``."""
    return ".".join(part for part in name if part)


def _plain(module: nn.Module) -> dict[str, Any]:
    return {key: value for key, value in vars(module).items() if key not in NOT_LOOKED_AT and _is_plain(value)}


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, str | Number | np.generic)


def _same(one: Any, other: Any) -> bool:
    """Return whether two plain values are of one type and equal; NaN equals itself, and -0.0 differs from 0.0."""
    return type(one) is type(other) and bool(repr(one) == repr(other))
