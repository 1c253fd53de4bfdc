"""Collecting: ``T`` steps of ``B`` environments into a slot, with the actor's reactions beside it.

Plain functions over rows that are there already. Knows the verbs of a lane, not what they do; no threads, no queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import perf_counter
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from .. import nested
from ..nested import Nested
from .behaviour import Behaviour, Group
from .core import Episode, Final, Fragment, State
from .storage import Leaf, Marks, Row, Slot, blank, blank_hx, blank_rows
from .trace import Progress
from .transfer import Lane, Place

__all__ = ["Bench", "Ends", "Faces", "carry_over", "collect", "deliver", "make_benches", "stage_final"]


class Faces(Protocol):
    """What collecting needs of environments."""

    obs: Nested
    act: Nested
    episodes: list[Episode]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def begin(self, row: Row) -> None:
        """Write the very first row."""

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""

    def step(self, now: Row, then: Row, marks: Marks, last: Row | None, *, sticky: bool) -> list[int]:
        """Carry out the actions in ``then``, and write what follows; return whose episode ended."""

    def render(self) -> None:
        """Let the environments show themselves."""

    def close(self) -> list[str]:
        """Close what was made for this feed; return what went wrong with it."""


class Bench:
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
    copied : event
        Behind the last copy out of the slot.
    """

    def __init__(
        self, slot: Slot, state: State, last: State, actor: Nested, hx: Nested, groups: Sequence[Group]
    ) -> None:
        """Make the views."""
        self.slot, self.state, self.last, self.actor, self.hx = slot, state, last, actor, hx
        self.copied: Any = None
        n = len(slot.rows)
        self.ups = [
            (nested.leaves(one), nested.leaves(other))
            for one, other in zip(_split(state, n), _split(slot.state, n), strict=True)
        ]
        columns = [group.columns for group in groups]
        self.inputs = [_split(_columns(state, part), n) for part in columns]
        self.lasts = [_columns(last, part) for part in columns]
        self.infos = [[nested.leaves(row) for row in _split(_columns(actor, part), n)] for part in columns]
        self.downs = [[nested.leaves(row) for row in _split(_columns(slot.state.act, part), n)] for part in columns]
        self.hxs = [nested.leaves(_columns(hx, part)) for part in columns]

    @property
    def n_steps(self) -> int:
        """The number of steps in a fragment, ``T``."""
        return len(self.slot.marks)


def _columns(tree: Nested, part: slice) -> Nested:
    return nested.map(lambda x: x[:, part], tree)


def _split(tree: Nested, n: int) -> list[Any]:
    """Take rows apart: one nested thing of ``(n, ...)`` into ``n`` of ``(1, ...)``."""
    found, spec = nested.flatten(tree)
    columns = [leaf.split(1) for leaf in found]
    return [spec.unflatten([column[t] for column in columns]) for t in range(n)]


