"""Steps all environments in the collector's own thread. Must not import torch."""

from __future__ import annotations

from collections.abc import Sequence

from ..envs.protocol import Environments
from ..envs.rows import Array, Episode
from .stepper import SlotViews, Step

__all__ = ["InlineStepper"]


class InlineStepper:
    """Steps all environments in the collector's own thread; all groups form one turn."""

    def __init__(self, environments: Environments, groups: Sequence[slice]) -> None:
        self._environments, self._slots = environments, list[SlotViews]()
        self._ended: list[int] = []
        self.obs, self.act = environments.obs, environments.act
        self.turns = [list(range(len(groups)))]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""
        return self._environments.n_envs

    def memory(self, size: int) -> Array | None:
        """Return None: any memory can be used."""
        return None

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Register the slots, and write the very first row into the first slot."""
        self._slots = list(slots)
        self._environments.begin(slots[0].rows[0])

    def release(self) -> None:
        """Begin a fragment: environments that stood still for the rest of the last fragment go on."""
        self._environments.release()

    def start_step(self, turn: int, step: Step) -> None:
        """Make the step."""
        slot = self._slots[step.slot]
        now, then = slot.rows[step.t : step.t + 2]
        last = slot.last_row if step.final else None
        self._ended = self._environments.step(now, then, slot.outcomes[step.t], last, sticky=step.sticky)

    def finish_step(self, turn: int) -> list[int]:
        """Return the indices of the environments whose episode ended with the step."""
        return self._ended

    def finish_all(self) -> None:
        """Do nothing: a step is complete when ``start_step`` returns."""

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call."""
        taken, self._environments.episodes = self._environments.episodes, []
        return taken

    def kill(self) -> None:
        """Do nothing: a thread cannot be killed."""

    def close(self) -> list[str]:
        """Close the environments that were made for this feed; return what went wrong."""
        return self._environments.close()
