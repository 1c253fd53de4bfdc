"""The rows that environments write into, NumPy views of host memory, and how observations are written.

Imports neither torch nor environments, so that a process that only steps environments need not load torch.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from math import prod
from operator import itemgetter
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ... import nested
from ...nested import Nested
from . import spaces
from .spaces import Field

__all__ = [
    "Array",
    "Episode",
    "ObservationWriter",
    "OutcomeRow",
    "StateRow",
]

Array = npt.NDArray[Any]

_MEMORYVIEW_DTYPES = "?bBhHiIlLqQfd"
"""The dtypes that a memoryview can be cast to and that numpy calls by the same letter."""


class Episode(NamedTuple):
    """A whole episode that ended in a delivered fragment."""

    env: int
    """The environment's index."""
    ret: float
    """The undiscounted sum of its rewards, as the environment returned them."""
    length: int
    """Its length in environment steps."""


class StateRow(NamedTuple):
    """A row of the states, as NumPy views: leaves have shape ``(b, ...)``; ``obs`` and ``act`` are flat lists.

    ``rewards`` is a memoryview of ``rew``: to write one number there takes half of NumPy's time. ``flat`` has a
    memoryview without dimensions for each leaf of ``obs``; None if memoryviews lack its dtype.
    """

    stepno: Array
    obs: list[Array]
    act: list[Array]
    rew: Array
    fin: Array
    rewards: Any
    flat: list[memoryview | None]

    @classmethod
    def of(cls, stepno: Array, obs: list[Array], act: list[Array], rew: Array, fin: Array) -> StateRow:
        """Make a row, with its memoryviews."""
        return cls(stepno, obs, act, rew, fin, rew.data, _flat_views(obs))

    def part(self, columns: slice) -> StateRow:
        """Return views of some of the environments only."""
        obs, act = ([leaf[columns] for leaf in leaves] for leaves in (self.obs, self.act))
        return StateRow.of(self.stepno[columns], obs, act, self.rew[columns], self.fin[columns])

    def begin(self) -> None:
        """Write all of row 0 of the first fragment but the observations: ``fin`` is True, all else is zero."""
        self.fin[:] = True
        for leaf in (self.stepno, self.rew, *self.act):
            leaf[...] = 0


class OutcomeRow(NamedTuple):
    """The outcome of a transition, as NumPy views of shape ``(b, ...)``; ``info`` is a flat list."""

    terminated: Array
    truncated: Array
    valid: Array
    info: list[Array]

    def part(self, columns: slice) -> OutcomeRow:
        """Return views of some of the environments only."""
        info = [leaf[columns] for leaf in self.info]
        return OutcomeRow(self.terminated[columns], self.truncated[columns], self.valid[columns], info)


def _flat_views(leaves: list[Array]) -> list[memoryview | None]:
    def flat(leaf: Array) -> memoryview | None:
        char: Any = leaf.dtype.char
        return leaf.data.cast("B").cast(char) if _has_memoryview(leaf) else None

    return [flat(leaf) for leaf in leaves]


def _has_memoryview(leaf: Array) -> bool:
    return leaf.dtype.char in _MEMORYVIEW_DTYPES and leaf.size > 0


