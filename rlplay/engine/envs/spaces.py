"""Spaces described by shapes and dtypes, and values checked against these descriptions.

Spaces of gym and gymnasium are recognised by the names of their classes; neither library is imported. Imports nothing
about environments, torch or memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ... import nested
from ...nested import Nested

__all__ = ["Field", "along", "along_with_parts", "cast", "container_of", "fields", "equal_spaces"]

_SUPPORTED = "Box, Discrete, MultiDiscrete, MultiBinary, and Dict and Tuple of them"

_LIKELY_CAUSE = (
    "The containers of an observation must be those of `observation_space`: a wrapper that changes observations "
    "without setting `observation_space` is the likely cause."
)


@dataclass(frozen=True)
class Field:
    """One leaf of a space: shape and dtype of one environment's array at one step.

    Values of Discrete and MultiDiscrete are int64 in rlplay and counted from 0, whatever the dtype and the ``start`` of
    the space. Here they are called *counted*; the environment has ``start + counted``, in the space's own dtype.
    """

    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    integral: bool
    """Whether the space is Discrete, MultiDiscrete or MultiBinary: its values may be integers of any width."""
    n: Any = None
    """The number of values of each element, an int or nested tuples of int: counted values are from 0 to ``n - 1``.
    None if the space has no such number."""
    start: Any = 0
    """The environment's value that is counted as 0, an int or nested tuples of int. The int 0 if all of them are 0."""
    own_dtype: np.dtype[Any] | None = None
    """The dtype of the space, if it is not ``dtype``."""

    def __str__(self) -> str:
        kind = f"any integer (kept as {self.dtype})" if self.integral else str(self.dtype)
        return f"shape {self.shape}, dtype {kind}"

    @cached_property
    def _start(self) -> npt.NDArray[Any]:
        return np.array(self.start, self.own_dtype or self.dtype).astype(self.dtype)

    def batched(self, n_envs: int) -> Field:
        """Return the field of ``n_envs`` such values in one array."""
        return replace(self, shape=(n_envs, *self.shape))

    def given(self, counted: npt.NDArray[Any]) -> npt.NDArray[Any]:
        """Return counted values, of shape ``(..., *shape)``, as the environment has them; the same array if equal."""
        if self.start:
            counted = counted + self._start
        return counted if self.own_dtype is None else counted.astype(self.own_dtype)

    def cast(self, value: Any) -> npt.NDArray[Any]:
        """Convert an environment's value to an array of this shape and dtype, counted from 0.

        Raises
        ------
        ValueError
            The shape differs, or the dtype cannot be cast by numpy's ``same_kind`` rule. Bounds are not checked.
        """
        array = self._cast(value)
        return array - self._start if self.start else array

    def _cast(self, value: Any) -> npt.NDArray[Any]:
        array = np.asarray(value)
        if array.shape != self.shape:
            raise ValueError(f"expected {self}, got shape {array.shape}, dtype {array.dtype}")
        if array.dtype.kind in "iu" and self.dtype.kind in "iu" and not isinstance(value, np.ndarray | np.generic):
            # plain Python integers have no dtype of their own: only their values must be representable
            cast = array.astype(self.dtype)
            if np.array_equal(cast, array):
                return cast
        elif self.accepts(array.dtype):
            return array.astype(self.dtype, copy=False)
        raise ValueError(
            f"expected {self}, got {value!r} of dtype {array.dtype}, which cannot be cast safely (same_kind)"
        )

    def accepts(self, dtype: np.dtype[Any]) -> bool:
        """Whether arrays of this dtype can be cast to this field's dtype safely (``same_kind``)."""
        return (self.integral and dtype.kind in "iub") or np.can_cast(dtype, self.dtype, "same_kind")


def fields(space: Any) -> Nested:
    """Describe a space: :class:`Field` leaves, nested in dicts (Dict) and tuples (Tuple).

    Raises
    ------
    TypeError
        The space is of a kind whose values have no fixed shape, such as Text, Sequence and Graph.
    """
    class_names = {cls.__name__ for cls in type(space).__mro__}
    inner = getattr(space, "spaces", None)
    if "Dict" in class_names and isinstance(inner, Mapping):
        return {key: fields(part) for key, part in inner.items()}
    if "Tuple" in class_names and inner is not None:
        return tuple(fields(part) for part in inner)
    shape, dtype = getattr(space, "shape", None), getattr(space, "dtype", None)
    if shape is None or dtype is None or np.dtype(dtype).kind not in "biuf" or np.dtype(dtype).itemsize > 8:
        raise TypeError(f"cannot record values of the space {space!r}: expected one of {_SUPPORTED}.")
    own_dtype = np.dtype(dtype)
    native = own_dtype.newbyteorder("=")
    field = Field(
        tuple(int(n) for n in shape), native, integral=False, own_dtype=None if own_dtype == native else own_dtype
    )
    if "MultiBinary" in class_names:
        return replace(field, integral=True, n=2)
    if class_names & {"Discrete", "MultiDiscrete"}:
        n, start = getattr(space, "nvec", getattr(space, "n", None)), np.asarray(getattr(space, "start", 0))
        return Field(
            field.shape,
            np.dtype(np.int64),
            integral=True,
            n=None if n is None else _as_tuples(np.asarray(n)),
            start=_as_tuples(start) if start.any() else 0,
            own_dtype=None if own_dtype == np.int64 else own_dtype,
        )
    return field


