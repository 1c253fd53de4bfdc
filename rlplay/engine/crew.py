"""Who steps the environments, and in which turns: what collecting needs to know of it, and the simplest case.

Neither torch nor threads.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple, Protocol

from ..nested import Nested
from .rows import Array, Cuts, Episode, Marks, Row

__all__ = ["Alone", "Crew", "Faces", "SlotViews", "Step"]


class Faces(Protocol):
    """Environments as rows see them: a list of them, or one vector environment."""

    obs: Nested
    act: Nested
    episodes: list[Episode]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def begin(self, row: Row) -> None:
        """Write the very first row."""

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""

    def step(self, now: Row, then: Row, marks: Marks, last: Row | None, *, sticky: bool) -> list[int]:
        """Carry out the actions in ``then``, and write what follows; return whose episode ended."""

    def render(self) -> None:
        """Let the environments show themselves."""

    def close(self) -> list[str]:
        """Close what was made for this feed; return what went wrong with it."""


class Step(NamedTuple):
    """Which step is to be made: where its rows are, and how."""

    slot: int
    t: int
    final: bool
    sticky: bool


class Crew(Protocol):
    """Whoever steps the environments for a collector, group by group: at once, or while others are inferred.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.space.Field`
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

    def settle_in(self, slots: Sequence[SlotViews]) -> None:
        """Get to know the slots, and write the very first row of the first."""

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""

    def depart(self, turn: int, step: Step) -> None:
        """Set out to make a step: row ``t`` is complete, and the actions are in row ``t + 1``."""

    def arrive(self, turn: int) -> list[int]:
        """Wait until the step is made; return whose episode ended with it."""

    def rest(self) -> None:
        """Wait until all steps are made that anybody has set out to; they still arrive in their turns."""

    def episodes(self) -> list[Episode]:
        """Take the episodes that have ended since somebody last took them away, ordered by time and environment."""

    def kill(self) -> None:
        """Give up whatever is under way, if that can be done. Called from another thread."""

    def close(self) -> list[str]:
        """End: close what was made for this feed; return what went wrong with it."""


class SlotViews(Protocol):
    """What a crew sees of a slot."""

    rows: list[Row]
    marks: list[Marks]
    last_row: Row
    cuts: Cuts


class Alone:
    """Steps all the environments at once, in the collector's own thread."""

    def __init__(self, faces: Faces, groups: Sequence[slice]) -> None:
        self._faces, self._slots = faces, list[SlotViews]()
        self._ended: list[int] = []
        self.obs, self.act = faces.obs, faces.act
        self.turns = [list(range(len(groups)))]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""
        return self._faces.n_envs

    def memory(self, size: int) -> Array | None:
        """Leave it to others: any memory will do."""
        return None

    def settle_in(self, slots: Sequence[SlotViews]) -> None:
        """Get to know the slots, and write the very first row of the first."""
        self._slots = list(slots)
        self._faces.begin(slots[0].rows[0])

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""
        self._faces.release()

    def depart(self, turn: int, step: Step) -> None:
        """Make the step."""
        slot = self._slots[step.slot]
        now, then = slot.rows[step.t : step.t + 2]
        last = slot.last_row if step.final else None
        self._ended = self._faces.step(now, then, slot.marks[step.t], last, sticky=step.sticky)

    def arrive(self, turn: int) -> list[int]:
        """Return whose episode ended."""
        return self._ended

    def rest(self) -> None:
        """Do nothing: nobody is under way."""

    def episodes(self) -> list[Episode]:
        """Take the episodes that have ended since somebody last took them away."""
        taken, self._faces.episodes = self._faces.episodes, []
        return taken

    def kill(self) -> None:
        """Do nothing: a thread cannot be killed."""

    def close(self) -> list[str]:
        """Close what was made for this feed."""
        return self._faces.close()
