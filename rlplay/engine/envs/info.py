"""Records named entries of the environments' info dicts in arrays of fixed shape and dtype.

Works on plain dicts; imports nothing about environments, rows or torch.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .spaces import Field, container_of

__all__ = ["MISSING", "Entries", "Entry", "look_up"]

MISSING = object()
"""Returned by :func:`look_up` for what is not there."""


class Entry(NamedTuple):
    """One named entry: shape and dtype of its value, and the number recorded where it is absent."""

    name: str
    field: Field
    absent: float | int | bool


class Entries:
    """The entries named by the argument ``info=`` of a rollout.

    Attributes
    ----------
    entries : tuple of Entry
        Sorted by name, as the leaves of a dict are.
    untold : set of str
        The names that no environment has told so far.
    """

    def __init__(self, asked: Sequence[str] | Mapping[str, Any]) -> None:
        """Read ``info=``: a sequence of names (float32 scalars), or a dict from names to dtypes or example arrays.

        Raises
        ------
        TypeError
            It is neither, or an example cannot be recorded.
        """
        if isinstance(asked, str) or not isinstance(asked, Mapping | Sequence):
            remedy = f"a single entry is `info=({asked!r},)`" if isinstance(asked, str) else "leave it out for none"
            raise TypeError(
                f"`info` must be a tuple of names or a dict of names to dtypes or examples, got {asked!r}; {remedy}."
            )
        if not all(isinstance(name, str) for name in asked):
            raise TypeError(f"`info` must name entries by strings, got {list(asked)!r}.")
        examples = asked if isinstance(asked, Mapping) else dict.fromkeys(asked, np.float32)
        self.entries = tuple(_entry_like(name, examples[name]) for name in sorted(examples))
        self._lookups = tuple((entry, entry.name, entry.name.split(".")) for entry in self.entries)
        self.untold = set(examples)
        self._may_warn = True

    def record(self, info: Mapping[str, Any] | None, into: list[npt.NDArray[Any]], j: int) -> None:
        """Write the entries that ``info`` has into element ``j`` of the arrays; leave the others as they are.

        A name is looked up as it is; if it is missing and dotted (``"episode.r"``), inside of dicts by keys, of named
        tuples by names, and of lists, tuples and arrays by indices.

        Parameters
        ----------
        info : dict, or None
            What one environment returned in one step.
        into : list of arrays ``(B, ...)``
            One for each of :attr:`entries`.
        j : int
            The environment's column.

        Raises
        ------
        ValueError
            A value does not fit, or the info is no dict; the message names the entry.
        """
        if type(info) is dict:
            if not info:
                return
        elif not isinstance(info, Mapping):
            if _is_nothing(info):
                return
            raise ValueError(f"expected the info to be a dict, got {info!r:.80}, of type {type(info).__name__}.")
        untold = self.untold
        for (entry, name, path), array in zip(self._lookups, into, strict=True):
            value = info.get(name, MISSING)
            if value is MISSING and len(path) > 1:
                value = look_up(info, path)
            if value is not MISSING:
                array[j] = _cast(entry, value)
                if untold and name in untold:
                    untold.discard(name)

    def keep_untold(self, names: Collection[str]) -> None:
        """Take all names that are not among these as told, as environments in other processes have told them."""
        self.untold.intersection_update(names)

    def state_dict(self) -> dict[str, Any]:
        """Return which names no environment has told, and whether that may still draw a warning."""
        return {"names": sorted(self.untold), "may_warn": self._may_warn}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned."""
        self.untold, self._may_warn = set(state["names"]), state["may_warn"]

    def leave_warning(self) -> None:
        """Give no warning: these environments are not all of the feed."""
        self._may_warn = False

    def take_warning(self) -> str:
        """Return a warning of the names that no environment has told, after an episode has ended; only once."""
        names, may_warn = sorted(self.untold), self._may_warn
        self._may_warn = False
        if not names or not may_warn:
            return ""
        return (
            f"`info`: no environment has told {', '.join(map(repr, names))} so far, although an episode has ended: is "
            "the name right? (A name that only some infos have may come later; until then it is recorded as absent.)"
        )


