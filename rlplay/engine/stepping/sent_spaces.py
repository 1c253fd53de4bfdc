"""Spaces that are sent to another process, to be compared and described there.

Some spaces cannot be pickled, or cannot be unpickled in the process that compares them, such as one that refers to its
environment. Then what a comparison needs is enough. Imports neither torch nor threads.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from ...nested import Nested
from ..envs.spaces import equal_spaces, fields

__all__ = ["SentSpace", "send_spaces"]

_LIMITS = "low", "high", "n", "nvec", "start"
"""Attributes of the spaces of gym and gymnasium: which values belong to a space."""


class SentSpace(NamedTuple):
    """Describes a space; can be sent to any process."""

    pickled: bytes | None
    """The space itself; None if it cannot be pickled."""
    fields: Nested
    """As :func:`rlplay.engine.envs.spaces.fields`."""
    limits: Any
    """The values of ``low``, ``high``, ``n``, ``nvec`` and ``start``, where the space has them; nested as it is."""
    text: str

    def __str__(self) -> str:
        """Return the ``repr`` of the space."""
        return self.text

    def equals(self, other: SentSpace) -> bool:
        """Whether two spaces are equal: by their own ``==`` if both can be unpickled here, else by what is known."""
        try:
            one, another = (pickle.loads(space.pickled or b"") for space in (self, other))
        except Exception:
            return self.fields == other.fields and _equal_limits(self.limits, other.limits)
        return equal_spaces(one, another)


def send_spaces(spaces: tuple[Any, Any]) -> tuple[SentSpace, SentSpace]:
    """Describe an observation space and an action space, for another process."""
    obs, act = (_describe(space) for space in spaces)
    return obs, act


def _describe(space: Any) -> SentSpace:
    try:
        data = cloudpickle.dumps(space)
    except Exception:
        data = None
    return SentSpace(data, fields(space), _limits(space), repr(space))


def _limits(space: Any) -> Any:
    inner = getattr(space, "spaces", None)
    if isinstance(inner, Mapping):
        return {key: _limits(part) for key, part in inner.items()}
    if isinstance(inner, list | tuple):
        return [_limits(part) for part in inner]
    found = {}
    for name in _LIMITS:
        try:
            value = np.asarray(getattr(space, name, None))
        except Exception:
            continue
        if value.dtype.kind in "biuf":
            found[name] = value
    return found


def _equal_limits(one: Any, other: Any) -> bool:
    if isinstance(one, dict) and isinstance(other, dict):
        return one.keys() == other.keys() and all(_equal_limits(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_equal_limits, one, other))
    return bool(np.array_equal(one, other))
