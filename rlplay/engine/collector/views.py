"""Views of the memory that fragments are put together in: those of groups, of turns and of rows."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.group import Group
from ..core import State
from ..memory.slot import Blocks, GroupBlocks

__all__ = ["GroupViews", "columns_of", "split_blocks", "split_rows"]


class GroupViews:
    """What the steps of one group read and write, on the actor's device: views that are made once.

    Attributes
    ----------
    part : GroupBlocks
        The group's part of the rows of its turn.
    inputs : list of State, ``(1, b, ...)``
        For each row: the state that the actor reacts to.
    last_input : State, ``(1, b, ...)``, or None
        The row of true last observations; None if there is none.
    answers : list of lists of tensors, ``(1, b, ...)``
        For each row: where the answer is written. The leaves of the action come first (the last row has none), then
        those of the info.
    hx : list of tensors, ``(L, b, ...)``
        The leaves of the recurrent state at row 0.
    """

    def __init__(
        self,
        part: GroupBlocks,
        columns: slice,
        acts: list[Tensor] | None,
        infos: list[list[Tensor]],
        hx: Nested,
        last: Blocks | None,
    ) -> None:
        """Make the views.

        Parameters
        ----------
        columns : slice
            The group's environments, out of all.
        acts : list of tensors, or None
            The leaves of the actions of the turn, ``(1, n, ...)``, which each answer overwrites. None: actions are
            written into the next row.
        infos : list of lists of tensors, ``(1, B, ...)``
            For each row the leaves of the actor's info.
        hx : nested tensors, ``(L, B, ...)``
            The recurrent state at row 0.
        last : Blocks, optional
            One row of the turn, for true last observations.
        """
        self.part = part
        self.inputs: list[State] = split_rows(part.state, len(infos))
        self.last_input: Any = None if last is None else GroupBlocks(last, part.inside).state
        if acts is None:
            written = [nested.leaves(row.act) for row in self.inputs[1:]]
        else:
            written = [[leaf[:, part.inside] for leaf in acts] for _ in self.inputs[1:]]
        self.answers: list[list[Tensor]] = [
            act + [leaf[:, columns] for leaf in info] for act, info in zip([*written, []], infos, strict=True)
        ]
        self.hx: list[Tensor] = nested.leaves(columns_of(hx, columns))


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
