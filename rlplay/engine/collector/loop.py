"""Collecting: ``T`` steps of ``B`` environments into a slot, with the actor's reactions beside it.

Plain functions over rows that are there already. Knows the verbs of a lane, not what they do; no threads, no queues.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..concurrency.progress import Progress
from ..memory.lane import Lane, Place
from ..stepping.stepper import Step, Stepper
from .finals import Finals, complete_last, react_to_last
from .staging import Staging, upload

__all__ = ["collect"]


def collect(
    staging: Staging,
    behaviour: Behaviour,
    groups: Sequence[Group],
    stepper: Stepper,
    lane: Lane,
    progress: Progress,
    boundary: Callable[[], None],
    *,
    sticky: bool,
    final: bool,
) -> Finals:
    """Fill a staging, whose row 0 is there already: react, carry out, write, ``T`` times; then look ahead.

    The groups go in the stepper's turns: while those of one step, those of the next are inferred.

    Parameters
    ----------
    boundary : callable
        Called before each step: where the collector can be made to stand still, or to stop by an exception.
    sticky, final : bool
        As in ``rollout``.

    Returns
    -------
    Finals
        Filled in only if ``final``. On an asynchronous lane its lists of tensors grow behind what was launched.
    """
    finals = Finals()
    beside = not lane.shared(Place.ACTOR, Place.HOST)
    turns = [[groups[g] for g in members] for members in stepper.turns]

    def arrive(turn: int, t: int) -> None:
        progress.row = t
        progress.begin("env.step")
        ended = stepper.finish_step(turn)
        if beside:
            progress.begin("an upload")
            upload(staging, lane, turn, t + 1)  # filled -> copy
        progress.begin("actor.step")
        if final and ended:
            part, now, then = staging.columns[turn], *staging.slot.rows[t : t + 2]
            complete_last(staging.slot.last_row.part(part), now.part(part), then.part(part), ended, part.start)
            react_to_last(staging, behaviour, turns[turn], lane, turn, t, ended, finals)

    progress.begin("actor.reset")
    stepper.release()
    staging.slot.clear()
    _begin(staging, behaviour, groups, lane)
    for t in range(staging.n_steps):
        boundary()
        step = Step(staging.number, t, final, sticky)
        for turn, members in enumerate(turns):
            if t:
                arrive(turn, t - 1)
            progress.row = t
            progress.begin("actor.step")
            _react(staging, behaviour, members, lane, t, virtual=False)
            if beside:
                lane.host_wait(lane.record())  # for the actions, which come down into row t + 1
            progress.begin("env.step")
            stepper.start_step(turn, step)
    for turn in range(len(turns)):
        arrive(turn, staging.n_steps - 1)
    progress.row = staging.n_steps
    _react(staging, behaviour, groups, lane, staging.n_steps, virtual=True)
    return finals


def _begin(staging: Staging, behaviour: Behaviour, groups: Sequence[Group], lane: Lane) -> None:
    """Note the recurrent state at row 0, reset where an episode has just begun."""
    begun = _begun(staging, behaviour, groups, 0)

    def noted() -> None:
        for g, group in enumerate(groups):
            _write(staging.hxs[g], behaviour.start_fragment(group, staging.inputs[g][0].fin[0], begun[g]))

    lane.launch(noted)


def _begun(staging: Staging, behaviour: Behaviour, groups: Sequence[Group], t: int) -> list[Sequence[int]]:
    """List for each group whose recurrent state is to be reset at row ``t``; on the host, so nobody waits for it."""
    if not behaviour.spec.recurrent:
        return [()] * len(groups)
    fin = staging.slot.rows[t].fin
    return [fin[group.columns].nonzero()[0].tolist() for group in groups]


def _react(
    staging: Staging, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, t: int, *, virtual: bool
) -> None:
    """React to row ``t``: the infos go into it, the actions down into row ``t + 1``."""
    # row 0 was seen to by `_begin`; a reset that a virtual step looks at is done again by that of the next fragment
    begun = _begun(staging, behaviour, groups, t) if t else [()] * len(groups)

    def reacted() -> None:
        for group, where in zip(groups, begun, strict=True):
            g = group.number
            behaviour.react_into(group, staging.inputs[g][t], staging.answers[g][t], begun=where, virtual=virtual)

    lane.launch(reacted)


def _write(rows: list[Tensor], values: list[Tensor]) -> None:
    if rows:
        torch._foreach_copy_(rows, values, non_blocking=True)
