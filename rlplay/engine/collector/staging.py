"""The staging buffers: where one fragment is put together before it is copied into the consumer's memory.

A staging consists of a host slot, which the environments write into, and of memory on the actor's device. All views
that a step needs are made once. This module must not import environments or actors.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.group import Group
from ..core import Fragment, State
from ..memory.lane import Lane, Place
from ..memory.layout import blank_hx, blank_rows
from ..memory.slot import Slot

__all__ = ["Staging", "carry_over", "deliver", "make_stagings", "upload"]


class Staging:
    """A host slot, and the memory on the actor's device: where one fragment is put together.

    If the actor runs on the host, ``state`` and ``last`` are the slot's own memory. Otherwise each host row is uploaded
    once, and all stagings share the memory on the device, so that its addresses never change.

    Attributes
    ----------
    number : int
        The index of the slot.
    slot : Slot
        Host memory for what the environments give.
    state : State of tensors, ``(1+T, B, ...)``, on the actor's device
        The rows that the actor reacts to.
    last : State of tensors, ``(1, B, ...)``, on the actor's device
        The row of true last observations.
    actor : nested tensors, ``(1+T, B, ...)``, on the actor's device
        The actor's infos.
    hx : nested tensors, ``(L, B, ...)``, on the actor's device
        The recurrent state at row 0.
    columns : list of slice
        The environments of each turn.
    copied : event
        All copies out of the slot are done. None before the first copy.
    uploads : list of lists of pairs
        For each turn and row: the leaves on the actor's device, and those on the host that are uploaded to them.
    last_uploads : list of pairs
        The same for ``last``, for each turn.
    inputs : list of lists of State, ``(1, b, ...)``
        For each group and row: the state that the actor reacts to.
    lasts : list of State, ``(1, b, ...)``
        For each group: the row of true last observations.
    answers : list of lists of lists of tensors, ``(1, b, ...)``
        For each group and row: where the answer is written. The leaves of the action come first, on the host in the
        next row (the last row has none), then those of the info.
    hxs : list of lists of tensors, ``(L, b, ...)``
        For each group: the leaves of ``hx``.
    """

    def __init__(
        self,
        number: int,
        slot: Slot,
        state: State,
        last: State,
        actor: Nested,
        hx: Nested,
        groups: Sequence[Group],
        turns: Sequence[Sequence[int]],
    ) -> None:
        """Make the views. ``turns`` lists the numbers of the groups of each turn."""
        self.number = number
        self.columns = [slice(groups[turn[0]].columns.start, groups[turn[-1]].columns.stop) for turn in turns]
        self.slot, self.state, self.last, self.actor, self.hx = slot, state, last, actor, hx
        self.copied: Any = None
        n = len(slot.rows)
        self.uploads = [_pairs(state, slot.state, part, n) for part in self.columns]
        self.last_uploads = [_pairs(last, slot.last, part, 1)[0] for part in self.columns]
        columns = [group.columns for group in groups]
        self.inputs = [_split_rows(_columns(state, part), n) for part in columns]
        self.lasts = [_columns(last, part) for part in columns]
        self.answers = [_answers(_columns(slot.state.act, part), _columns(actor, part), n) for part in columns]
        self.hxs = [nested.leaves(_columns(hx, part)) for part in columns]

    @property
    def n_steps(self) -> int:
        """The number of steps in a fragment, ``T``."""
        return len(self.slot.outcomes)

    def mark_copied(self, event: Any) -> None:
        """Set the event before which the slot must not be filled again."""
        self.copied = event


def _pairs(target: Nested, source: Nested, part: slice, n: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    """List for each row the leaves of ``target`` and those of ``source``."""
    rows = (_split_rows(_columns(tree, part), n) for tree in (target, source))
    return [(nested.leaves(x), nested.leaves(y)) for x, y in zip(*rows, strict=True)]


def _answers(act: Nested, info: Nested, n: int) -> list[list[Tensor]]:
    """List for each row where the answer to it is written: the action in the next row, the info in the same row."""
    acts, infos = ([nested.leaves(row) for row in _split_rows(tree, n)] for tree in (act, info))
    return [next_act + row_info for next_act, row_info in zip([*acts[1:], []], infos, strict=True)]


def _columns(tree: Nested, part: slice) -> Nested:
    return nested.map(lambda x: x[:, part], tree)


def _split_rows(tree: Nested, n: int) -> list[Any]:
    """Split a tree of tensors ``(n, ...)`` into ``n`` trees of tensors ``(1, ...)``."""
    found, spec = nested.flatten(tree)
    columns = [leaf.split(1) for leaf in found]
    return [spec.unflatten([column[t] for column in columns]) for t in range(n)]


def make_stagings(
    slots: Sequence[Slot],
    layout: Fragment,
    groups: Sequence[Group],
    turns: Sequence[Sequence[int]],
    n_envs: int,
    lane: Lane,
) -> list[Staging]:
    """Allocate the memory on the actor's device, on the current stream, and make a staging for each slot."""
    n_steps = len(slots[0].outcomes)

    def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return lane.empty(Place.ACTOR, shape, dtype)

    def infos_and_hx() -> tuple[Nested, Nested]:
        return blank_rows(layout.actor, 1 + n_steps, n_envs, allocate), blank_hx(layout.hx, n_envs, allocate)

    if lane.shared(Place.ACTOR, Place.HOST):
        # the infos are on the host too and are copied out of it like the slot, so each slot has infos of its own
        return [Staging(k, slot, slot.state, slot.last, *infos_and_hx(), groups, turns) for k, slot in enumerate(slots)]
    state, last = (blank_rows(layout.state, n, n_envs, allocate) for n in (1 + n_steps, 1))
    actor, hx = infos_and_hx()
    return [Staging(k, slot, state, last, actor, hx, groups, turns) for k, slot in enumerate(slots)]


def upload(staging: Staging, lane: Lane, turn: int, t: int) -> None:
    """Copy a turn's part of host row ``t`` to the actor's device. The host row must be filled in before."""
    if not lane.shared(Place.ACTOR, Place.HOST):
        lane.copy(*staging.uploads[turn][t])


def carry_over(previous: Staging | None, staging: Staging, lane: Lane) -> None:
    """Copy the last row of the previous fragment to row 0 of this one, on the host and on the actor's device.

    For the first fragment ``previous`` is None: host row 0 is filled in already and is uploaded.
    """
    for turn, (rows, others) in enumerate(
        zip(staging.uploads, staging.uploads if previous is None else previous.uploads, strict=True)
    ):
        if previous is None:
            upload(staging, lane, turn, 0)
            continue
        for target, source in zip(rows[0][1], others[-1][1], strict=True):
            target.copy_(source)
        if not lane.shared(Place.ACTOR, Place.HOST):
            lane.copy(rows[0][0], others[-1][0])


def deliver(staging: Staging, blank: Fragment, lane: Lane) -> None:
    """Copy the fragment into the consumer's memory, on the current stream.

    States come from the actor's device if that is the consumer's too, otherwise from the host.
    """
    state = staging.state if lane.shared(Place.ACTOR, Place.CONSUMER) else staging.slot.state
    lane.copy(blank.state, state)
    lane.copy(blank.env, staging.slot.env)
    lane.copy(blank.actor, staging.actor)
    lane.copy(blank.hx, staging.hx)
