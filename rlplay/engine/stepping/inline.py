"""Steps all environments in the collector's own thread. Must not import torch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..envs.dialects import is_vector
from ..envs.make import close_all
from ..envs.protocol import Environments
from ..envs.rows import Array, Episode, OutcomeRow, StateRow
from .blocks import TurnRows
from .shares import divide_into_turns
from .stepper import SlotViews, Step, check_number, in_order

__all__ = ["InlineStepper"]


class InlineStepper:
    """Steps the environments of one turn after another, in the collector's own thread.

    Vector environments that have workers of their own make their steps in the background.
    """

    def __init__(self, turns: Sequence[Environments], groups: Sequence[slice], first_env: int = 0) -> None:
        """Take the environments of each turn.

        ``groups`` and ``first_env`` are as for :func:`~rlplay.engine.stepping.shares.divide_into_turns`.

        Raises
        ------
        ValueError
            The environments of different turns have different spaces.
        """
        self._environments = list(turns)
        self.obs, self.act = turns[0].obs, turns[0].act
        self.groups, self.turns = divide_into_turns(turns, groups, first_env)
        self.steps_in_background = all(one.steps_in_background for one in turns)
        self.environments_are = "vector" if any(map(is_vector, turns[0].instances)) else "list"
        # for each slot, turn and row: what a step from there reads and writes
        self._steps: list[list[list[tuple[StateRow, StateRow, OutcomeRow]]]] = []
        self._slots: list[list[TurnRows]] = []
        self._started: list[Step | None] = [None for _ in turns]
        self._ended: list[list[int]] = [[] for _ in turns]
        self._episodes: list[tuple[int, Episode]] = []

    def memory(self, size: int) -> Array | None:
        """Return None: any memory can be used."""
        return None

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Register the slots, and write the very first row into the first slot."""
        self._slots = [slot.turns for slot in slots]
        self._steps = [[rows.steps() for rows in turns] for turns in self._slots]
        for environments, rows in zip(self._environments, self._slots[0], strict=True):
            environments.begin(rows.rows[0])

    def release(self) -> None:
        """Begin a fragment: environments that stood still for the rest of the last fragment go on."""
        for environments in self._environments:
            environments.release()

    def step(self, turn: int, step: Step) -> list[int]:
        """Make a step of one turn; return which of its environments have ended their episode with it."""
        environments = self._environments[turn]
        now, then, outcome = self._steps[step.slot][turn][step.row]
        last = self._slots[step.slot][turn].last if step.final else None
        ended = environments.step(now, then, outcome, last, sticky=step.sticky)
        if environments.episodes:
            self._episodes += [(step.t, episode) for episode in environments.episodes]
            environments.episodes = []
        return ended

    def start_step(self, turn: int, step: Step) -> None:
        """Start a step of one turn, which its environments make in the background."""
        self._environments[turn].start(self._steps[step.slot][turn][step.row][1])
        self._started[turn] = step

    def finish_step(self, turn: int) -> list[int]:
        """Wait for the step of one turn; return which of its environments have ended their episode with it."""
        self._finish(turn)
        return self._ended[turn]

    def _finish(self, turn: int) -> None:
        step, self._started[turn] = self._started[turn], None
        if step is not None:
            self._ended[turn] = self.step(turn, step)

    def finish_all(self) -> None:
        """Wait for every step that has been started. :meth:`finish_step` is still to be called for each of them."""
        for turn in range(len(self._started)):
            self._finish(turn)

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call, ordered by time and environment."""
        taken, self._episodes = self._episodes, []
        return in_order(taken)

    def save_state(self, *, whole: bool) -> list[dict[str, Any]]:
        """Return the state of each environment, or vector environment, and of its episodes, in order."""
        return [one for environments in self._environments for one in environments.save_state(whole=whole)]

    def load_state(self, saved: Sequence[dict[str, Any]]) -> None:
        """Put the environments and their episodes into states that :meth:`save_state` returned with ``whole``."""
        check_number(saved, sum(len(environments.instances) for environments in self._environments))
        start = 0
        for environments in self._environments:
            stop = start + len(environments.instances)
            environments.load_state(saved[start:stop])
            start = stop

    def close(self) -> list[str]:
        """Close the environments that were made for this feed; return what went wrong."""
        return close_all(self._environments)
