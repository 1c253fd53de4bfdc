"""The finals of one fragment: the true last observations of episodes that ended, and the actor's reactions to them.

This module must not import environments or devices: it uses the verbs of a lane, whatever kind of lane it is.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import torch
from numpy.typing import ArrayLike
from torch import Tensor

from ... import nested
from ...dtypes import as_movable
from ...nested import Nested
from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..core import Final, Fragment
from ..envs.rows import StateRow
from ..memory.lane import Lane, Place
from ..memory.layout import Leaf
from .staging import Staging

__all__ = [
    "Finals",
    "blank_finals",
    "complete_last",
    "on_consumer",
    "react_to_last",
    "reserve_places",
    "stage_final",
]


class Finals:
    """The episodes that ended in one fragment, in the order in which they ended.

    Attributes
    ----------
    t, b : list of int
        For each episode: the transition that ended it, and the environment.
    obs, actor : list of lists of tensors, on the actor's device
        For each episode: copies of the leaves of the true last observation, and of the info of the reaction to it.
    """

    def __init__(self) -> None:
        """Make empty lists."""
        self.t: list[int] = []
        self.b: list[int] = []
        self.obs: list[list[Tensor]] = []
        self.actor: list[list[Tensor]] = []


def complete_last(last: StateRow, now: StateRow, then: StateRow, ended: Sequence[int]) -> None:
    """Complete the row of true last observations to a row that the actor can react to as one batch.

    The environments whose episode goes on get their current observation: the batch keeps its width, and each of its
    states is one that occurs.

    Parameters
    ----------
    last : StateRow
        The row to complete. The stepper has written the true last observations into it.
    now, then : StateRow
        The rows before and after the step.
    ended : sequence of int
        The environments whose episode ended.
    """
    np.add(now.stepno, 1, out=last.stepno)
    last.rew[:], last.fin[:] = then.rew, False
    for source, target in zip(then.act, last.act, strict=True):
        target[...] = source
    going_on = np.ones(len(now.stepno), bool)
    going_on[ended] = False
    for source, target in zip(then.obs, last.obs, strict=True):
        target[going_on] = source[going_on]


def reserve_places(finals: Finals, staging: Staging, turn: int, t: int, ended: Sequence[int]) -> dict[int, int]:
    """Append the episodes of a turn that transition ``t`` has ended, still without their tensors.

    Returns
    -------
    dict
        For each environment of the turn whose episode ended: the place of the episode in ``finals``.
    """
    places = dict(zip(ended, range(len(finals.t), len(finals.t) + len(ended)), strict=True))
    finals.t.extend([t] * len(ended))
    finals.b.extend(staging.columns[turn].start + j for j in ended)
    for leaves in (finals.obs, finals.actor):
        leaves.extend([] for _ in ended)
    return places


def react_to_last(
    staging: Staging, behaviour: Behaviour, group: Group, places: Mapping[int, int], finals: Finals
) -> None:
    """React virtually to the true last observations of one group, and put copies into their places in ``finals``.

    The recurrent state is the one before the reset.

    Parameters
    ----------
    places : mapping
        Of the group's turn, from :func:`reserve_places`.
    """
    views = staging.groups[group.number]
    last, part = views.last_input, views.part.inside
    inside = {k: j - part.start for j, k in places.items() if part.start <= j < part.stop}
    if inside:
        info = behaviour.react_to_last(group, last)[behaviour.spec.n_acts :]
        obs = nested.leaves(last.obs)
        for k, j in inside.items():
            finals.obs[k] = [leaf[0, j].clone() for leaf in obs]
            finals.actor[k] = [leaf[0, j].clone() for leaf in info]


def stage_final(finals: Finals, layout: Fragment, lane: Lane) -> Final:
    """Stack the finals of a fragment on the consumer's device, in memory of the collector's."""
    obs, actor = blank_finals(len(finals.t), layout, lane)

    def stack() -> None:
        for tree, rows in ((obs, finals.obs), (actor, finals.actor)):
            for column, leaf in enumerate(nested.leaves(tree)):
                torch.stack([as_movable(parts[column]) for parts in rows], out=as_movable(leaf))

    if finals.t:
        lane.launch(stack)
    return on_consumer(finals.t, finals.b, obs, actor, lane)


def blank_finals(k: int, layout: Fragment, lane: Lane) -> tuple[Nested, Nested]:
    """Allocate memory on the actor's device for the observations and the infos of ``k`` finals, ``(k, ...)``.

    The blank fragment has no place for them, since their number is not known when the consumer allocates it.
    """

    def rows(leaf: Leaf) -> Tensor:
        return lane.empty(Place.ACTOR, (k, *leaf.shape), leaf.dtype)

    return nested.map(rows, layout.state.obs), nested.map(rows, layout.actor)


def on_consumer(t: ArrayLike, b: ArrayLike, obs: Nested, actor: Nested, lane: Lane) -> Final:
    """Bring finals from the actor's device, and their indices from the host, to the consumer's device."""
    if not lane.shared(Place.ACTOR, Place.CONSUMER):
        obs, actor = lane.clone((obs, actor), Place.CONSUMER)
    indices = tuple(torch.from_numpy(np.array(index, np.int64)) for index in (t, b))
    t, b = lane.clone(indices, Place.CONSUMER)
    return Final(t, b, obs, actor)
