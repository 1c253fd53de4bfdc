"""The interface of steppers, which step the environments for a collector. Must import neither torch nor threads."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol

from ...nested import Nested
from ..envs.rows import Array, Episode
from .blocks import SlotLayout, TurnRows

__all__ = ["SlotViews", "Step", "Stepper", "check_number", "in_order"]


class Step(NamedTuple):
    """A step of the environments: from row ``t`` of a fragment to row ``t + 1``."""

    slot: int
    """The number of the slot."""
    row: int
    """Where row ``t`` is among the rows of the slot. Row ``t + 1`` is the next one; after the last comes the first."""
    t: int
    final: bool
    """Whether the true last observations are to be written into the row for them (``TurnRows.last``)."""
    sticky: bool
    """Whether an environment whose episode ends stands still for the rest of the fragment."""


class Stepper(Protocol):
    """Steps the environments for a collector, one turn of groups after the other.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        The shape and dtype of one observation and of one action.
    groups : list of slice
        The environments of each group.
    turns : list of lists of int
        The groups of each turn, which step together. A vector environment may have several groups; otherwise each group
        is a turn of its own.
    steps_in_background : bool
        Whether steps are made while the collector does something else. Then it calls :meth:`start_step` once the
        actions are there, perhaps behind :meth:`finish_step` of the next turn, and :meth:`finish_step` later. Otherwise
        it calls :meth:`step` as late as it can, so that the actor reacts to the groups of other turns meanwhile.
    environments_are : str
        ``"list"`` if they are single environments, ``"vector"`` if they are vector environments.
    """

    obs: Nested
    act: Nested
    groups: list[slice]
    turns: list[list[int]]
    steps_in_background: bool
    environments_are: str

    def memory(self, size: int) -> Array | None:
        """Allocate ``size`` bytes for a slot; return None if the caller may use any memory."""

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Register the slots, and write the very first row into the first slot."""

    def release(self) -> None:
        """Begin a fragment: environments that stood still for the rest of the last fragment go on."""

    def step(self, turn: int, step: Step) -> list[int]:
        """Make a step of one turn; return which of its environments have ended their episode with it.

        Row ``t`` must be complete, and the actions must be in row ``t + 1``.
        """

    def start_step(self, turn: int, step: Step) -> None:
        """Start a step of one turn, as :meth:`step` makes it."""

    def finish_step(self, turn: int) -> list[int]:
        """Wait for the step of one turn; return which of its environments have ended their episode with it."""

    def finish_all(self) -> None:
        """Wait for every step that has been started. :meth:`finish_step` is still to be called for each of them."""

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call, ordered by time and environment."""

    def save_state(self, *, whole: bool) -> list[dict[str, Any]]:
        """Return the state of each environment, or vector environment, and of its episodes, between two fragments.

        Dicts of numbers, strings and bytes. Unless ``whole`` the environments themselves are left out.

        Raises
        ------
        TypeError
            Something in an environment cannot be saved.
        RuntimeError
            A worker process has died.
        """

    def load_state(self, saved: Sequence[dict[str, Any]]) -> None:
        """Put the environments and their episodes into states that :meth:`save_state` returned with ``whole``.

        Raises
        ------
        ValueError
            They are states of other environments.
        """

    def close(self) -> list[str]:
        """Close the environments that were made for this feed; return what went wrong in closing them."""


def in_order(ended: Iterable[tuple[int, Episode]]) -> list[Episode]:
    """Order episodes, each with the step that ended it, by time and environment."""
    return [episode for _, episode in sorted(ended, key=lambda one: (one[0], one[1].env))]


def check_number(saved: Sequence[dict[str, Any]], n: int) -> None:
    """Check that there are as many states as there are environments; a vector environment is one.

    Raises
    ------
    ValueError
        The numbers differ.
    """
    if len(saved) != n:
        raise ValueError(
            f"`state` does not fit this feed: it has the states of {len(saved)} environments, and there are {n}, where "
            "a vector environment counts as one. Pass environments like those of the feed that it was saved from."
        )


class SlotViews(Protocol):
    """What a stepper uses of a slot."""

    turns: list[TurnRows]
    layout: SlotLayout
