"""Options of a rollout, and their checks."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import torch

from ..memory.lane import Lane

__all__ = ["Device", "Info", "at_least", "home_of", "seed_of"]

Device: TypeAlias = torch.device | str | Lane | None
Info: TypeAlias = Sequence[str] | Mapping[str, Any]


def at_least(name: str, value: Any, least: int) -> None:
    """See that an argument is an integer, and large enough."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def seed_of(seed: int | None) -> int:
    """Check the seed; ``None`` draws one from torch's global generator, so that ``torch.manual_seed`` repeats runs."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), device="cpu"))
    at_least("seed", seed, 0)
    return int(seed)


def home_of(actor: Any) -> torch.device:
    """Tell where an actor is: where its first parameter or buffer is, else the CPU."""
    tensors = [*actor.parameters(), *actor.buffers()] if isinstance(actor, torch.nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
