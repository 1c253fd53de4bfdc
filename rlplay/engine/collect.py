"""Collecting: ``T`` steps of ``B`` environments into a slot, with the actor's reactions beside it.

Plain functions over rows that are there already. Knows the verbs of a lane, not what they do; no threads, no queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .behaviour import Behaviour, Group
from .bench import Bench, upload
from .crew import Crew, Step
from .ends import Ends, complete_last, react_to_last
from .trace import Progress
from .transfer import Lane, Place

__all__ = ["collect"]


def collect(
    bench: Bench,
    behaviour: Behaviour,
    groups: Sequence[Group],
    crew: Crew,
    lane: Lane,
    progress: Progress,
    boundary: Callable[[], None],
    *,
    sticky: bool,
    final: bool,
) -> Ends:
    """Fill a bench, whose row 0 is there already: react, carry out, write, ``T`` times; then look ahead.

    The groups go in the crew's turns: while those of one step, those of the next are inferred.

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
    ends = Ends()
    beside = not lane.shared(Place.ACTOR, Place.HOST)
    turns = [[groups[g] for g in members] for members in crew.turns]

    def arrive(turn: int, t: int) -> None:
        progress.row = t
        progress.begin("env.step")
        ended = crew.arrive(turn)
        if beside:
            progress.begin("an upload")
            upload(bench, lane, turn, t + 1)  # filled -> copy
        progress.begin("actor.step")
        if final and ended:
            part, now, then = bench.columns[turn], *bench.slot.rows[t : t + 2]
            complete_last(bench.slot.last_row.part(part), now.part(part), then.part(part), ended, part.start)
            react_to_last(bench, behaviour, turns[turn], lane, turn, t, ended, ends)

    progress.begin("actor.reset")
    crew.release()
    bench.slot.clear()
    _begin(bench, behaviour, groups, lane)
    for t in range(bench.n_steps):
        boundary()
        step = Step(bench.number, t, final, sticky)
        for turn, members in enumerate(turns):
            if t:
                arrive(turn, t - 1)
            progress.row = t
            progress.begin("actor.step")
            _react(bench, behaviour, members, lane, t, virtual=False)
            if beside:
                lane.host_wait(lane.record())  # for the actions, which come down into row t + 1
            progress.begin("env.step")
            crew.depart(turn, step)
    for turn in range(len(turns)):
        arrive(turn, bench.n_steps - 1)
    progress.row = bench.n_steps
    _react(bench, behaviour, groups, lane, bench.n_steps, virtual=True)
    return ends


def _begin(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane) -> None:
    """Note the recurrent state at row 0, reset where an episode has just begun."""
    begun = _begun(bench, behaviour, groups, 0)

    def noted() -> None:
        for g, group in enumerate(groups):
            _write(bench.hxs[g], behaviour.begin(group, bench.inputs[g][0].fin[0], begun[g]))

    lane.launch(noted)


def _begun(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], t: int) -> list[Sequence[int]]:
    """List for each group whose recurrent state is to be reset at row ``t``; on the host, so nobody waits for it."""
    if not behaviour.recurrent:
        return [()] * len(groups)
    fin = bench.slot.rows[t].fin
    return [fin[group.columns].nonzero()[0].tolist() for group in groups]


def _react(bench: Bench, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, t: int, *, virtual: bool) -> None:
    """React to row ``t``: the infos go into it, the actions down into row ``t + 1``."""
    # row 0 was seen to by `_begin`; a reset that a virtual step looks at is done again by that of the next fragment
    begun = _begun(bench, behaviour, groups, t) if t else [()] * len(groups)

    def reacted() -> None:
        for group, where in zip(groups, begun, strict=True):
            g = group.number
            behaviour.answer(group, bench.inputs[g][t], bench.answers[g][t], begun=where, virtual=virtual)

    lane.launch(reacted)


def _write(rows: list[Tensor], values: list[Tensor]) -> None:
    if rows:
        torch._foreach_copy_(rows, values, non_blocking=True)
