"""Actions on their way from a row to the environments: checked against the action space, and converted.

In rows, actions of Discrete and MultiDiscrete are int64 and counted from 0. Environments get them in the values and the
dtype of their space, and always in memory of their own.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Sequence
from math import prod
from typing import Any

import numpy as np

from ... import nested
from ...nested import Nested
from ..concurrency.progress import Progress
from .rows import Array
from .spaces import Field

__all__ = ["ActionForm"]

_FEW = 128
"""Up to so many numbers are checked faster in a set than by NumPy."""

_MANY_VALUES = 2**12
"""Spaces of more values than this are checked by NumPy, so that no large set or table is made."""


class ActionForm:
    """The form of the actions of ``n_envs`` environments."""

    def __init__(self, fields: Nested, n_envs: int, first: int = 0) -> None:
        """Prepare checks and conversions.

        Parameters
        ----------
        fields : nested Field
            Of the action space.
        n_envs : int
            The number of environments, ``B``.
        first : int
            The number of the first environment in the feed.
        """
        self._fields: list[Field]
        self._fields, self._structure = nested.flatten(fields)
        self._names = nested.names(fields, "act")
        self._n_envs, self._first = n_envs, first
        self._is_array = isinstance(fields, Field)
        self._as_they_are = all(not field.start and field.own_dtype is None for field in self._fields)
        tests = [(k, _test_of(field, n_envs)) for k, field in enumerate(self._fields)]
        self._tests = [(k, test) for k, test in tests if test is not None]
        self._scalars = _scalars_of(fields) if isinstance(fields, Field) else {}

    def each(self, leaves: list[Array], ignored: Collection[int], progress: Progress) -> Iterable[Any]:
        """Return the action of each environment: a NumPy scalar, an array, or a nest of these.

        Parameters
        ----------
        leaves : list of arrays ``(B, ...)``
            The leaves of the actions of one row.
        ignored : collection of int
            The columns whose action will not be carried out.
        progress : Progress
            Is told of the environment, if there is an error.

        Raises
        ------
        ValueError
            An action of Discrete, MultiDiscrete or MultiBinary is not among its values, or a number of a Box is NaN.
        """
        if self._scalars:
            try:
                return list(map(self._scalars.__getitem__, leaves[0].tolist()))
            except KeyError:  # below it is found out whether it is the action of an ignored column
                pass
        self._check(leaves, ignored, progress)
        if self._is_array:
            (leaf,) = leaves if self._as_they_are else self._given(leaves)
            return _of_each(self._fields[0], leaf)
        columns = [_of_each(field, leaf) for field, leaf in zip(self._fields, self._given(leaves), strict=True)]
        return [self._structure.unflatten([column[j] for column in columns]) for j in range(self._n_envs)]

    def together(self, leaves: list[Array], ignored: Collection[int], progress: Progress) -> Nested:
        """Return the actions of all environments, as a nest of arrays ``(B, ...)``. Parameters and errors as above."""
        self._check(leaves, ignored, progress)
        return self._structure.unflatten([leaf.copy() for leaf in self._given(leaves)])

    def _check(self, leaves: list[Array], ignored: Collection[int], progress: Progress) -> None:
        for k, is_wrong in self._tests:
            if is_wrong(leaves[k]):
                self._raise(k, leaves[k], ignored, progress)

    def _raise(self, k: int, leaf: Array, ignored: Collection[int], progress: Progress) -> None:
        field, name = self._fields[k], self._names[k]
        wrong = np.isnan(leaf) if field.n is None else (leaf < 0) | (leaf >= np.array(field.n))
        for j in np.flatnonzero(wrong.reshape(self._n_envs, -1).any(axis=1)).tolist():
            if j in ignored:
                continue
            progress.env = self._first + j
            expected = "no NaN"
            if field.n is not None:
                top = np.array(field.n) - 1
                expected = f"integers from 0 to {top if top.ndim else int(top)}"
                expected += ", counted from 0 whatever the `start` of the space" if field.start else ""
                expected += " (rlplay.sampling draws -1 where logits are NaN)" if (leaf[j] == -1).any() else ""
                largest = np.iinfo(leaf.dtype).max
                expected += f" ({largest} stands for larger numbers, too)" if (leaf[j] == largest).any() else ""
            raise ValueError(
                f"the actor's `{name}` for environment {self._first + j} is outside of its action space: got "
                f"{leaf[j].tolist()}, expected {expected}."
            )

    def _given(self, leaves: Sequence[Array]) -> list[Array]:
        return [field.given(leaf) for field, leaf in zip(self._fields, leaves, strict=True)]


def _of_each(field: Field, leaf: Array) -> Sequence[Any] | Array:
    """Return the actions of each environment, copied: a NumPy scalar of a Discrete space, an array of a Box."""
    if leaf.ndim > 1:
        return leaf.copy()
    return list(leaf) if field.integral else [np.array(number) for number in leaf]


def _scalars_of(field: Field) -> dict[int, Any]:
    """Return the actions of a Discrete space by their value in a row; nothing for other spaces, and for many values.

    To look few actions up here, which checks and converts them, takes less time than NumPy needs to check them.
    """
    if not isinstance(field.n, int) or field.shape or field.n > _MANY_VALUES:
        return {}
    return dict(enumerate(field.given(np.arange(field.n, dtype=field.dtype))))


def _test_of(field: Field, n_envs: int) -> Callable[[Array], bool] | None:
    """Return a fast function that tells whether any number of a leaf is wrong; None if all numbers are right."""
    if field.n is None:
        return _has_nan if field.dtype.kind == "f" else None
    if field.dtype.kind not in "iu":
        return None
    n = int(np.min(field.n))
    if n == np.max(field.n) and n <= _MANY_VALUES and n_envs * prod(field.shape) <= _FEW:
        includes = frozenset(range(n)).issuperset
        return lambda leaf: not includes(leaf.ravel().tolist())
    unsigned = np.dtype(f"u{field.dtype.itemsize}")  # in which negative numbers are large ones
    bounds = np.array(field.n, unsigned)
    return lambda leaf: bool((leaf.view(unsigned) >= bounds).any())


def _has_nan(leaf: Array) -> bool:
    """Return whether there is a NaN, by the sum of the squares, which is NaN exactly in that case."""
    square = np.vdot(leaf, leaf)
    return bool(square != square)
