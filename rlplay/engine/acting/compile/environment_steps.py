"""Work that is captured behind the step of a group, in the same graph: the step of an environment on the device."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from .step_checks import describe_error

__all__ = ["EnvironmentSteps"]


class EnvironmentSteps:
    """Steps of environments that are captured behind the real steps of groups, by the number of the group."""

    def __init__(self) -> None:
        self._works: dict[int, Callable[[Tensor], None]] = {}
        self._generators: dict[int, list[torch.Generator]] = {}

    def __contains__(self, number: int) -> bool:
        return number in self._works

    def __bool__(self) -> bool:
        return bool(self._works)

    def add(self, number: int, work: Callable[[Tensor], None], generators: Sequence[torch.Generator]) -> None:
        """Add the work of a group, which takes the index of the row that it writes, and what it draws from."""
        self._works[number], self._generators[number] = work, list(generators)

    def run(self, number: int, index: Tensor) -> None:
        """Do the work of a group, if it has any; ``index`` is an int64 tensor ``(1,)``."""
        if number in self._works:
            self._works[number](index)

    def generators(self, number: int) -> list[torch.Generator]:
        """Return the generators that the work of a group draws from."""
        return self._generators.get(number, [])

    def drop(self, error: Exception) -> str:
        """Forget all of them, since capturing them has failed; return a warning."""
        self._works.clear()
        self._generators.clear()
        return (
            "`compile=True`: the vector environment says that its step can be captured (`capturable`), but it runs "
            f"eagerly, since capturing it with the actor's failed with {describe_error(error)}."
        )
