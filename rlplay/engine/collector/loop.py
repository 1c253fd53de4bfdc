"""The loop over the steps of one fragment: the actor reacts, the environments step, rows are uploaded.

It works on memory that is allocated already. This module must not import threads, queues or devices: it uses the verbs
of a lane, whatever kind of lane it is.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..acting.torch_context import TorchContext
from ..concurrency.progress import Progress
from ..memory.lane import Lane, Place
from ..stepping.stepper import Stepper
from .finals import Finals, complete_last, react_to_last, reserve_places
from .staging import Staging, download, upload

__all__ = ["Loop"]


class Loop:
    """The loop over the steps of one fragment: ``T`` steps, and the virtual reaction to row ``T``.

    The environments of one turn step while the actor reacts to the other turns. Environments that do not step in the
    background are stepped in this thread, as late as possible: just before the actor is to react to the result. So with
    two turns, A and B, and a row's number::

        this thread        launch A0, B0   step A   launch A1   step B   launch B1   step A   launch A2   ...
        the actor's device A0 B0                    A1                   B1                   A2

    Environments that step in the background are started once their actions are there. After each launch this thread has
    the choice to wait for these actions, or for the environments of the next turn, to which the actor can then react
    meanwhile. It waits for what came first in most steps of the fragment before, and in the first fragment for the
    actions. The fragments do not depend on this choice.

    Attributes
    ----------
    finals : Finals
        Empty unless ``final``. On an asynchronous lane its lists of tensors are filled in when the device reacts.
    n_transitions : int
        The number of transitions that were carried out; complete after :meth:`run`.
    """

    def __init__(
        self,
        staging: Staging,
        behaviour: Behaviour,
        groups: Sequence[Group],
        stepper: Stepper,
        lane: Lane,
        progress: Progress,
        torch_context: TorchContext,
        *,
        starts_later: Sequence[bool],
        sticky: bool,
        final: bool,
    ) -> None:
        """Take what a fragment needs; row 0 is filled in already.

        Parameters
        ----------
        torch_context : TorchContext
            It is applied in the calling thread.
        starts_later : sequence of bool
            For each turn: whether its steps are started behind the wait for the environments of the next turn.
        sticky, final : bool
            As in ``rollout``.
        """
        self._staging, self._behaviour, self._stepper = staging, behaviour, stepper
        self._lane, self._progress, self._torch_context = lane, progress, torch_context
        self._final = final
        self._on_device = not lane.shared(Place.ACTOR, Place.HOST)
        self._turns = [[groups[g] for g in members] for members in stepper.turns]
        # for each turn: whether its captured steps upload its rows; such a turn has one group
        self._uploads_in_step = [behaviour.copies_rows(turn[0]) for turn in self._turns]
        self._side_by_side = self._on_device and len(self._turns) > 1 and behaviour.keeps_nothing
        # for each turn: of each group the environments to be reset, where there are none
        self._nobody: list[Sequence[Sequence[int]]] = [[() for _ in groups] for groups in self._turns]
        self._rows, self._counts_each_step = staging.host_rows(), not staging.holds_fragment
        self._steps, self._copies = staging.steps(final=final, sticky=sticky), staging.row_copies()
        # for each turn an event: the actions of its latest row have come down
        self._actions: list[Any] = [None for _ in self._turns]
        # of environments that step in the background: by the turn, the step that is still to be started
        self._due: dict[int, int] = {}
        self._starts_later = starts_later
        # for each turn: the seconds of the latest wait for its actions
        self._waited = [0.0 for _ in self._turns]
        # for each turn: the number of steps in which the environments of the next turn were ready before its actions,
        # minus the number of the other steps
        self._leads = [0 for _ in self._turns]
        # for each turn: the episodes that its latest step has ended, with their places in `finals`
        self._ended: list[dict[int, int]] = [{} for _ in self._turns]
        self.finals, self.n_transitions = Finals(), 0

    def run(self, pass_gate: Callable[[], None]) -> list[bool]:
        """Make all steps, and the virtual reaction to the last row. Return ``starts_later`` for the next fragment.

        ``pass_gate`` is called before each step; it may wait, for a pause, or raise, to stop the collector.
        """
        lane, turns, n_steps = self._lane, range(len(self._turns)), self._staging.n_steps
        in_background = self._stepper.steps_in_background
        self._progress.begin("actor.reset")
        self._stepper.release()
        _start_fragment(self._staging, self._behaviour, self._turns, lane)
        started = lane.record()
        for t in range(n_steps):
            pass_gate()
            for turn in turns:
                if self._side_by_side:
                    lane.use_turn(turn)
                if t:
                    self._finish_step(turn, t - 1)
                else:
                    self._start_steps(turn)
                    if self._side_by_side:
                        lane.wait(started)  # edge: started -> first step
                self._react(turn, t)
                if in_background:
                    self._due[turn] = t
        stepped = []
        for turn in turns:
            if self._side_by_side:
                lane.use_turn(turn)
            self._finish_step(turn, n_steps - 1)
            self._react(turn, n_steps, virtual=True)
            stepped.append(lane.record())
        if self._side_by_side:
            lane.use_turn(None)
            for event in stepped:
                lane.wait(event)  # edge: stepped -> put together
        if not self._counts_each_step:
            self.n_transitions = sum(self._staging.slot.count_valid(turn, slice(1, None)) for turn in turns)
        return [lead > 0 for lead in self._leads]

    def _react(self, turn: int, t: int, *, virtual: bool = False) -> None:
        """Let the actor react to row ``t``: its infos are written into row ``t``, its actions into row ``t + 1``.

        Before that, each group reacts to the true last observations of the episodes that ended with the last step.
        """
        self._progress.begin("actor.step")
        self._progress.row = t
        begun = self._nobody[turn]
        # At row 0 `_start_fragment` has reset the recurrent state. A reset before the virtual reaction to row T is not
        # kept: it is done again at row 0 of the next fragment.
        if t and self._behaviour.spec.recurrent:
            begun = [_begun(self._staging, self._behaviour, turn, group, t) for group in self._turns[turn]]
        if not self._on_device:
            self._react_groups(turn, t, begun, virtual)
            return
        # edge: filled -> copy (the environments have filled the row, which a captured step uploads)
        self._lane.launch(partial(self._react_groups, turn, t, begun, virtual))
        if not virtual:
            self._lane.counters.steps += 1
            self._actions[turn] = self._lane.record(spent=self._actions[turn])

    def _react_groups(self, turn: int, t: int, begun: Sequence[Sequence[int]], virtual: bool) -> None:
        """React as :meth:`_react` says. On a device upload the row, unless that is done, and copy the actions down."""
        behaviour, staging, copies, ended = self._behaviour, self._staging, self._copies[t], self._ended[turn]
        for group, resets in zip(self._turns[turn], begun, strict=True):
            if ended:
                react_to_last(staging, behaviour, group, ended, self.finals)
            if self._uploads_in_step[turn]:
                step = behaviour.captured_step(group, virtual=virtual, copies=copies)
                if step is not None:
                    step()
                    return  # the step has copied the actions as well
                if copies.up is not None:
                    upload(staging, self._lane, turn, copies.up, t)
            views = staging.groups[group.number]
            behaviour.react_into(group, views.inputs[t], views.answers[t], begun=resets, virtual=virtual)
        if copies.down is not None:
            download(staging, self._lane, turn, copies.down)

    def _wait_for_actions(self, turn: int, t: int) -> None:
        """Wait until the actions of step ``t`` are on the host, and clear host row ``t + 1`` for the environments."""
        self._progress.row = t
        if self._on_device:
            self._progress.begin("actor.step")
            began = self._lane.now
            # edge: copied -> refill (row t - 1 of the ring has gone up before the actions for row t + 1 come down)
            self._lane.host_wait(self._actions[turn])
            self._waited[turn] = self._lane.now - began
        self._progress.begin("env.step")
        self._staging.slot.clear(turn, self._rows[t + 1])

    def _start_steps(self, following: int) -> None:
        """Start the steps that are due, except those that are to start later and whose actions have not come down yet.

        ``following`` is the next turn. If its step is due, it is started now, since this thread waits for it next.
        """
        for turn, t in list(self._due.items()):
            if turn == following or not self._starts_later[turn] or self._has_actions(turn):
                del self._due[turn]
                self._wait_for_actions(turn, t)
                self._torch_context.call_environments(self._stepper.start_step, turn, self._steps[t])

    def _has_actions(self, turn: int) -> bool:
        """Return whether the actions of a turn's latest row have come down."""
        self._progress.begin("actor.step")  # an error of the device is raised here
        return self._lane.reached(self._actions[turn])

    def _note_what_came_first(self, turn: int, waited: float) -> None:
        """Note whether the environments of a turn were ready before the actions of the previous turn came down.

        ``waited`` is the number of seconds of the wait for the environments. If this thread has waited for the actions
        as well, whichever wait was shorter counts as the first to be ready.
        """
        before = (turn - 1) % len(self._turns)
        came_first = not self._has_actions(before) if before in self._due else waited <= self._waited[before]
        self._leads[before] += 1 if came_first else -1

    def _finish_step(self, turn: int, t: int) -> None:
        """Make step ``t``, or wait until it is made in the background, and bring row ``t + 1`` to the actor."""
        stepper, staging = self._stepper, self._staging
        if stepper.steps_in_background:
            self._start_steps(turn)
            self._progress.row = t
            self._progress.begin("env.step")
            began = self._lane.now
            ended = self._torch_context.call_environments(stepper.finish_step, turn)
            self._note_what_came_first(turn, self._lane.now - began)
        else:
            self._wait_for_actions(turn, t)
            ended = self._torch_context.call_environments(stepper.step, turn, self._steps[t])
        if self._counts_each_step:
            self.n_transitions += staging.slot.count_valid(turn, self._rows[t + 1])
        if self._on_device and not self._uploads_in_step[turn]:
            self._progress.begin("an upload")
            # edge: filled -> copy (the environments have filled the row)
            upload(staging, self._lane, turn, self._rows[t + 1], t + 1)
        self._ended[turn] = {}
        if self._final and ended:
            rows, now, then = staging.slot.turns[turn], self._rows[t], self._rows[t + 1]
            complete_last(rows.last, rows.rows[now], rows.rows[then], ended)
            if self._on_device:
                self._lane.copy(staging.lasts[turn].memory, staging.slot.lasts[turn].memory)
            self._ended[turn] = reserve_places(self.finals, staging, turn, t, ended)


def _start_fragment(staging: Staging, behaviour: Behaviour, turns: Sequence[Sequence[Group]], lane: Lane) -> None:
    """Reset the recurrent state where an episode has just begun at row 0, and copy it into the staging buffers."""
    members = [(turn, group) for turn, groups in enumerate(turns) for group in groups]
    begun = [(group, _begun(staging, behaviour, turn, group, 0)) for turn, group in members]

    def start() -> None:
        for group, where in begun:
            views = staging.groups[group.number]
            hx = behaviour.start_fragment(group, views.inputs[0].fin[0], where)
            if hx:
                torch._foreach_copy_(views.hx, hx, non_blocking=True)

    lane.launch(start)


def _begun(staging: Staging, behaviour: Behaviour, turn: int, group: Group, t: int) -> Sequence[int]:
    """List the environments of a group whose recurrent state is to be reset at row ``t``.

    The host rows have this already, so the host need not wait for the device.
    """
    if not behaviour.spec.recurrent:
        return ()
    fin = staging.slot.turns[turn].rows[staging.host_row(t)].fin[staging.groups[group.number].part.inside]
    where: Sequence[int] = fin.nonzero()[0].tolist()
    return where
