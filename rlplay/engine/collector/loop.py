"""The loop over the steps of one fragment: the actor reacts, the environments step, rows are uploaded.

Functions over memory that is allocated already. This module must not import threads, queues or devices: it uses the
verbs of a lane, whatever kind of lane it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import torch

from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..acting.torch_context import TorchContext
from ..concurrency.progress import Progress
from ..memory.lane import Lane, Place
from ..stepping.stepper import Step, Stepper
from .finals import Finals, complete_last, react_to_last
from .staging import Staging, download, upload

__all__ = ["collect"]


def collect(
    staging: Staging,
    behaviour: Behaviour,
    groups: Sequence[Group],
    stepper: Stepper,
    lane: Lane,
    progress: Progress,
    torch_context: TorchContext,
    pass_gate: Callable[[], None],
    *,
    sticky: bool,
    final: bool,
) -> tuple[Finals, int]:
    """Collect ``T`` steps into the staging buffers, and the virtual reaction to row ``T``. Row 0 is filled in already.

    The environments of one turn step while the actor reacts to the other turns. Environments that step in the
    background are started as soon as their actions are there. Others are stepped in this thread, as late as possible:
    just before the actor is to react to the result. So with two turns, A and B, and a row's number::

        this thread        launch A0, B0   step A   launch A1   step B   launch B1   step A   launch A2   ...
        the actor's device A0 B0                    A1                   B1                   A2

    Parameters
    ----------
    torch_context : TorchContext
        It is applied in the calling thread.
    pass_gate : callable
        Called before each step. It may wait, for a pause, or raise, to stop the collector.
    sticky, final : bool
        As in ``rollout``.

    Returns
    -------
    finals : Finals
        Empty unless ``final``. On an asynchronous lane its lists of tensors are filled in when the device reacts.
    n_transitions : int
        The number of transitions that were carried out.
    """
    finals, n_transitions = Finals(), 0
    n_steps, slot, early = staging.n_steps, staging.slot, stepper.steps_in_background
    on_device = not lane.shared(Place.ACTOR, Place.HOST)
    turns = [[groups[g] for g in members] for members in stepper.turns]
    side_by_side = lane.asynchronous and len(turns) > 1 and behaviour.keeps_nothing
    steps = [Step(staging.number, staging.host_row(t), t, final, sticky) for t in range(n_steps)]
    actions: list[Any] = [None for _ in turns]  # for each turn: an event, the actions of its latest row are on the host

    def use_stream(turn: int) -> None:
        """Let what follows be done on the stream of a turn, if turns have streams of their own."""
        if side_by_side:
            lane.use_turn(turn)

    def react(turn: int, t: int) -> None:
        """Let the actor react to row ``t``; its actions are for host row ``t + 1``."""
        progress.begin("actor.step")
        progress.row = t
        _react(staging, behaviour, turns[turn], lane, turn, t, virtual=False)
        if on_device:
            download(staging, lane, turn, t + 1)
            actions[turn] = lane.record()

    def start_step(turn: int, t: int) -> None:
        """Let the environments make step ``t``, from row ``t`` to row ``t + 1``."""
        progress.row = t
        if on_device:
            lane.host_wait(actions[turn])  # edge: copied -> refill (row t - 1 has gone up before its actions came down)
        progress.begin("env.step")
        slot.clear(turn, staging.host_row(t + 1))
        torch_context.call_environments(stepper.start_step, turn, steps[t])

    def finish_step(turn: int, t: int) -> None:
        """Wait until the environments have made step ``t``, and bring row ``t + 1`` to the actor."""
        nonlocal n_transitions
        if early:
            progress.row = t
            progress.begin("env.step")
            ended = torch_context.call_environments(stepper.finish_step, turn)
        else:
            start_step(turn, t)
            ended = stepper.finish_step(turn)
        rows, row = slot.turns[turn], staging.host_row(t + 1)
        n_transitions += int(np.count_nonzero(rows.outcomes[row].valid))
        if on_device:
            progress.begin("an upload")
            upload(staging, lane, turn, t + 1)  # edge: filled -> copy (the environments have filled the row)
        if final and ended:
            progress.begin("actor.step")
            complete_last(rows.last, rows.rows[staging.host_row(t)], rows.rows[row], ended)
            react_to_last(staging, behaviour, turns[turn], lane, turn, t, ended, finals)

    progress.begin("actor.reset")
    stepper.release()
    _start_fragment(staging, behaviour, turns, lane)
    started = lane.record()
    for t in range(n_steps):
        pass_gate()
        for turn in range(len(turns)):
            use_stream(turn)
            if not t and side_by_side:
                lane.wait(started)  # edge: started -> first step
            if t:
                finish_step(turn, t - 1)
            react(turn, t)
            if early:
                start_step(turn, t)
    for turn in range(len(turns)):
        use_stream(turn)
        finish_step(turn, n_steps - 1)
    progress.begin("actor.step")
    progress.row = n_steps
    stepped = []
    for turn, members in enumerate(turns):
        use_stream(turn)
        _react(staging, behaviour, members, lane, turn, n_steps, virtual=True)
        stepped.append(lane.record())
    if side_by_side:
        lane.use_turn(None)
        for event in stepped:
            lane.wait(event)  # edge: stepped -> put together
    return finals, n_transitions


def _start_fragment(staging: Staging, behaviour: Behaviour, turns: Sequence[Sequence[Group]], lane: Lane) -> None:
    """Reset the recurrent state where an episode has just begun at row 0, and copy it into the staging buffers."""
    members = [(turn, group) for turn, groups in enumerate(turns) for group in groups]
    begun = [(group, _begun(staging, behaviour, turn, group, 0)) for turn, group in members]

    def start() -> None:
        for group, where in begun:
            hx = behaviour.start_fragment(group, staging.inputs[group.number][0].fin[0], where)
            if hx:
                torch._foreach_copy_(staging.hxs[group.number], hx, non_blocking=True)

    lane.launch(start)


def _begun(staging: Staging, behaviour: Behaviour, turn: int, group: Group, t: int) -> Sequence[int]:
    """List the environments of a group whose recurrent state is to be reset at row ``t``.

    The host rows have this already, so the host need not wait for the device.
    """
    if not behaviour.spec.recurrent:
        return ()
    fin = staging.slot.turns[turn].rows[staging.host_row(t)].fin[staging.groups[group.number].inside]
    where: Sequence[int] = fin.nonzero()[0].tolist()
    return where


def _react(
    staging: Staging, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, turn: int, t: int, *, virtual: bool
) -> None:
    """React to row ``t`` of a turn: the infos are written into row ``t``, the actions into row ``t + 1``."""
    # At row 0 `_start_fragment` has reset the recurrent state. A reset before the virtual reaction to row T is not
    # kept: it is done again at row 0 of the next fragment.
    begun = [_begun(staging, behaviour, turn, group, t) if t else () for group in groups]

    def react() -> None:
        for group, where in zip(groups, begun, strict=True):
            g = group.number
            behaviour.react_into(group, staging.inputs[g][t], staging.answers[g][t], begun=where, virtual=virtual)

    lane.launch(react)