class ObservationWriter:
    """Writes observations into rows.

    Which part of an observation goes where, and in which form it came first, is found once. A step walks no tree then,
    as long as observations keep that form; any other form that the space allows is cast to the space.

    Attributes
    ----------
    slices : list of slice
        If an observation is a single vector that a memoryview copies, which needs half of NumPy's time: each
        environment's slice of ``row.flat[0]``. Else empty.
    write : callable
        ``write(row, j, obs)`` writes an observation into column ``j`` of a row; ``...`` stands for all columns. It
        raises ValueError if the observation does not fit the space; the message names the leaf.
    """

    def __init__(self, description: Nested, first: Nested, n_envs: int | None) -> None:
        """Find the form of the observations.

        Parameters
        ----------
        description : nested Field
            Of the observation space, by :func:`rlplay.engine.envs.spaces.fields`.
        first : nested
            An observation.
        n_envs : int or None
            The number of environments in a row. None: an observation is a whole row, of a vector environment.
        """
        self._description = description
        self._n_parts = 1
        self._containers: list[tuple[int, Any, int, Callable[[Any], Sequence[Any]]]] = []
        self._scalars: list[tuple[int, int, frozenset[type]]] = []
        self._vectors: list[tuple[int, int, list[slice]]] = []
        self._arrays: list[tuple[int, int, tuple[int, ...], frozenset[np.dtype[Any]], list[slice]]] = []
        self._casts: list[tuple[int, int, Field]] = []
        fields, parts = spaces.along_with_parts(description, first)
        positions = nested.leaves(self._open(fields, first, 0))
        for k, (at, field, part) in enumerate(zip(positions, nested.leaves(fields), parts, strict=True)):
            self._add(at, k, field, part, n_envs)
        plain = isinstance(fields, Field) and bool(self._vectors)
        self.slices = self._vectors[0][2] if plain else []
        self.write: Callable[[StateRow, Any, Nested], None] = self._write
        if isinstance(fields, Field) and self._arrays:
            _, _, self._shape, self._dtypes, self._large = self._arrays[0]
            self.write = self._write_array

    def _open(self, fields: Nested, value: Nested, at: int) -> Nested:
        """List the containers from outside to inside; return for each leaf its position among all parts."""
        if isinstance(fields, Field):
            return at
        keys = list(fields) if isinstance(fields, dict) else list(range(len(fields)))
        first, self._n_parts = self._n_parts, self._n_parts + len(keys)
        self._containers.append((at, type(value), len(keys), _items(fields, type(value))))
        inside = [self._open(fields[key], value[key], first + i) for i, key in enumerate(keys)]
        return dict(zip(keys, inside, strict=True)) if isinstance(fields, dict) else tuple(inside)

    def _add(self, at: int, k: int, field: Field, part: Any, n_envs: int | None) -> None:
        """Choose how leaf ``k``, which is at a position among all parts, is written."""
        one_env = n_envs is not None and field.dtype.char in _MEMORYVIEW_DTYPES and 0 not in field.shape
        if field.start:
            self._casts.append((at, k, field))
        elif one_env and field.shape == () and not isinstance(part, np.ndarray):
            self._scalars.append((at, k, _scalar_types(field)))
        elif one_env and len(field.shape) == 1 and _is_exactly(part, field) and field.dtype != np.uint8:
            # a memoryview of uint8 would take `bytes`, too, which are no observation
            (n,) = field.shape
            self._vectors.append((at, k, [slice(j * n, (j + 1) * n) for j in range(n_envs or 0)]))
        else:
            accepted = frozenset(dtype for dtype in _DTYPES if field.accepts(dtype))
            n = prod(field.shape)
            large = [slice(j * n, (j + 1) * n) for j in range(n_envs or 0)] if one_env and n > _LARGE else []
            self._arrays.append((at, k, field.shape, accepted, large))

    def _write(self, row: StateRow, j: Any, obs: Nested) -> None:
        try:
            if self._write_in_known_form(row, j, obs):
                return
        except (KeyError, TypeError, ValueError, OverflowError):
            pass  # of another form, or wrong
        self._cast_and_write(row, j, obs)

    def _write_array(self, row: StateRow, j: Any, obs: Nested) -> None:
        """Write an observation that is a single array."""
        if type(obs) is np.ndarray and obs.shape == self._shape and obs.dtype in self._dtypes:
            if not (self._large and _copy_large(row.flat[0], self._large[j], obs)):
                row.obs[0][j] = obs
        else:
            self._cast_and_write(row, j, obs)

    def _cast_and_write(self, row: StateRow, j: Any, obs: Nested) -> None:
        for leaf, part in zip(row.obs, spaces.cast(self._description, obs), strict=True):
            leaf[j] = part

    def _write_in_known_form(self, row: StateRow, j: Any, obs: Nested) -> bool:
        """Write an observation; return False, or raise an error, if it has not the form of the first one."""
        parts: list[Any] = [obs]
        flat: list[Any] = row.flat
        for at, kind, n, items in self._containers:
            container = parts[at]
            if type(container) is not kind or len(container) != n:
                return False
            parts += items(container)
        for at, k, types in self._scalars:
            part = parts[at]
            if type(part) not in types:
                return False
            flat[k][j] = part
        for at, k, slices in self._vectors:
            flat[k][slices[j]] = parts[at]
        for at, k, shape, dtypes, large in self._arrays:
            part = parts[at]
            if type(part) is not np.ndarray or part.shape != shape or part.dtype not in dtypes:
                return False
            if not (large and _copy_large(flat[k], large[j], part)):
                row.obs[k][j] = part
        for at, k, field in self._casts:
            part = parts[at]
            if isinstance(part, tuple | list | dict):
                return False
            row.obs[k][j] = field.cast(part)
        return True


_DTYPES = tuple(map(np.dtype, "?bBhHiIlLqQefd"))

_LARGE = 500
"""NumPy releases the interpreter lock while it copies more numbers than these. The learner's thread may take the lock
then, and the collector would wait for it at each environment, for longer than the copy takes."""


def _copy_large(flat: Any, part: slice, array: Array) -> bool:
    """Copy an array without releasing the interpreter lock; return False if it is not contiguous or is to be cast."""
    if array.dtype.char != flat.format or not array.flags.c_contiguous:
        return False
    flat[part] = array.data.cast("B").cast(flat.format)
    return True


def _items(fields: Nested, kind: type) -> Callable[[Any], Sequence[Any]]:
    """Return a function that returns the values of a container of this kind, in the order of ``fields``."""
    if not isinstance(fields, dict):
        return tuple
    if kind not in (dict, OrderedDict):  # it may have a value for every key, as `defaultdict` has
        return lambda container: [dict(container)[key] for key in fields]
    if len(fields) == 1:
        (key,) = fields
        return lambda container: (container[key],)
    return itemgetter(*fields) if fields else lambda container: ()


def _is_exactly(part: Any, field: Field) -> bool:
    return type(part) is np.ndarray and part.dtype == field.dtype


def _scalar_types(field: Field) -> frozenset[type]:
    """Return the types of the single numbers that can be cast to a field, and that a memoryview takes."""
    # a memoryview would round an integer twice on its way to float32
    types = {x.type for x in _DTYPES if field.accepts(x) and (x.kind == "f" or field.dtype.kind != "f")}
    own = {bool: bool(np.bool_ in types), float: bool(np.float64 in types), int: field.dtype.kind in "iu"}
    return frozenset(types | {kind for kind, fits in own.items() if fits})
