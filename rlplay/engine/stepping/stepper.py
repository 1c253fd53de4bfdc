"""Who steps the environments, and in which turns: what collecting needs to know of it, and the simplest case.

Neither torch nor threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...nested import Nested
from ..envs.rows import Array, Episode, OutcomeRow, SlabLayout, StateRow

__all__ = ["Stepper", "SlotViews", "Step"]


class Step(NamedTuple):
    """Which step is to be made: where its rows are, and how."""

    slot: int
    t: int
    final: bool
    sticky: bool


class Stepper(Protocol):
    """Whoever steps the environments for a collector, group by group: at once, or while others are inferred.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        What one observation, and one action, looks like.
    turns : list of lists of int
        Which groups go together: all of a turn are inferred, then all of them step.
    """

    obs: Nested
    act: Nested
    turns: list[list[int]]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def memory(self, size: int) -> Array | None:
        """Make memory for a slot, if it cannot be just any."""

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Get to know the slots, and write the very first row of the first."""

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""

    def start_step(self, turn: int, step: Step) -> None:
        """Set out to make a step: row ``t`` is complete, and the actions are in row ``t + 1``."""

    def finish_step(self, turn: int) -> list[int]:
        """Wait until the step is made; return whose episode ended with it."""

    def finish_all(self) -> None:
        """Wait until all steps are made that anybody has set out to; they still arrive in their turns."""

    def episodes(self) -> list[Episode]:
        """Take the episodes that have ended since somebody last took them away, ordered by time and environment."""

    def kill(self) -> None:
        """Give up whatever is under way, if that can be done. Called from another thread."""

    def close(self) -> list[str]:
        """End: close what was made for this feed; return what went wrong with it."""


class SlotViews(Protocol):
    """What a stepper sees of a slot."""

    rows: list[StateRow]
    outcomes: list[OutcomeRow]
    last_row: StateRow
    slab_layout: SlabLayout