def make_benches(
    slots: Sequence[Slot], layout: Fragment, groups: Sequence[Group], n_envs: int, lane: Lane
) -> list[Bench]:
    """Allocate the memory beside the actor, and put a bench around each slot."""
    n_steps = len(slots[0].marks)

    def allocate(shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        return lane.empty(Place.ACTOR, shape, dtype)

    if lane.shared(Place.ACTOR, Place.HOST):
        # what the actor answers lies on the host as well, and is copied away from there like the slot
        answers = [
            (blank_rows(layout.actor, 1 + n_steps, n_envs, allocate), blank_hx(layout.hx, n_envs, allocate))
            for _ in slots
        ]
        return [
            Bench(slot, slot.state, slot.last, *answer, groups) for slot, answer in zip(slots, answers, strict=True)
        ]
    own = blank(layout, n_steps, n_envs, allocate)
    last = blank_rows(layout.state, 1, n_envs, allocate)
    return [Bench(slot, own.state, last, own.actor, own.hx, groups) for slot in slots]


def carry_over(previous: Bench | None, bench: Bench, lane: Lane) -> None:
    """Make the last row of the previous fragment the first of this one, wherever rows lie.

    There is no previous one at first: then row 0 of the slot is filled in already.
    """
    if previous is None:
        _upload(bench, lane, 0)
        return
    for target, source in zip(bench.ups[0][1], previous.ups[-1][1], strict=True):
        target.copy_(source)
    if not lane.shared(Place.ACTOR, Place.HOST):
        lane.copy(bench.ups[0][0], previous.ups[-1][0])


class Ends:
    """The episodes that ended in one fragment: where, and copies of the last observations and the reactions to them."""

    def __init__(self) -> None:
        """Begin with none."""
        self.t: list[int] = []
        self.b: list[int] = []
        self.obs: list[list[Tensor]] = []
        self.actor: list[list[Tensor]] = []


def collect(
    bench: Bench,
    behaviour: Behaviour,
    groups: Sequence[Group],
    envs: Faces,
    lane: Lane,
    progress: Progress,
    boundary: Callable[[], None],
    *,
    sticky: bool,
    final: bool,
) -> Ends:
    """Fill a bench, whose row 0 is there already: react, carry out, write, ``T`` times; then look ahead.

    Parameters
    ----------
    boundary : callable
        Called before each step: where the collector can be made to stand still, or to stop by an exception.
    sticky, final : bool
        As in ``rollout``.

    Returns
    -------
    Ends
        Filled in only if ``final``. On an asynchronous lane its lists of tensors grow behind what was launched.
    """
    slot, ends = bench.slot, Ends()
    progress.doing = "actor.reset"
    envs.release()
    slot.clear()
    _begin(bench, behaviour, groups, lane)
    for t in range(bench.n_steps):
        boundary()
        progress.row, progress.doing = t, "actor.step"
        started = perf_counter()
        _react(bench, behaviour, groups, lane, t, virtual=False)
        if not lane.shared(Place.ACTOR, Place.HOST):
            lane.host_wait(lane.record())  # for the actions, which come down into row t + 1
        acted = perf_counter()
        progress.doing = "env.step"
        now, then = slot.rows[t], slot.rows[t + 1]
        ended = envs.step(now, then, slot.marks[t], slot.last_row if final else None, sticky=sticky)
        stepped = perf_counter()
        progress.inference += acted - started
        progress.stepping += stepped - acted
        progress.doing = "actor.step"
        _upload(bench, lane, t + 1)  # filled -> copy
        if final and ended:
            _complete_last(slot, now, then, ended)
            _react_to_last(bench, behaviour, groups, lane, t, ended, ends)
    progress.row = bench.n_steps
    _react(bench, behaviour, groups, lane, bench.n_steps, virtual=True)
    return ends


def _begin(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane) -> None:
    """Note the recurrent state at row 0, reset where an episode has just begun."""
    begun = _begun(bench, groups, 0)

    def noted() -> None:
        for g, group in enumerate(groups):
            _store(behaviour.begin(group, bench.inputs[g][0].fin[0], begun[g]), bench.hxs[g], "hx")

    lane.launch(noted)


def _begun(bench: Bench, groups: Sequence[Group], t: int) -> list[list[int]]:
    """List for each group where an episode has just begun at row ``t``; on the host, so nobody has to wait for it."""
    fin = bench.slot.rows[t].fin
    return [fin[group.columns].nonzero()[0].tolist() for group in groups]


def _react(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, t: int, *, virtual: bool) -> None:
    """React to row ``t``: the infos go into it, the actions down into row ``t + 1``."""
    # row 0 was seen to by `_begin`; a reset that a virtual step looks at is done again by that of the next fragment
    begun = _begun(bench, groups, t) if t else [[] for _ in groups]

    def reacted() -> None:
        for g, group in enumerate(groups):
            act, info = behaviour.react(group, bench.inputs[g][t], begun=begun[g], virtual=virtual)
            _store(info, bench.infos[g][t], "info")
            if not virtual:
                _store(act, bench.downs[g][t + 1], "act")

    lane.launch(reacted)


def _store(values: Sequence[Tensor], rows: Sequence[Tensor], what: str) -> None:
    """Write an answer of the actor into its row."""
    for value, row in zip(values, rows, strict=True):
        if value.shape != row.shape:  # or it would be broadcast, silently
            raise ValueError(
                f"the actor's {what} has changed its shape: expected {tuple(row.shape)}, got {tuple(value.shape)}."
            )
        row.copy_(value, non_blocking=True)


def _upload(bench: Bench, lane: Lane, t: int) -> None:
    """Bring a row that has been filled in to the actor's device."""
    if not lane.shared(Place.ACTOR, Place.HOST):
        lane.copy(*bench.ups[t])


def _complete_last(slot: Slot, now: Row, then: Row, ended: Sequence[int]) -> None:
    """Make a whole row around the true last observations; the environments that go on see their current state.

    So the batch is as wide as ever, and every row of it is one that the actor could meet.
    """
    last = slot.last_row
    np.add(now.stepno, 1, out=last.stepno)
    last.rew[:], last.fin[:] = then.rew, False
    for source, target in zip(then.act, last.act, strict=True):
        target[...] = source
    going_on = np.ones(len(now.stepno), bool)
    going_on[ended] = False
    for source, target in zip(then.obs, last.obs, strict=True):
        target[going_on] = source[going_on]


def _react_to_last(
    bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, t: int, ended: Sequence[int], ends: Ends
) -> None:
    """React to the true last observations, with the recurrent state that has not been reset yet; keep copies."""
    if not lane.shared(Place.ACTOR, Place.HOST):
        lane.copy(bench.last, bench.slot.last)
    ends.t.extend([t] * len(ended))
    ends.b.extend(ended)

    def reacted() -> None:
        for group, last in zip(groups, bench.lasts, strict=True):
            inside = [j - group.columns.start for j in ended if group.columns.start <= j < group.columns.stop]
            if inside:
                _, info = behaviour.react(group, last, begun=(), virtual=True)
                obs = nested.leaves(last.obs)
                ends.obs.extend([leaf[0, j].clone() for leaf in obs] for j in inside)
                ends.actor.extend([leaf[0, j].clone() for leaf in info] for j in inside)

    lane.launch(reacted)


def deliver(bench: Bench, vessel: Fragment, lane: Lane) -> None:
    """Copy what a bench holds into the consumer's memory, from as near as it lies."""
    near = bench.state if lane.shared(Place.ACTOR, Place.CONSUMER) else bench.slot.state
    lane.copy(vessel.state, near)
    lane.copy(vessel.env, bench.slot.env)
    lane.copy(vessel.actor, bench.actor)
    lane.copy(vessel.hx, bench.hx)


def stage_final(ends: Ends, layout: Fragment, lane: Lane) -> Final:
    """Gather the ends of a fragment where the consumer is, in memory of the collector's."""
    k = len(ends.t)

    def at(place: Place) -> tuple[Nested, Nested]:
        def rows(leaf: Leaf) -> Tensor:
            return lane.empty(place, (k, *leaf.shape), leaf.dtype)

        return nested.map(rows, layout.state.obs), nested.map(rows, layout.actor)

    near = at(Place.ACTOR)

    def stacked() -> None:
        for column, leaf in enumerate(nested.leaves(near[0])):
            torch.stack([parts[column] for parts in ends.obs], out=leaf)
        for column, leaf in enumerate(nested.leaves(near[1])):
            torch.stack([parts[column] for parts in ends.actor], out=leaf)

    if k:
        lane.launch(stacked)
    there = near if lane.shared(Place.ACTOR, Place.CONSUMER) else at(Place.CONSUMER)
    if there is not near:
        lane.copy(there, near)
    places = tuple(torch.tensor(index, dtype=torch.int64, device="cpu") for index in (ends.t, ends.b))
    t, b = (lane.empty(Place.CONSUMER, (k,), torch.int64) for _ in places)
    lane.copy((t, b), places)
    return Final(t, b, *there)
