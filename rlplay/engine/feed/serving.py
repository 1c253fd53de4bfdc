"""Records which open feed each environment serves: an environment serves one feed at a time.

An environment counts as the same one inside of a wrapper or of a vector environment.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable
from typing import Any

from ..envs.dialects import is_factory, is_vector
from ..envs.identity import environments_in
from .feed import Feed

__all__ = ["check_not_served", "close_older_feeds", "register"]

_feed_by_id: weakref.WeakValueDictionary[int, Feed] = weakref.WeakValueDictionary()
"""The feed that each environment serves, by the environment's ``id()``.

The feed keeps its environments alive, so no other object has the same id while the entry exists. (A wrapper that drops
the environment inside of it while the feed is open is not provided for.)"""


def close_older_feeds(sources: Iterable[Any], *, stacklevel: int) -> None:
    """Close the open feeds that any of these environments still serve, with a warning for each.

    ``stacklevel`` is that of :func:`warnings.warn`, called from here: the warning is to show the user's line.
    """
    for j, source in enumerate(sources):
        while (older := _open_feed_of(source)) is not None:  # a vector environment may have several inside
            older.close()
            warnings.warn(
                f"{_name(source)} {j} still served an open feed, which is closed now: an environment serves one feed.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )


def check_not_served(sources: Iterable[Any]) -> None:
    """Check that none of these environments serves an open feed, which would be disturbed if it were stepped.

    Raises
    ------
    RuntimeError
        If one does. The feed stays open.
    """
    for j, source in enumerate(sources):
        if _open_feed_of(source) is not None:
            raise RuntimeError(
                f"{_name(source)} {j} serves an open feed, whose episodes an evaluation would break off: evaluate in "
                "environments of its own (such as the same `gym.make(...)` again), or close the feed first "
                "(`feed.close()`). The feed is unchanged."
            )


def _name(source: Any) -> str:
    return "vector environment" if is_vector(source) else "environment"


def register(sources: Iterable[Any], feed: Feed) -> None:
    """Record that these environments serve this feed. Factories make environments of their own, and are left out."""
    for source in sources:
        if not is_factory(source):
            for part in environments_in(source):
                _feed_by_id[id(part)] = feed


def _open_feed_of(source: Any) -> Feed | None:
    """Return an open feed that an environment, or one inside of it, serves."""
    if is_factory(source):
        return None
    feeds = [_feed_by_id.get(id(part)) for part in environments_in(source)]
    return next((feed for feed in feeds if feed is not None and feed.open), None)
