"""The interface of steppers, which step the environments for a collector. Must import neither torch nor threads."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ...nested import Nested
from ..envs.rows import Array, Episode, OutcomeRow, SlabLayout, StateRow

__all__ = ["Stepper", "SlotViews", "Step"]


class Step(NamedTuple):
    """A step of the environments: from row ``t`` of a slot to row ``t + 1``."""

    slot: int
    """The number of the slot."""
    t: int
    final: bool
    """Whether the true last observations are to be written into the slot's ``last_row``."""
    sticky: bool
    """Whether an environment whose episode ends stands still for the rest of the fragment."""


class Stepper(Protocol):
    """Steps the environments for a collector, one turn of groups after the other.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        The shape and dtype of one observation and of one action.
    turns : list of lists of int
        The groups of each turn. The actor reacts for all groups of a turn, then all of them step together.
    """

    obs: Nested
    act: Nested
    turns: list[list[int]]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def memory(self, size: int) -> Array | None:
        """Allocate ``size`` bytes for a slot; return None if the caller may use any memory."""

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Register the slots, and write the very first row into the first slot."""

    def release(self) -> None:
        """Begin a fragment: environments that stood still for the rest of the last fragment go on."""

    def start_step(self, turn: int, step: Step) -> None:
        """Start a step of one turn. Row ``t`` must be complete, and the actions must be in row ``t + 1``."""

    def finish_step(self, turn: int) -> list[int]:
        """Wait for the step of one turn; return the indices of the environments whose episode ended with it."""

    def finish_all(self) -> None:
        """Wait for every step that has been started. :meth:`finish_step` is still to be called for each of them."""

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call, ordered by time and environment."""

    def kill(self) -> None:
        """Abandon the steps under way, where that is possible. Called from another thread."""

    def close(self) -> list[str]:
        """Close the environments that were made for this feed; return what went wrong in closing them."""


class SlotViews(Protocol):
    """The numpy views of a slot that a stepper uses."""

    rows: list[StateRow]
    outcomes: list[OutcomeRow]
    last_row: StateRow
    slab_layout: SlabLayout
