"""Records which open feed each environment serves: an environment serves one feed at a time."""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from ..envs.dialects import is_factory
from .feed import Feed

__all__ = ["claim", "register"]

_feed_by_id: weakref.WeakValueDictionary[int, Feed] = weakref.WeakValueDictionary()
"""The feed that each environment serves, by the environment's ``id()``.

The feed keeps its environments alive, so no other object has the same id while the entry exists."""


def claim(sources: Iterable[Any], *, stacklevel: int) -> None:
    """Close the open feeds that any of these environments still serve, with a warning for each.

    ``stacklevel`` is that of :func:`warnings.warn`, called from here: the warning is to show the user's line.
    """
    for j, source in enumerate(sources):
        older = _feed_by_id.pop(id(source), None)
        if older is not None and older.open:
            older.close()
            warnings.warn(
                f"environment {j} still served an open feed, which is closed now: an environment serves one feed.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )


def register(sources: Iterable[Any], feed: Feed) -> None:
    """Record that these environments serve this feed. Factories make environments of their own, and are left out."""
    for source in sources:
        if not is_factory(source):
            _feed_by_id[id(source)] = feed
