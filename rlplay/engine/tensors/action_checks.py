"""Checks actions against their space on the device, for a whole fragment at once: no step waits for it."""

from __future__ import annotations

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..envs.spaces import Field

__all__ = ["NONE_WRONG", "ActionCheck"]

NONE_WRONG = 2**62
"""The index of the first wrong action if there is none."""


class ActionCheck:
    """Finds actions that are outside of their space: those of Discrete and the like out of range, NaN in a Box."""

    def __init__(self, fields: Nested, device: torch.device) -> None:
        """Take the fields of one part's action space."""
        self._fields: list[Field] = nested.leaves(fields)
        self._names = nested.names(fields, "act")
        self._tops = [
            None if f.n is None else torch.tensor(f.n, dtype=torch.int64, device=device) for f in self._fields
        ]

    def find(self, leaves: list[Tensor], index: Tensor, first: Tensor) -> None:
        """Lower ``first`` to the least index of a wrong action.

        Parameters
        ----------
        leaves : list of tensors, ``(T, b, ...)``
            The leaves of the actions.
        index : int64 tensor, ``(T, b)``
            The index of each action.
        first : int64 tensor, ``(1,)``
            The least index so far; is written to.
        """
        for leaf, top in zip(leaves, self._tops, strict=True):
            if top is not None:
                wrong = (leaf < 0) | (leaf >= top)
            elif leaf.is_floating_point():
                wrong = leaf.isnan()
            else:
                continue
            wrong = wrong.reshape(*index.shape, -1).any(-1)
            torch.minimum(first, torch.where(wrong, index, NONE_WRONG).min(), out=first)

    def error(self, t: int, env: int, fragment: int) -> ValueError:
        """Return the error for a wrong action."""
        expected = []
        for field, name in zip(self._fields, self._names, strict=True):
            if field.n is not None:
                expected.append(f"`{name}` an integer from 0 on and below {field.n}")
            elif field.dtype.kind == "f":
                expected.append(f"`{name}` without NaN")
        return ValueError(
            f"the actor's action for environment {env}, at step {t} of fragment {fragment}, is outside of its action "
            f"space: expected {', '.join(expected)} (rlplay.sampling draws -1 where logits are NaN). The environment "
            "has been stepped with it, since actions on a device are checked a fragment at a time."
        )