def _as_tuples(array: npt.NDArray[Any]) -> Any:
    """Return an array of integers as nested tuples, which can be compared and hashed; one without dimensions as int."""
    return tuple(map(_as_tuples, array)) if array.ndim else int(array)


def container_of(value: Any) -> str:
    """Describe a value that is, or contains in lists and tuples, a dict or a named tuple; else return ``""``.

    NumPy would make an array of a named tuple, and lose its names.
    """
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with keys {sorted(map(str, value))}"
    if hasattr(value, "_fields"):
        return f"a named tuple {type(value).__name__} of {', '.join(value._fields)}"
    if isinstance(value, list | tuple):
        return next((f"a {type(value).__name__} with {inner}" for inner in map(container_of, value) if inner), "")
    return ""


def along(description: Nested, value: Nested, name: str = "obs") -> Nested:
    """Return the description of a space with the containers of one of its values, such as a list instead of a tuple.

    Other subclasses of tuple, and other mappings, become tuples and dicts: :mod:`rlplay.nested` takes them for leaves.

    Parameters
    ----------
    description : nested Field
        Of the space, by :func:`fields`.
    value : nested
        An element of the space.
    name : str
        How messages call the value.

    Raises
    ------
    ValueError
        The value is not nested as its space is.
    """
    if isinstance(description, dict):
        if not isinstance(value, Mapping) or set(value) != set(description):
            raise ValueError(f"{name}: expected a dict with keys {sorted(description, key=str)}, got {_summary(value)}")
        return {key: along(part, value[key], f"{name}[{key!r}]") for key, part in description.items()}
    if isinstance(description, tuple):
        if not isinstance(value, tuple | list) or len(value) != len(description):
            raise ValueError(f"{name}: expected a tuple of {len(description)} parts, got {_summary(value)}")
        parts = [
            along(part, item, f"{name}[{k}]") for k, (part, item) in enumerate(zip(description, value, strict=True))
        ]
        return _sequence_like(value, parts)
    return description


def _sequence_like(one: Any, parts: list[Any]) -> Any:
    if hasattr(one, "_fields"):
        return type(one)(*parts)
    return parts if isinstance(one, list) else tuple(parts)


def along_with_parts(description: Nested, value: Nested, name: str = "obs") -> tuple[Nested, list[Any]]:
    """Return what :func:`along` returns, and the parts of the value at its leaves, in the order of the leaves."""
    found = along(description, value, name)
    return found, nested.structure(found).flatten_up_to(_in_containers_of(found, value))


def _in_containers_of(description: Nested, value: Nested) -> Nested:
    if isinstance(description, dict):
        return {key: _in_containers_of(part, value[key]) for key, part in description.items()}
    if isinstance(description, tuple | list):
        return _sequence_like(description, list(map(_in_containers_of, description, value)))
    return value


def cast(description: Nested, value: Nested, name: str = "obs") -> list[npt.NDArray[Any]]:
    """Flatten a value of a space into arrays of exactly the shapes and dtypes of the space's fields.

    Parameters
    ----------
    description : nested Field
        Of the space, by :func:`fields`.
    value : nested
        The value, which may have other dtypes that can be cast safely.
    name : str
        How messages call the value.

    Returns
    -------
    list of arrays
        The leaves, in the order of :func:`rlplay.nested.flatten`. They may share memory with the value.

    Raises
    ------
    ValueError
        The structure, a shape or a dtype does not fit; the message names the leaf.
    """
    if value is None:
        raise ValueError(f"{name}: the observation is None: is a `return` missing where it is made?")
    try:
        description, parts = along_with_parts(description, value, name)
    except ValueError as error:
        raise ValueError(f"{error}. {_LIKELY_CAUSE}") from None
    arrays = []
    for k, (field, part) in enumerate(zip(nested.leaves(description), parts, strict=True)):
        try:
            if isinstance(part, Mapping | list | tuple) and (found := container_of(part)):
                raise ValueError(f"expected an array ({field}), got {found}. {_LIKELY_CAUSE}")
            arrays.append(field.cast(part))
        except ValueError as error:
            raise ValueError(f"{nested.names(description, name)[k]}: {error}") from None
    return arrays


def equal_spaces(one: Any, other: Any) -> bool:
    """Whether two spaces have equal fields and, where their class defines ``==``, are equal by that (bounds, ...)."""
    if fields(one) != fields(other):
        return False
    defines_equality = "__eq__" in {name for cls in type(one).__mro__[:-1] for name in vars(cls)}
    return bool(one == other) if defines_equality else True


def _summary(value: Any) -> str:
    if isinstance(value, Mapping):
        return container_of(value)
    if isinstance(value, tuple | list):
        return f"a {type(value).__name__} of {len(value)} parts"
    return f"{type(value).__name__}, shape {np.shape(value)}"
