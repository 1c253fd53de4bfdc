"""Records named entries of the environments' info dicts in arrays of fixed shape and dtype.

Works on plain dicts; imports nothing about environments, rows or torch.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from .spaces import Field

__all__ = ["Entries", "Entry"]

_MISSING = object()


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
    """

    def __init__(self, asked: Sequence[str] | Mapping[str, Any]) -> None:
        """Read ``info=``: a sequence of names (float32 scalars), or a dict from names to dtypes or example arrays.

        Raises
        ------
        TypeError
            It is neither, or an example cannot be recorded.
        """
        if isinstance(asked, str) or not isinstance(asked, Mapping | Sequence):
            raise TypeError(
                f"`info` must be a tuple of names or a dict of names to dtypes or examples, got {asked!r}; "
                f"for a single entry write `info=({asked!r},)`."
            )
        if not all(isinstance(name, str) for name in asked):
            raise TypeError(f"`info` must name entries by strings, got {list(asked)!r}.")
        examples = asked if isinstance(asked, Mapping) else dict.fromkeys(asked, np.float32)
        self.entries = tuple(_entry_like(name, examples[name]) for name in sorted(examples))
        self._lookups = tuple((entry, entry.name, entry.name.split(".")) for entry in self.entries)

    def record(self, info: Mapping[str, Any] | None, into: list[npt.NDArray[Any]], j: int) -> None:
        """Write the entries that ``info`` has into element ``j`` of the arrays; leave the others as they are.

        A name is looked up as it is; if it is missing and dotted (``"episode.r"``), in the nested dicts.

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
            A value does not fit; the message names the entry.
        """
        if not info:
            return
        for (entry, name, path), array in zip(self._lookups, into, strict=True):
            value = info.get(name, _MISSING)
            if value is _MISSING and len(path) > 1:
                value = _look_up(info, path)
            if value is not _MISSING:
                array[j] = _cast(entry, value)


def _look_up(info: Mapping[str, Any], path: Sequence[str]) -> Any:
    value: Any = info
    for key in path:
        if not isinstance(value, Mapping) or key not in value:
            return _MISSING
        value = value[key]
    return value


def _entry_like(name: str, example: Any) -> Entry:
    """Make an entry from a dtype (NumPy's, Python's or torch's) or an example array."""
    torch = sys.modules.get("torch")  # if torch has not been imported, `example` is no dtype of torch
    if torch is not None and isinstance(example, torch.dtype):
        example = torch.empty((), dtype=example, device="cpu").numpy()
    try:
        # a type such as `float`, `np.int64` or "float32" names a dtype; anything else is an example
        array = np.empty((), example) if isinstance(example, type | np.dtype | str) else np.asarray(example)
    except TypeError as error:
        raise TypeError(f"`info[{name!r}]` must be a dtype or an example array, got {example!r}.") from error
    kind = array.dtype.kind
    if kind not in "biuf":
        raise TypeError(f"`info[{name!r}]` must be numeric or bool, got {example!r} of dtype {array.dtype}.")
    absent = float("nan") if kind == "f" else False if kind == "b" else 0
    return Entry(name, Field(array.shape, array.dtype, integral=False), absent)


def _cast(entry: Entry, value: Any) -> npt.NDArray[Any]:
    try:
        return entry.field.cast(value)
    except ValueError as error:
        raise ValueError(
            f"info entry {entry.name!r}: {error}. Give `info={{{entry.name!r}: <an example value>}}` if its form is "
            "another."
        ) from None
