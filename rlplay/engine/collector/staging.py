"""The staging buffers: where one fragment is put together before it is copied into the consumer's memory.

A staging consists of a host slot, which the environments write into, and of memory on the actor's device. All views
that a step needs are made once. This module must not import environments or actors.

Three places, three ways
========================

The actor's device is the host
    The slot has ``1 + T`` rows. The actor reads them there, and the fragment is copied out of them.
Actor and consumer are on one device
    Each host row is uploaded in one copy as soon as it is filled, into ``1 + T`` rows on the device, which the fragment
    is copied out of. The slot has :data:`RING` rows, which are filled in turn: they stay in the host's cache, and
    page-locked memory does not depend on ``T``.
Only the actor is on a device
    Host rows are uploaded in the same way, but the slot has ``1 + T`` rows, which the fragment is copied out of.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.group import Group
from ..core import Fragment
from ..envs.rows import Array
from ..memory.lane import Lane, Place
from ..memory.layout import blank_hx, blank_rows
from ..memory.slot import Blocks, HostRows, RowCopies, RowLayout, Slot, in_words
from ..stepping.stepper import Step
from .views import GroupViews, columns_of, split_blocks, split_rows

__all__ = [
    "Staging",
    "carry_over",
    "copy_fragment",
    "deliver",
    "download",
    "make_slots",
    "make_stagings",
    "upload",
]

RING = 2
"""The host rows of a turn, if fragments are put together on a device: one that the actor has reacted to, and one that
the environments write. More are of no use, since the host waits for the actions of each row before it goes on."""


class Staging:
    """A host slot, and the memory on the actor's device: where one fragment is put together.

    Attributes
    ----------
    number : int
        The index of the slot.
    n_steps : int
        The number of steps in a fragment, ``T``.
    slot : Slot
        Host memory for what the environments give.
    blocks : list of Blocks, ``1 + T`` rows
        For each turn: the rows that the actor reacts to, on its device.
    lasts : list of Blocks, 1 row
        For each turn: the row of true last observations, on the actor's device.
    acts : list of uint8 tensors
        For each turn: the leaves of the action that the actor has answered with, on its device. Unused if that is the
        host, where actions are written into the next row.
    actor : nested tensors, ``(1+T, B, ...)``, on the actor's device
        The actor's infos.
    hx : nested tensors, ``(L, B, ...)``, on the actor's device
        The recurrent state at row 0.
    columns : list of slice
        The environments of each turn.
    holds_fragment : bool
        Whether row ``t`` of a fragment is row ``t`` of the slot, until the end of the fragment. False in a ring.
    copied : event
        All copies out of the slot are done. None before the first copy.
    groups : list of GroupViews
        For each group: what its steps read and write. The part of its turn also names the host rows, if the slot is a
        ring and the turn has one group.
    host_blocks, host_acts, device_blocks : lists of lists of uint8 tensors
        For each turn, by row of the slot, the block on the host and its actions; by row of the fragment, the block on
        the actor's device.
    """

    def __init__(
        self,
        number: int,
        slot: Slot,
        blocks: list[Blocks],
        lasts: list[Blocks],
        acts: list[Tensor],
        actor: Nested,
        hx: Nested,
        groups: Sequence[Group],
        turns: Sequence[Sequence[int]],
        *,
        ring: bool,
    ) -> None:
        """Make the views.

        Parameters
        ----------
        turns : sequence of sequences of int
            The numbers of the groups of each turn.
        ring : bool
            Whether the slot is a ring of rows.
        """
        self.number, self.slot, self.actor, self.hx = number, slot, actor, hx
        self.blocks, self.lasts, self.acts = blocks, lasts, acts
        self.columns = [slice(groups[turn[0]].columns.start, groups[turn[-1]].columns.stop) for turn in turns]
        self.holds_fragment = not ring
        self.copied: Any = None
        self._start = 0
        self._steps: dict[int, list[Step]] = {}  # by the row of the slot that a fragment begins at, as `_copies`
        # for each turn, by row of the slot and by row of the fragment: what is copied at a step
        self.host_blocks = [list(one.memory) for one in slot.blocks]
        self.host_acts = [[one.actions(row) for row in range(len(one.memory))] for one in slot.blocks if acts]
        self.device_blocks = [list(one.memory) for one in blocks]
        self.n_steps = len(blocks[0].memory) - 1
        starts = {k * self.n_steps % slot.layout.n_rows for k in range(slot.layout.n_rows)} if ring else {0}
        self._copies = {start: self._copies_from(start) for start in sorted(starts)}
        self.groups = self._views_of_groups(groups, turns)

    def _views_of_groups(self, groups: Sequence[Group], turns: Sequence[Sequence[int]]) -> list[GroupViews]:
        infos = [nested.leaves(row) for row in split_rows(self.actor, 1 + self.n_steps)]
        parts, views = split_blocks(self.blocks, groups, turns), list[GroupViews]()
        for k, turn in enumerate(turns):
            acts = self.blocks[k].action_leaves(self.acts[k]) if self.acts else None
            # a ring whose rows belong to one group alone: its captured steps may copy them
            host = self._host_rows_of(k) if len(turn) == 1 and not self.holds_fragment else None
            for part, columns in ((parts[g]._replace(host=host), groups[g].columns) for g in turn):
                views.append(GroupViews(part, columns, acts, infos, self.hx, self.lasts[k]))
        return views

    def _host_rows_of(self, turn: int) -> HostRows:
        copies = list(dict.fromkeys(one for some in self._copies.values() for one in some))
        return HostRows(self.host_blocks[turn], self.host_acts[turn], self.acts[turn], copies)

    def host_row(self, t: int) -> int:
        """Return where row ``t`` is among the rows of the slot."""
        return (self._start + t) % self.slot.layout.n_rows

    def host_rows(self) -> list[int]:
        """Return where each row of the fragment is among the rows of the slot."""
        return [self.host_row(t) for t in range(1 + self.n_steps)]

    def steps(self, *, final: bool, sticky: bool) -> list[Step]:
        """Return the steps of a fragment. They are made once for each row of the slot that a fragment begins at."""
        if self._start not in self._steps:
            rows = self.host_rows()
            self._steps[self._start] = [Step(self.number, rows[t], t, final, sticky) for t in range(self.n_steps)]
        return self._steps[self._start]

    def row_copies(self) -> list[RowCopies]:
        """Return what is copied at the step of each row: nothing on the host. Row 0 is on the device already."""
        return self._copies[self._start]

    def _copies_from(self, start: int) -> list[RowCopies]:
        rows = [(start + t) % self.slot.layout.n_rows if self.acts else None for t in range(1, 1 + self.n_steps)]
        return [RowCopies(up, down) for up, down in zip([None, *rows], [*rows, None], strict=True)]

    def begin_fragment(self) -> None:
        """Let the next fragment begin in the ring where this one ends."""
        self._start = self.host_row(self.n_steps)

    def mark_copied(self, event: Any) -> None:
        """Set the event before which the slot must not be filled again; a ring has nothing to wait for by then."""
        if self.holds_fragment:
            self.copied = event


def make_slots(
    layouts: Sequence[RowLayout],
    absent: Sequence[Any],
    n_steps: int,
    lane: Lane,
    memory: Callable[[int], Array | None],
) -> list[Slot]:
    """Allocate host memory: the slots that fragments are collected in by turns.

    Parameters
    ----------
    layouts, absent
        As those of :class:`~rlplay.engine.memory.slot.Slot`.
    memory : callable
        Takes a number of bytes and returns memory of that size, or None: any memory can be used.
    """

    def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        own = memory(*shape)
        return lane.empty(Place.HOST, shape, dtype) if own is None else lane.lock(own)

    # a slot that is copied out of later must not be filled meanwhile: then there are two
    ring = lane.has_both_on_device
    n_rows, n_slots = (RING, 1) if ring else (1 + n_steps, 1 + lane.asynchronous)
    return [Slot(layouts, absent, n_rows, allocate) for _ in range(n_slots)]


def make_stagings(
    slots: Sequence[Slot],
    layout: Fragment,
    n_steps: int,
    groups: Sequence[Group],
    turns: Sequence[Sequence[int]],
    lane: Lane,
) -> list[Staging]:
    """Allocate the memory on the actor's device, on the current stream, and make a staging for each slot.

    On a device all stagings share it, so that its addresses never change.
    """
    n_envs, allocate = groups[-1].columns.stop, partial(lane.empty, Place.ACTOR)

    def infos_and_hx() -> tuple[Nested, Nested]:
        return blank_rows(layout.actor, 1 + n_steps, n_envs, allocate), blank_hx(layout.hx, n_envs, allocate)

    if lane.shared(Place.ACTOR, Place.HOST):
        # the infos are on the host too and are copied out of it like the slot, so each slot has infos of its own
        return [
            Staging(k, slot, slot.blocks, slot.lasts, [], *infos_and_hx(), groups, turns, ring=False)
            for k, slot in enumerate(slots)
        ]

    def blocks(n: int) -> list[Blocks]:
        forms = [one.layout for one in slots[0].blocks]
        return [Blocks(allocate((n, form.block.size), torch.uint8), form) for form in forms]

    rows, lasts, (actor, hx) = blocks(1 + n_steps), blocks(1), infos_and_hx()
    acts = [allocate((len(one.actions(0)),), torch.uint8) for one in rows]
    ring = lane.has_both_on_device
    return [Staging(k, slot, rows, lasts, acts, actor, hx, groups, turns, ring=ring) for k, slot in enumerate(slots)]


def upload(staging: Staging, lane: Lane, turn: int, row: int, t: int) -> None:
    """Copy a row of the slot to row ``t`` of a turn on the actor's device, in one copy. It must be filled in before."""
    lane.copy(staging.device_blocks[turn][t], staging.host_blocks[turn][row])


