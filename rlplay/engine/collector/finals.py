"""The true last observations of episodes, and the actor's reactions to them: what becomes of ``final``.

Knows the verbs of a lane, not what they do. Not environments.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..core import Final, Fragment
from ..envs.rows import StateRow
from ..memory.lane import Lane, Place
from ..memory.layout import Leaf
from .staging import Staging

__all__ = ["Finals", "complete_last", "react_to_last", "stage_final"]


class Finals:
    """The episodes that ended in one fragment: where, and copies of the last observations and the reactions to them."""

    def __init__(self) -> None:
        """Begin with none."""
        self.t: list[int] = []
        self.b: list[int] = []
        self.obs: list[list[Tensor]] = []
        self.actor: list[list[Tensor]] = []


def complete_last(last: StateRow, now: StateRow, then: StateRow, ended: Sequence[int], first: int) -> None:
    """Make a whole row around the true last observations; the environments that go on see their current state.

    So the batch is as wide as ever, and every row of it is one that the actor could meet. The rows are those of the
    environments from ``first`` on.
    """
    np.add(now.stepno, 1, out=last.stepno)
    last.rew[:], last.fin[:] = then.rew, False
    for source, target in zip(then.act, last.act, strict=True):
        target[...] = source
    going_on = np.ones(len(now.stepno), bool)
    going_on[[j - first for j in ended]] = False
    for source, target in zip(then.obs, last.obs, strict=True):
        target[going_on] = source[going_on]


def react_to_last(
    staging: Staging,
    behaviour: Behaviour,
    groups: Sequence[Group],
    lane: Lane,
    turn: int,
    t: int,
    ended: Sequence[int],
    finals: Finals,
) -> None:
    """React to the true last observations, with the recurrent state that has not been reset yet; keep copies."""
    if not lane.shared(Place.ACTOR, Place.HOST):
        lane.copy(*staging.last_ups[turn])
    finals.t.extend([t] * len(ended))
    finals.b.extend(ended)

    def reacted() -> None:
        for group in groups:
            last = staging.lasts[group.number]
            inside = [j - group.columns.start for j in ended if group.columns.start <= j < group.columns.stop]
            if inside:
                _, info = behaviour.react(group, last, begun=(), virtual=True)
                obs = nested.leaves(last.obs)
                finals.obs.extend([leaf[0, j].clone() for leaf in obs] for j in inside)
                finals.actor.extend([leaf[0, j].clone() for leaf in info] for j in inside)

    lane.launch(reacted)


def stage_final(finals: Finals, layout: Fragment, lane: Lane) -> Final:
    """Gather the ends of a fragment where the consumer is, in memory of the collector's."""
    k = len(finals.t)

    def at(place: Place) -> tuple[Nested, Nested]:
        def rows(leaf: Leaf) -> Tensor:
            return lane.empty(place, (k, *leaf.shape), leaf.dtype)

        return nested.map(rows, layout.state.obs), nested.map(rows, layout.actor)

    near = at(Place.ACTOR)

    def stacked() -> None:
        for column, leaf in enumerate(nested.leaves(near[0])):
            torch.stack([parts[column] for parts in finals.obs], out=leaf)
        for column, leaf in enumerate(nested.leaves(near[1])):
            torch.stack([parts[column] for parts in finals.actor], out=leaf)

    if k:
        lane.launch(stacked)
    there = near if lane.shared(Place.ACTOR, Place.CONSUMER) else at(Place.CONSUMER)
    if there is not near:
        lane.copy(there, near)
    places = tuple(torch.tensor(index, dtype=torch.int64, device="cpu") for index in (finals.t, finals.b))
    t, b = (lane.empty(Place.CONSUMER, (k,), torch.int64) for _ in places)
    lane.copy((t, b), places)
    return Final(t, b, *there)