def _is_nothing(info: Any) -> bool:
    """Whether an info is None, or as an empty list false."""
    try:
        return not info
    except Exception:  # an array has no truth value
        return False


def look_up(value: Any, path: Sequence[str]) -> Any:
    """Return what is at a path, or :data:`MISSING`; a key of a dict may itself have dots."""
    for k, key in enumerate(path):
        if isinstance(value, Mapping):
            rest = ".".join(path[k:])
            if rest in value:
                return value[rest]
            value = value.get(key, MISSING)
        elif key in getattr(value, "_fields", ()):
            value = getattr(value, key)
        elif key.isdecimal() and _length(value) > int(key):
            value = value[int(key)]
        else:
            return MISSING
    return value


def _length(value: Any) -> int:
    """Return the length of a list, a tuple or an array (or tensor); 0 for anything else."""
    if isinstance(value, Sequence) and not isinstance(value, str | bytes):
        return len(value)
    shape = getattr(value, "shape", ())
    return int(shape[0]) if shape else 0


def _entry_like(name: str, example: Any) -> Entry:
    """Make an entry from a dtype (NumPy's, Python's or torch's) or an example array."""
    torch = sys.modules.get("torch")  # if torch has not been imported, `example` is no dtype of torch
    try:
        if torch is not None and isinstance(example, torch.dtype):
            example = torch.empty((), dtype=example, device="cpu").numpy()
        # a type such as `float`, `np.int64` or "float32" names a dtype; anything else is an example
        array = np.empty((), example) if isinstance(example, type | np.dtype | str) else np.asarray(example)
    except TypeError as error:
        raise TypeError(f"`info[{name!r}]` must be a dtype of NumPy or an example array, got {example!r}.") from error
    dtype = array.dtype.newbyteorder("=")
    kind = dtype.kind
    if kind not in "biuf" or dtype.itemsize > 8:
        raise TypeError(
            f"`info[{name!r}]` must be numeric or bool, of at most 64 bits, got {example!r} of dtype {dtype}."
        )
    absent = float("nan") if kind == "f" else False if kind == "b" else 0
    return Entry(name, Field(array.shape, dtype, integral=kind in "iu"), absent)


def _cast(entry: Entry, value: Any) -> npt.NDArray[Any]:
    name = entry.name
    if isinstance(value, Mapping | list | tuple) and (found := container_of(value)):
        keys = list(value) if isinstance(value, Mapping) else getattr(value, "_fields", ("0",))
        raise ValueError(
            f"info entry {name!r}: expected a number or an array ({entry.field}), got {found}: ask for its parts by "
            f"dotted names, such as {'.'.join([name, *map(str, keys[:1])])!r}."
        )
    try:
        array = entry.field.cast(value)
        if entry.field.dtype.kind in "iu" and not _holds(array, np.asarray(value)):
            raise ValueError(f"expected {entry.field}, got {value!r:.80}, which {array.dtype} does not hold")
        return array
    except Exception as error:  # a ValueError of `cast`, or whatever NumPy raises for a ragged list or a tensor
        found = f"{error}. Give `info={{{name!r}: <an example value>}}` if its form is another"
        if isinstance(value, list | tuple) and _is_ragged(value):
            found = f"expected a number or an array ({entry.field}), got {value!r:.80}, whose parts differ in length"
            found += f": ask for its parts by dotted names, such as '{name}.0'"
        raise ValueError(f"info entry {name!r}: {found}.") from None


def _holds(array: npt.NDArray[Any], given: npt.NDArray[Any]) -> bool:
    """Return whether an array of integers has the values that were given: a narrower dtype would wrap them round."""
    return np.can_cast(given.dtype, array.dtype) or np.array_equal(array, given)


def _is_ragged(value: Any) -> bool:
    try:
        return np.asarray(value).dtype.kind == "O"
    except ValueError:
        return True
