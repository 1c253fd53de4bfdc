"""What flows from the learner's actor to its behaviour copy."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .plain_attributes import NO_CHANGES, PlainChanges

__all__ = ["Snapshot"]


class Snapshot(NamedTuple):
    """An actor's weights, modes and changed plain attributes at one moment."""

    weights: list[Tensor]
    """The parameters, then the buffers; empty if the copy has taken them over already."""
    modes: list[bool]
    """The train/eval mode of each module, in the order of ``named_modules()``."""
    plain: PlainChanges = NO_CHANGES
    """The learner's changes of plain attributes."""