def download(staging: Staging, lane: Lane, turn: int, row: int) -> None:
    """Copy the actions of a turn from the actor's device into a row of the slot, in one copy."""
    lane.copy(staging.host_acts[turn][row], staging.acts[turn])


def carry_over(previous: Staging | None, staging: Staging, lane: Lane) -> None:
    """Let the last row of the previous fragment be row 0 of this one, on the host and on the actor's device.

    For the first fragment ``previous`` is None: host row 0 is filled in already and is uploaded.
    """
    on_device = not lane.shared(Place.ACTOR, Place.HOST)
    if previous is None:
        for turn in range(len(staging.blocks)) if on_device else ():
            upload(staging, lane, turn, staging.host_row(0), 0)
        return
    if lane.has_both_on_device:
        staging.begin_fragment()  # the row is in the ring already
    else:
        for rows, before in zip(staging.host_blocks, previous.host_blocks, strict=True):
            rows[0].copy_(before[-1])
    if on_device:
        blocks = [one.memory for one in staging.blocks]
        lane.copy([memory[0] for memory in blocks], [memory[-1] for memory in blocks])


def deliver(staging: Staging, blank: Fragment, lane: Lane) -> None:
    """Copy the fragment into the consumer's memory, on the current stream.

    States and outcomes come from the actor's device if that is the consumer's too, otherwise from the host.
    """
    blocks = staging.blocks if lane.shared(Place.ACTOR, Place.CONSUMER) else staging.slot.blocks
    copy_fragment(blank, blocks, staging.columns, staging.actor, staging.hx, lane)


def copy_fragment(
    blank: Fragment, blocks: Sequence[Blocks], columns: Sequence[slice], actor: Nested, hx: Nested, lane: Lane
) -> None:
    """Copy a fragment into the consumer's memory, on the current stream.

    Parameters
    ----------
    blocks : sequence of Blocks
        The rows of each turn.
    columns : sequence of slice
        The environments of each turn.
    actor, hx : nested tensors
        The actor's infos, and the recurrent state at row 0.
    """
    target: Nested = blank.state, blank.env
    targets: Nested = [target] if len(blocks) == 1 else [columns_of(target, part) for part in columns]
    sources: Nested = [one.fragment for one in blocks]
    if lane.has_both_on_device:
        targets, sources = (nested.map(in_words, tree) for tree in (targets, sources))
    lane.copy([*targets, blank.actor, blank.hx], [*sources, actor, hx])
