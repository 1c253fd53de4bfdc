"""The vector environments of a feed that give torch tensors: their groups and turns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...nested import Nested
from ..envs.make import close_all
from ..stepping.shares import divide_into_turns
from .environment import TensorEnvironment

__all__ = ["TensorStepper", "in_torch_alone"]


class TensorStepper:
    """Vector environments that give torch tensors, each a turn. The collector calls the environments itself.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        The shape and dtype of one observation and of one action.
    environments : list of TensorEnvironment
        The environment of each turn.
    groups : list of slice
        The environments of each group.
    turns : list of lists of int
        The groups of each turn.
    environments_are : str
        ``"torch"``.
    """

    environments_are = "torch"
    obs: Nested
    act: Nested

    def __init__(self, turns: Sequence[TensorEnvironment], groups: Sequence[slice], first_env: int = 0) -> None:
        """Take the environments of each turn.

        ``groups`` and ``first_env`` are as for :func:`~rlplay.engine.stepping.shares.divide_into_turns`.

        Raises
        ------
        ValueError
            The environments have different spaces, or are on different devices.
        """
        self.environments = list(turns)
        self.obs, self.act = turns[0].obs, turns[0].act
        self.groups, self.turns = divide_into_turns(turns, groups, first_env)
        devices = list(dict.fromkeys(str(one.device) for one in turns))
        if len(devices) > 1:
            raise ValueError(f"the vector environments of one feed must be on one device, got {', '.join(devices)}.")

    def finish_all(self) -> None:
        """Do nothing: no step is under way between two steps."""

    def close(self) -> list[str]:
        """Close the environments that were made for this feed; return what went wrong."""
        return close_all(self.environments)  # type: ignore[arg-type]


def in_torch_alone(turns: Sequence[Any]) -> list[TensorEnvironment]:
    """Return the environments of each turn if they give torch tensors, an empty list if none does.

    Raises
    ------
    TypeError
        Some give NumPy arrays, and others give tensors.
    """
    found = [turn for turn in turns if isinstance(turn, TensorEnvironment)]
    if found and len(found) < len(turns):
        other = next(k for k, turn in enumerate(turns) if not isinstance(turn, TensorEnvironment))
        raise TypeError(
            f"vector environment {other} of `envs` gives NumPy arrays, and others give torch tensors: pass them to two "
            "feeds."
        )
    return found
