"""The loop over the steps of one fragment: the actor reacts, the environments step, rows are uploaded.

Functions over memory that is allocated already. This module must not import threads, queues or devices: it uses the
verbs of a lane, whatever kind of lane it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch

from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..acting.torch_context import TorchContext
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
    torch_context: TorchContext,
    pass_gate: Callable[[], None],
    *,
    sticky: bool,
    final: bool,
) -> Finals:
    """Collect ``T`` steps into the staging buffers, and the virtual reaction to row ``T``. Row 0 is filled in already.

    The groups of one turn step their environments while the actor reacts to the groups of the next turn.

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
    Finals
        Empty unless ``final``. On an asynchronous lane its lists of tensors are filled in when the device reacts.
    """
    finals = Finals()
    on_device = not lane.shared(Place.ACTOR, Place.HOST)
    turns = [[groups[g] for g in members] for members in stepper.turns]

    def finish_step(turn: int, t: int) -> None:
        """Wait until the environments of a turn have made step ``t``, and bring row ``t + 1`` to the actor."""
        progress.row = t
        progress.begin("env.step")
        ended = stepper.finish_step(turn)
        if on_device:
            progress.begin("an upload")
            upload(staging, lane, turn, t + 1)  # edge: filled -> copy (`finish_step` has filled the row)
        progress.begin("actor.step")
        if final and ended:
            now, then = staging.slot.rows[t : t + 2]
            complete_last(staging.slot.last_row, now, then, ended, staging.columns[turn])
            react_to_last(staging, behaviour, turns[turn], lane, turn, t, ended, finals)

    progress.begin("actor.reset")
    stepper.release()
    staging.slot.clear()
    _start_fragment(staging, behaviour, groups, lane)
    for t in range(staging.n_steps):
        pass_gate()
        step = Step(staging.number, t, final, sticky)
        for turn, members in enumerate(turns):
            if t:
                finish_step(turn, t - 1)
            else:
                progress.begin("actor.step")
            progress.row = t
            _react(staging, behaviour, members, lane, t, virtual=False)
            if on_device:
                lane.host_wait(lane.record())  # the environments read the actions in host row t + 1
            progress.begin("env.step")
            torch_context.call_environments(stepper.start_step, turn, step)
    for turn in range(len(turns)):
        finish_step(turn, staging.n_steps - 1)
    progress.row = staging.n_steps
    _react(staging, behaviour, groups, lane, staging.n_steps, virtual=True)
    return finals


def _start_fragment(staging: Staging, behaviour: Behaviour, groups: Sequence[Group], lane: Lane) -> None:
    """Reset the recurrent state where an episode has just begun at row 0, and copy it into the staging buffers."""
    begun = _begun(staging, behaviour, groups, 0)

    def start() -> None:
        for g, group in enumerate(groups):
            hx = behaviour.start_fragment(group, staging.inputs[g][0].fin[0], begun[g])
            if hx:
                torch._foreach_copy_(staging.hxs[g], hx, non_blocking=True)

    lane.launch(start)


def _begun(staging: Staging, behaviour: Behaviour, groups: Sequence[Group], t: int) -> list[Sequence[int]]:
    """List for each group the environments whose recurrent state is to be reset at row ``t``.

    The host rows have this already, so the host need not wait for the device.
    """
    if not behaviour.spec.recurrent:
        return [()] * len(groups)
    fin = staging.slot.rows[t].fin
    return [fin[group.columns].nonzero()[0].tolist() for group in groups]


def _react(
    staging: Staging, behaviour: Behaviour, groups: Sequence[Group], lane: Lane, t: int, *, virtual: bool
) -> None:
    """React to row ``t``: the infos are written into row ``t``, the actions into host row ``t + 1``."""
    # At row 0 `_start_fragment` has reset the recurrent state. A reset before the virtual reaction to row T is not
    # kept: it is done again at row 0 of the next fragment.
    begun = _begun(staging, behaviour, groups, t) if t and behaviour.spec.recurrent else [()] * len(groups)

    def react() -> None:
        for group, where in zip(groups, begun, strict=True):
            g = group.number
            behaviour.react_into(group, staging.inputs[g][t], staging.answers[g][t], begun=where, virtual=virtual)

    lane.launch(react)
