"""Parts of the memory that fragments are put together in, as views: those of groups, of turns and of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ... import nested
from ...nested import Nested
from ..acting.group import Group
from ..memory.slot import Blocks, GroupBlocks

__all__ = ["columns_of", "split_blocks", "split_rows"]


def split_blocks(
    blocks: Sequence[Blocks], groups: Sequence[Group], turns: Sequence[Sequence[int]]
) -> list[GroupBlocks]:
    """Split the blocks of each turn among its groups."""
    parts = []
    for one, turn in zip(blocks, turns, strict=True):
        start = groups[turn[0]].columns.start
        for columns in (groups[g].columns for g in turn):
            parts.append(GroupBlocks(one, slice(columns.start - start, columns.stop - start)))
    return parts


def columns_of(tree: Nested, part: slice) -> Any:
    """Return views of some environments, out of tensors ``(n, B, ...)``."""
    return nested.map(lambda x: x[:, part], tree)


def split_rows(tree: Nested, n: int) -> list[Any]:
    """Split a tree of tensors ``(n, ...)`` into ``n`` trees of tensors ``(1, ...)``."""
    found, spec = nested.flatten(tree)
    columns = [leaf.split(1) for leaf in found]
    return [spec.unflatten([column[t] for column in columns]) for t in range(n)]
