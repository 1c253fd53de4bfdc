"""What steppers ask of environments: a list of them, or one vector environment."""

from __future__ import annotations

from typing import Protocol

from ...nested import Nested
from .rows import Episode, OutcomeRow, StateRow

__all__ = ["Environments"]


class Environments(Protocol):
    """Environments as rows see them: a list of them, or one vector environment."""

    obs: Nested
    act: Nested
    episodes: list[Episode]

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""

    def begin(self, row: StateRow) -> None:
        """Write the very first row."""

    def release(self) -> None:
        """Let environments go on that stood still for the rest of a fragment."""

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then``, and write what follows; return whose episode ended."""

    def render(self) -> None:
        """Let the environments show themselves."""

    def close(self) -> list[str]:
        """Close what was made for this feed; return what went wrong with it."""
