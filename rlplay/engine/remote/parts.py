"""Puts side by side the parts of a fragment that several processes have collected."""

from __future__ import annotations

from collections import defaultdict, deque
from collections.abc import Sequence
from functools import partial
from operator import itemgetter

import torch

from ... import nested
from ...dtypes import move
from ...nested import Nested
from ..core import Episode, Final, Fragment, Outcome

__all__ = ["gather_finals", "order_episodes", "split_columns"]


def split_columns(blank: Fragment, n_parts: int, width: int) -> list[Nested]:
    """Split a blank fragment by environments, into views for parts of ``width`` environments each."""
    if n_parts == 1:
        return [blank]
    leaves, spec = nested.flatten(blank)
    parts = zip(*(x.split(width, dim=1) for x in leaves), strict=True)
    return [spec.unflatten(part) for part in parts]


def gather_finals(parts: Sequence[Final], width: int) -> Final:
    """Gather the finals of all parts, of ``width`` environments each, ordered by time and environment; on the host."""
    shifted = [part._replace(b=part.b + k * width) for k, part in enumerate(parts)]
    finals = nested.map(partial(move, lambda *xs: torch.cat(xs)), *shifted)
    order = torch.argsort(finals.t * len(parts) * width + finals.b)
    return Final(*nested.map(partial(move, itemgetter(order)), finals))


def order_episodes(
    episodes: Sequence[Sequence[tuple[int, float, int]]], outcomes: Sequence[Outcome], firsts: Sequence[int]
) -> list[Episode]:
    """Return the episodes of all parts, ordered by time and environment.

    Parameters
    ----------
    episodes : sequence of sequences
        For each part, the fields of its episodes, in order.
    outcomes : sequence of Outcome of tensors ``(T, b, ...)``
    firsts : sequence of int
        The number of the first environment of each part.
    """
    if len(episodes) == 1:
        return [Episode(*fields) for fields in episodes[0]]
    by_environment: dict[int, deque[Episode]] = defaultdict(deque)
    for fields in (fields for part in episodes for fields in part):
        by_environment[fields[0]].append(Episode(*fields))
    ends = []
    for env, first in zip(outcomes, firsts, strict=True):
        over = (env.terminated | env.truncated) & env.valid
        ends += [(t, first + b) for t, b in over.nonzero().tolist()]
    return [by_environment[b].popleft() for _, b in sorted(ends)]
