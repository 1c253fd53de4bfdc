"""Groups of environments, each inferred as one batch with random generators of its own."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import torch

from ...nested import Nested
from ...sampling import Source
from ..memory.lane import Lane, Place

__all__ = ["Group", "split"]


class Group:
    """A contiguous part of the environments, inferred as a batch of its own.

    Attributes
    ----------
    number : int
        Its place among the groups.
    columns : slice
        The environments, out of all.
    hx : nested tensors, ``(L, b, ...)``
        The recurrent state before the next step (not yet reset where an episode has just begun).
    shapes : pair of lists of torch.Size
        Of the leaves of the actor's answers, actions first, and of those of the recurrent state.
    generator, virtual_generator : torch.Generator
        The random generators for actions, and for virtual steps. Only on the plain host do they have noise in stock:
        what is drawn in a captured step is drawn anew each time, and an eager one is to draw the same.
    """

    def __init__(self, index: int, columns: slice, seed: int, lane: Lane, *, key: int) -> None:
        """Seed the generators: by keys of two numbers, where environments have keys of one.

        ``key`` is the group's number among those of all collectors.
        """
        kind = Source if lane.shared(Place.ACTOR, Place.HOST) else torch.Generator
        self.number, self.columns = index, columns
        self.hx: Nested = ()
        self.shapes: tuple[list[torch.Size], list[torch.Size]]
        self.generator, self.virtual_generator = (
            kind(lane.actor_device).manual_seed(_seed_of(np.random.SeedSequence(seed, spawn_key=(key, use))))
            for use in (0, 1)
        )

    @property
    def width(self) -> int:
        """The number of environments in this group."""
        return int(self.columns.stop - self.columns.start)


def split(n_envs: int, groups: int) -> list[slice]:
    """Split the environments into contiguous parts, equal up to one (the first ones are the larger)."""
    edges = [int(part[0]) for part in np.array_split(np.arange(n_envs), groups)] + [n_envs]
    return [slice(start, stop) for start, stop in pairwise(edges)]


def _seed_of(sequence: np.random.SeedSequence) -> int:
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
