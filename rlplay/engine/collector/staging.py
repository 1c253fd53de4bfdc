"""Where one fragment is put together: a host slot, and the memory beside the actor, with every view that a step needs.

Knows the verbs of a lane, not what they do. Neither environments nor what an actor is.
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
    """A host slot, and the memory beside the actor: where one fragment is put together.

    On the host they are one memory. Elsewhere each host row is uploaded once, and the actor-side rows are shared by
    all slots, at addresses that never change. All views that a step needs are made here, once.

    Attributes
    ----------
    slot : Slot
        What the environments write into.
    state, last : State of tensors, ``(1+T, B, ...)`` and ``(1, B, ...)``
        The same rows, where the actor reads them.
    actor, hx : nested tensors, ``(1+T, B, ...)`` and ``(L, B, ...)``
        The actor's infos, and its recurrent state at row 0.
    number : int
        The slot's, among the slots.
    columns : list of slice
        The environments of each turn.
    copied : event
        Behind the last copy out of the slot.
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
        """Make the views."""
        self.number = number
        self.columns = [slice(groups[turn[0]].columns.start, groups[turn[-1]].columns.stop) for turn in turns]
        self.slot, self.state, self.last, self.actor, self.hx = slot, state, last, actor, hx
        self.copied: Any = None
        n = len(slot.rows)
        # for each turn and row: where it lies beside the actor, and where on the host
        self.ups = [_pairs(state, slot.state, part, n) for part in self.columns]
        self.last_ups = [_pairs(last, slot.last, part, 1)[0] for part in self.columns]
        columns = [group.columns for group in groups]
        self.inputs = [_split(_columns(state, part), n) for part in columns]
        self.lasts = [_columns(last, part) for part in columns]
        self.answers = [_answers(_columns(slot.state.act, part), _columns(actor, part), n) for part in columns]
        self.hxs = [nested.leaves(_columns(hx, part)) for part in columns]

    @property
    def n_steps(self) -> int:
        """The number of steps in a fragment, ``T``."""
        return len(self.slot.outcomes)


def _pairs(one: Nested, other: Nested, part: slice, n: int) -> list[tuple[list[Tensor], list[Tensor]]]:
    rows = (_split(_columns(tree, part), n) for tree in (one, other))
    return [(nested.leaves(x), nested.leaves(y)) for x, y in zip(*rows, strict=True)]


def _answers(act: Nested, info: Nested, n: int) -> list[list[Tensor]]:
    """List for each row where the answer to it goes: the action down into the next one, but for the last; the info."""
    acts, infos = ([nested.leaves(row) for row in _split(tree, n)] for tree in (act, info))
    return [down + beside for down, beside in zip([*acts[1:], []], infos, strict=True)]


def _columns(tree: Nested, part: slice) -> Nested:
    return nested.map(lambda x: x[:, part], tree)


def _split(tree: Nested, n: int) -> list[Any]:
    """Take rows apart: one nested thing of ``(n, ...)`` into ``n`` of ``(1, ...)``."""
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
    """Allocate the memory beside the actor, and put a staging around each slot."""
    n_steps = len(slots[0].outcomes)

    def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return lane.empty(Place.ACTOR, shape, dtype)

    def answers() -> tuple[Nested, Nested]:
        return blank_rows(layout.actor, 1 + n_steps, n_envs, allocate), blank_hx(layout.hx, n_envs, allocate)

    if lane.shared(Place.ACTOR, Place.HOST):
        # what the actor answers lies on the host as well, and is copied away from there like the slot
        return [Staging(k, slot, slot.state, slot.last, *answers(), groups, turns) for k, slot in enumerate(slots)]
    state, last = (blank_rows(layout.state, n, n_envs, allocate) for n in (1 + n_steps, 1))
    own = answers()
    return [Staging(k, slot, state, last, *own, groups, turns) for k, slot in enumerate(slots)]


def upload(staging: Staging, lane: Lane, turn: int, t: int) -> None:
    """Bring a turn's part of a row, which has been filled in, to the actor's device."""
    if not lane.shared(Place.ACTOR, Place.HOST):
        lane.copy(*staging.ups[turn][t])


def carry_over(previous: Staging | None, staging: Staging, lane: Lane) -> None:
    """Make the last row of the previous fragment the first of this one, wherever rows lie.

    There is no previous one at first: then row 0 of the slot is filled in already.
    """
    for turn, (rows, others) in enumerate(
        zip(staging.ups, staging.ups if previous is None else previous.ups, strict=True)
    ):
        if previous is None:
            upload(staging, lane, turn, 0)
            continue
        for target, source in zip(rows[0][1], others[-1][1], strict=True):
            target.copy_(source)
        if not lane.shared(Place.ACTOR, Place.HOST):
            lane.copy(rows[0][0], others[-1][0])


def deliver(staging: Staging, blank: Fragment, lane: Lane) -> None:
    """Copy what a staging holds into the consumer's memory, from as near as it lies."""
    near = staging.state if lane.shared(Place.ACTOR, Place.CONSUMER) else staging.slot.state
    lane.copy(blank.state, near)
    lane.copy(blank.env, staging.slot.env)
    lane.copy(blank.actor, staging.actor)
    lane.copy(blank.hx, staging.hx)
