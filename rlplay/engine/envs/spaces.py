"""What the arrays of a space look like, and whether a given value is one: by duck typing, for gym and gymnasium alike.

Knows nothing of environments, torch or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import nested
from ...nested import Nested

__all__ = ["Field", "along", "cast", "fields", "equal_spaces"]

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"


@dataclass(frozen=True)
class Field:
    """One leaf of a space: what one environment's array looks like at one step."""

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    integral: bool
    """A discrete space, which takes integers of any width."""

    def __str__(self) -> str:
        kind = f"any integer (kept as {self.dtype})" if self.integral else str(self.dtype)
        return f"shape {self.shape}, dtype {kind}"

    def cast(self, value: Any) -> npt.NDArray[Any]:
        """Turn a value into an array of this very shape and dtype, or say why not.

        Raises
        ------
        ValueError
            If the shape differs, or the dtype cannot be cast by numpy's ``same_kind`` rule. Bounds are not checked.
        """
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(f"expected {self}, got shape {array.shape}, dtype {array.dtype}")
        if array.dtype.kind in "iu" and self.dtype.kind in "iu" and not isinstance(value, np.ndarray | np.generic):
            # plain Python integers have no dtype of their own: they fit wherever their values do, and nowhere else
            cast = array.astype(self.dtype)
            if np.array_equal(cast, array):
                return cast
        elif self.accepts(array.dtype):
            return array.astype(self.dtype, copy=False)
        raise ValueError(
            f"expected {self}, got {value!r} of dtype {array.dtype}, which cannot be cast safely (same_kind)"
        )

    def accepts(self, dtype: np.dtype[Any]) -> bool:
        """Whether arrays of this dtype can be cast safely."""
        return (self.integral and dtype.kind in "iub") or np.can_cast(dtype, self.dtype, "same_kind")


def fields(space: Any) -> Nested:
    """Describe a space: :class:`Field` leaves in dicts (Dict) and tuples (Tuple).

    Raises
    ------
    TypeError
        If the space is of a kind whose values have no fixed shape, such as Text, Sequence and Graph.
    """
    kinds = {cls.__name__ for cls in type(space).__mro__}
    inner = getattr(space, "spaces", None)
    if "Dict" in kinds and isinstance(inner, Mapping):
        return {key: fields(part) for key, part in inner.items()}
    if "Tuple" in kinds and inner is not None:
        return tuple(fields(part) for part in inner)
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None or np.dtype(dtype).kind not in "biuf" or np.dtype(dtype).itemsize > 8:
        raise TypeError(f"cannot record values of the space {space!r}: expected one of {_SUPPORTED}.")
    integral = bool(kinds & {"Discrete", "MultiDiscrete", "MultiBinary"})
    return Field(tuple(int(n) for n in shape), np.dtype(dtype), integral)


def along(described: Nested, value: Nested, name: str = "obs") -> Nested:
    """Put the fields of a space into the containers that a value of it came in (a named tuple stays one).

    Raises
    ------
    ValueError
        If the value is put together otherwise than its space.
    """
    if isinstance(described, dict):
        if not isinstance(value, Mapping) or set(value) != set(described):
            raise ValueError(f"{name}: expected a dict with keys {sorted(described)}, got {_sketch(value)}")
        return {key: along(part, value[key], f"{name}[{key!r}]") for key, part in described.items()}
    if isinstance(described, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(described):
            raise ValueError(f"{name}: expected a tuple of {len(described)} parts, got {_sketch(value)}")
        parts = [along(part, item, f"{name}[{k}]") for k, (part, item) in enumerate(zip(described, value, strict=True))]
        return type(value)(*parts) if hasattr(value, "_fields") else type(value)(parts)
    return described


def cast(described: Nested, value: Nested, name: str = "obs") -> list[npt.NDArray[Any]]:
    """Take a value of a space apart into arrays of the very shapes and dtypes that its fields say.

    Raises
    ------
    ValueError
        If structure, shape or dtype differ; the message names the leaf.
    """
    described = along(described, value, name)
    found, spec = nested.flatten(described)
    arrays = []
    for k, (leaf, part) in enumerate(zip(found, spec.flatten_up_to(value), strict=True)):
        try:
            arrays.append(leaf.cast(part))
        except ValueError as error:
            raise ValueError(f"{nested.names(described, name)[k]}: {error}") from None
    return arrays


def equal_spaces(one: Any, other: Any) -> bool:
    """Whether two spaces are equal, as far as can be told: by their own ``==`` where they define it."""
    if fields(one) != fields(other):
        return False
    defines_equality = "__eq__" in {name for cls in type(one).__mro__[:-1] for name in vars(cls)}
    return bool(one == other) if defines_equality else True


def _sketch(value: Any) -> str:
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {sorted(map(str, value))}"
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} parts"
    return f"{type(value).__name__}, shape {np.shape(value)}"
