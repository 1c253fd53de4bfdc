"""The memory on the actor's device that fragments of environments in torch are put together in.

There is one of it, and it never moves: work of later fragments is queued behind the copies out of it. All views that a
step needs are made once.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.group import Group
from ..collector.staging import copy_fragment
from ..collector.views import GroupViews, split_blocks, split_rows
from ..core import Fragment
from ..memory.lane import Lane, Place
from ..memory.layout import blank_hx, blank_rows
from ..memory.slot import Blocks, GroupBlocks, RowLayout
from .environment import TensorEnvironment, TensorRow

__all__ = ["FragmentMemory", "GroupMemory", "TurnMemory", "make_blocks", "tensor_rows"]


def make_blocks(layout: RowLayout, n: int, lane: Lane) -> Blocks:
    """Allocate ``n`` rows on the actor's device, all zero but ``valid``."""
    blocks = Blocks(lane.empty(Place.ACTOR, (n, layout.block.size), torch.uint8), layout)

    def clear() -> None:
        blocks.memory.zero_()
        blocks.env.valid.fill_(True)

    lane.launch(clear)
    return blocks


def tensor_rows(blocks: Blocks) -> list[TensorRow]:
    """Return views of each row."""
    state, env = blocks.state, blocks.env
    obs, act, info = (list(nested.leaves(tree)) for tree in (state.obs, state.act, env.info))
    return [
        TensorRow(
            state.stepno[t], [x[t] for x in obs], [x[t] for x in act], state.rew[t], state.fin[t],
            env.terminated[t], env.truncated[t], env.valid[t], [x[t] for x in info],
        )
        for t in range(len(blocks.memory))
    ]  # fmt: skip


class TurnMemory:
    """The memory of one vector environment.

    Attributes
    ----------
    blocks : Blocks, ``1 + T`` rows
        The rows that the actor reacts to.
    rows : list of TensorRow
        The same, as the environment writes them.
    lasts : list of tensors, ``(T, n, ...)``
        The leaves of the last observations, by the transition that may have ended an episode. Empty if they are not
        needed, or are in the rows.
    acts : list of tensors ``(n, ...)``, or None
        Where the actor writes its actions, if that is not the next row.
    columns : slice
        The environments of the turn.
    """

    def __init__(self, blocks: Blocks, environment: TensorEnvironment, columns: slice, lane: Lane) -> None:
        """Make the views; ``environment`` is the turn's."""
        n_steps = len(blocks.memory) - 1
        self.blocks, self.rows, self.columns = blocks, tensor_rows(blocks), columns
        self.lasts: list[Tensor] = []
        if environment.needs_lasts:
            self.lasts = [
                lane.empty(Place.ACTOR, (n_steps, *leaf.shape[1:]), leaf.dtype)
                for leaf in nested.leaves(blocks.state.obs)
            ]
        self.last_rows = [[leaf[t] for leaf in self.lasts] for t in range(n_steps)]
        self.acts: list[Tensor] | None = None
        self.act_leaves: list[Tensor] = []  # the same, (1, n, ...)
        if not lane.shared(Place.ACTOR, Place.HOST):
            self.act_leaves = blocks.action_leaves(lane.empty(Place.ACTOR, (len(blocks.actions(0)),), torch.uint8))
            self.acts = [leaf[0] for leaf in self.act_leaves]


class GroupMemory(GroupViews):
    """The memory of one group: its part of a turn's, and what the actor answers.

    Attributes
    ----------
    hxs : list of tensors, ``(T, L, b, ...)``
        The leaves of the recurrent state before each row from row 1 on, not yet reset. Empty without ``final``.
    """

    def __init__(
        self, turn: TurnMemory, part: GroupBlocks, group: Group, infos: list[list[Tensor]], hx: Nested, lane: Lane,
        *, final: bool,
    ) -> None:  # fmt: skip
        """Make the views; with ``final`` allocate a row in which last observations are gathered, and ``hxs``."""
        acts = None if turn.acts is None else turn.act_leaves
        super().__init__(
            part, group.columns, acts, infos, hx, make_blocks(turn.blocks.layout, 1, lane) if final else None
        )
        kept = self.hx if final else []
        self.hxs = [lane.empty(Place.ACTOR, (len(turn.rows) - 1, *leaf.shape), leaf.dtype) for leaf in kept]


class FragmentMemory:
    """All memory of a fragment on the actor's device.

    Attributes
    ----------
    n_steps : int
        ``T``.
    turns : list of TurnMemory
    groups : list of GroupMemory
    actor : nested tensors, ``(1+T, B, ...)``
        The actor's infos.
    hx : nested tensors, ``(L, B, ...)``
        The recurrent state at row 0.
    """

    def __init__(
        self,
        layouts: Sequence[RowLayout],
        layout: Fragment,
        n_steps: int,
        environments: Sequence[TensorEnvironment],
        groups: Sequence[Group],
        turns: Sequence[Sequence[int]],
        lane: Lane,
        *,
        final: bool,
    ) -> None:
        """Allocate it, on the current stream. ``layouts`` are those of the turns."""
        n_envs, allocate = groups[-1].columns.stop, partial(lane.empty, Place.ACTOR)
        self.n_steps = n_steps
        self.actor: Nested = blank_rows(layout.actor, 1 + n_steps, n_envs, allocate)
        self.hx: Nested = blank_hx(layout.hx, n_envs, allocate)
        blocks = [make_blocks(one, 1 + n_steps, lane) for one in layouts]
        columns = [slice(groups[turn[0]].columns.start, groups[turn[-1]].columns.stop) for turn in turns]
        self.turns = [TurnMemory(*each, lane) for each in zip(blocks, environments, columns, strict=True)]
        infos = [nested.leaves(row) for row in split_rows(self.actor, 1 + n_steps)]
        parts = split_blocks(blocks, groups, turns)
        self.groups = [
            GroupMemory(self.turns[k], parts[g], groups[g], infos, self.hx, lane, final=final)
            for k, members in enumerate(turns)
            for g in members
        ]

    def begin(self, firsts: Sequence[Blocks], lane: Lane) -> None:
        """Copy the very first rows into row 0."""
        for turn, first in zip(self.turns, firsts, strict=True):
            lane.copy(turn.blocks.memory[0], first.memory[0])

    def carry_over(self, lane: Lane) -> None:
        """Let the last row of the previous fragment be row 0 of the next."""
        memory = [turn.blocks.memory for turn in self.turns]
        lane.copy([rows[0] for rows in memory], [rows[-1] for rows in memory])

    def deliver(self, blank: Fragment, lane: Lane) -> None:
        """Copy the fragment into the consumer's memory, on the current stream."""
        blocks, columns = [turn.blocks for turn in self.turns], [turn.columns for turn in self.turns]
        copy_fragment(blank, blocks, columns, self.actor, self.hx, lane)
