"""The loop over the steps of one fragment, of environments in torch. The host launches, and waits for nothing."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

import torch

from ... import nested
from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..acting.torch_context import TorchContext
from ..concurrency.progress import Progress
from ..memory.lane import Lane, Place
from .environment import TensorEnvironment
from .memory import FragmentMemory

__all__ = ["Loop", "everyone"]


def everyone(behaviour: Behaviour, group: Group) -> Sequence[int]:
    """Return all environments of a group if the actor has a recurrent state, which is then reset by a mask; else none.

    Which episodes have begun is known on the device alone.
    """
    return range(group.width) if behaviour.spec.recurrent else ()


class Loop:
    """The loop over the steps of one fragment.

    Attributes
    ----------
    without_last : list of sets of int
        For each turn: the transitions for which the environment has given no last observations, although they are
        needed if an episode has ended there. Complete once the device has done the steps.
    """

    def __init__(
        self,
        memory: FragmentMemory,
        behaviour: Behaviour,
        groups: Sequence[Group],
        turns: Sequence[Sequence[int]],
        environments: Sequence[TensorEnvironment],
        lane: Lane,
        progress: Progress,
        torch_context: TorchContext,
    ) -> None:
        """Take what a fragment needs; row 0 is filled in already."""
        self._memory, self._behaviour, self._environments = memory, behaviour, environments
        self._turns = [[groups[g] for g in members] for members in turns]
        self._lane, self._progress, self._torch_context = lane, progress, torch_context
        self._on_device = not lane.shared(Place.ACTOR, Place.HOST)
        self._together = [behaviour.takes_environment(members[-1]) for members in self._turns]
        self.without_last: list[set[int]] = [set() for _ in turns]

    def run(self, pass_gate: Callable[[], None]) -> None:
        """Make all steps, and the virtual reaction to the last row.

        ``pass_gate`` is called before each step; it may wait, for a pause, or raise, to stop the collector.
        """
        progress, lane, n_steps = self._progress, self._lane, self._memory.n_steps
        progress.begin("actor.reset")
        lane.launch(self._start)
        for t in range(n_steps):
            pass_gate()
            progress.row = t
            for turn in range(len(self._turns)):
                self._step(turn, t)
        progress.begin("actor.step")
        progress.row = n_steps
        for turn in range(len(self._turns)):
            lane.launch(partial(self._react, turn, n_steps, virtual=True))

    def _start(self) -> None:
        """Reset the recurrent state where an episode has just begun at row 0, and copy it."""
        for group in (group for members in self._turns for group in members):
            memory = self._memory.groups[group.number]
            fin = memory.inputs[0].fin[0]
            hx = self._behaviour.start_fragment(group, fin, everyone(self._behaviour, group))
            if hx:
                torch._foreach_copy_(memory.hx, hx)

    def _step(self, turn: int, t: int) -> None:
        """Let the actor react to row ``t`` and the environment carry out the actions, which gives row ``t + 1``.

        That is one launch where actor and environment may be captured together, else two.
        """
        progress, lane = self._progress, self._lane
        progress.begin("actor.step")
        if self._together[turn]:
            lane.launch(partial(self._react_and_step, turn, t))
        else:
            lane.launch(partial(self._react, turn, t))
            progress.begin("env.step")
            progress.env = self._environments[turn].number
            lane.launch(partial(self._step_environment, turn, t))
        if self._on_device:
            lane.counters.steps += 1

    def _react_and_step(self, turn: int, t: int) -> None:
        together = self._behaviour.captured_step(self._turns[turn][-1], virtual=False) is not None
        self._react(turn, t)
        if not together:
            self._step_environment(turn, t)

    def _react(self, turn: int, t: int, *, virtual: bool = False) -> None:
        behaviour = self._behaviour
        for group in self._turns[turn]:
            memory = self._memory.groups[group.number]
            # at row 0 `_start` has reset the recurrent state
            begun = everyone(behaviour, group) if t else ()
            behaviour.react_into(group, memory.inputs[t], memory.answers[t], begun=begun, virtual=virtual)
            if memory.hxs and not virtual:
                torch._foreach_copy_([rows[t] for rows in memory.hxs], nested.leaves(group.hx))

    def _step_environment(self, turn: int, t: int) -> None:
        memory = self._memory.turns[turn]
        given = self._environments[turn].step(
            memory.rows[t], memory.rows[t + 1], memory.last_rows[t], self._torch_context.call_environments, memory.acts
        )
        if not given:
            self.without_last[turn].add(t)
