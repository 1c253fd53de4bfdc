"""Rewards and flags: whatever an environment returns for one number, or for one number of each part of it.

Imports neither torch, gym nor gymnasium: tensors are recognised by their attributes.
"""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Number
from typing import Any

import numpy as np

from ..rows import Array

__all__ = ["one_number", "to_flag", "to_flags", "to_rewards", "to_reward"]

_REAL = frozenset({float, int, bool, *(np.dtype(char).type for char in "?bBhHiIlLqQefdg")})
"""The types of single numbers that are converted at once."""


def to_reward(value: Any) -> float:
    """Convert a reward to a float. It may be anything that is one number, also in a list or an array of one.

    Raises
    ------
    ValueError
        It is not one number.
    """
    if type(value) in _REAL:
        return float(value)
    number = one_number(value)
    if number is None:
        raise ValueError(f"expected the reward to be one number, got {_shown(value)}.")
    return float(number)


def to_flag(value: Any, name: str) -> bool:
    """Convert a flag to a bool. It may be anything that is one number, also in a list or an array of one.

    Raises
    ------
    ValueError
        It is not one number, or is NaN; the message calls it ``name``.
    """
    if isinstance(value, bool | np.bool_):
        return bool(value)
    number = one_number(value)
    if number is None or number != number:  # NaN
        raise ValueError(f"expected `{name}` to be one bool, got {_shown(value)}.")
    return bool(number)


def to_rewards(values: Any, n: int) -> Array:
    """Convert the rewards of a vector environment to an array ``(n,)``.

    Raises
    ------
    ValueError
        There is not one number for each of the ``n`` parts.
    """
    if type(values) is np.ndarray and values.shape == (n,) and values.dtype.kind == "f":
        return values
    return _one_each(values, n, "the reward", "number")


def to_flags(values: Any, n: int, name: str) -> Array:
    """Convert flags of a vector environment to a bool array ``(n,)``.

    Raises
    ------
    ValueError
        There is not one number for each of the ``n`` parts, or one of them is NaN; the message calls them ``name``.
    """
    if type(values) is np.ndarray and values.shape == (n,) and values.dtype == np.bool_:
        return values
    numbers = _one_each(values, n, f"`{name}`", "bool")
    if np.isnan(numbers).any():
        raise ValueError(f"expected `{name}` of the vector environment to be bools, got {_shown(values)}.")
    return np.asarray(numbers != 0)


def _one_each(values: Any, n: int, name: str, kind: str) -> Array:
    if isinstance(values, np.ndarray) and values.dtype == object:
        values = values.tolist()
    if isinstance(values, list | tuple):
        numbers = [one_number(value) for value in values]
        array = np.array(None) if None in numbers else np.array([float(number) for number in numbers])
    else:
        array = _as_array(values)
    if array.shape not in ((n,), (n, 1)) or array.dtype.kind not in "biuf":
        raise ValueError(
            f"expected {name} of the vector environment to be one {kind} for each of its {n} parts, of shape ({n},) or "
            f"({n}, 1), got {_shown(values)}."
        )
    return array.reshape(n)


def one_number(value: Any) -> Any:
    """Return the number that a value is, or contains alone; None if it is none or contains several."""
    if isinstance(value, list | tuple):
        return one_number(value[0]) if len(value) == 1 else None
    if hasattr(value, "shape"):  # an array, a tensor, a scalar of NumPy
        array = _as_array(value)
        number = array.item() if array.size == 1 else None
        if isinstance(number, np.generic):  # of a dtype that Python has no type for, such as `longdouble`
            return float(number) if isinstance(number, np.floating) else None
        return one_number(number)
    return value if isinstance(value, Number) and not isinstance(value, complex) else None


def _as_array(value: Any) -> Array:
    """Convert an array or a tensor to NumPy; one with a dtype that NumPy does not have, or on a device, by its list."""
    try:
        return np.asarray(value)
    except (TypeError, RuntimeError):
        return np.asarray(value.detach().tolist())


def _shown(value: Any) -> str:
    shape = getattr(value, "shape", None)
    size = f", shape {tuple(shape)}" if isinstance(shape, Sequence) and shape else ""
    return f"{value!r:.80} ({type(value).__name__}{size})"
