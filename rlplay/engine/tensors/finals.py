"""The finals of one fragment, of environments in torch.

Last observations and recurrent states of all transitions are kept on the device. At the end of the fragment the host
learns who has ended, which is its only wait. Then the actor reacts at full width: at first to the first episode that
has ended in each column, then to the second one in each column, and so on. So there are as many reactions as episodes
have ended in one column, however many there are side by side, and each environment keeps its place in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ... import nested
from ...dtypes import move
from ...nested import Nested
from ..acting.behaviour import Behaviour
from ..acting.group import Group
from ..collector.finals import blank_finals, on_consumer
from ..core import Final, Fragment
from ..envs.rows import Array
from ..memory.lane import Lane, Place
from .environment import FINAL_NAMES
from .loop import everyone
from .memory import FragmentMemory, GroupMemory, TurnMemory

__all__ = ["check_lasts", "collect_final"]


def check_lasts(ended: Array, columns: slice, without: set[int]) -> None:
    """Check that last observations were given for each transition that has ended an episode.

    Parameters
    ----------
    ended : bool array ``(T, B)``
    columns : slice
        The environments of a turn.
    without : set of int
        The transitions for which its environment has given none.

    Raises
    ------
    ValueError
        One is missing.
    """
    missing = [t for t in sorted(without) if ended[t, columns].any()]
    if missing:
        raise ValueError(
            f"`final=True` needs the true last observations, but the infos of step {missing[0]}, at which an episode "
            f"has ended, have none of {', '.join(map(repr, FINAL_NAMES))}: have the vector environment tell them, or "
            "do without `final`."
        )


def collect_final(
    ended: Array,
    memory: FragmentMemory,
    behaviour: Behaviour,
    groups: Sequence[Group],
    turns: Sequence[Sequence[int]],
    layout: Fragment,
    lane: Lane,
) -> Final:
    """Let the actor react to the last observations of the episodes that ended, and stage them.

    Parameters
    ----------
    ended : bool array ``(T, B)``, on the host
        Whether an episode ended with the transition.

    Returns
    -------
    Final
        On the consumer's device, in memory of the collector's.
    """
    t, b = ended.nonzero()
    stacked = blank_finals(len(t), layout, lane)
    for turn, members in enumerate(turns):
        for group in (groups[g] for g in members):
            _collect_group(t, b, ended, memory, turn, group, behaviour, stacked, lane)
    return on_consumer(t, b, *stacked, lane)


def _collect_group(
    t: Array,
    b: Array,
    ended: Array,
    memory: FragmentMemory,
    turn: int,
    group: Group,
    behaviour: Behaviour,
    stacked: tuple[Nested, Nested],
    lane: Lane,
) -> None:
    """Write the finals of one group into their places."""
    here = ended[:, group.columns]
    order = np.cumsum(here, axis=0) - 1
    n_reactions = int(order[-1].max()) + 1
    if not n_reactions:
        return
    (places,) = np.nonzero((b >= group.columns.start) & (b < group.columns.stop))
    t_here, b_here = t[places], b[places] - group.columns.start
    at = np.zeros((2, n_reactions, group.width), np.int64)  # the transition of each reaction, and whether there is one
    which = order[t_here, b_here]
    at[0, which, b_here], at[1, which, b_here] = t_here, 1
    listed = np.stack([places, t_here, b_here, which])
    columns, index = (_to_device(x, lane) for x in (at, listed))
    part = memory.groups[group.number]
    found = [lane.empty(Place.ACTOR, (n_reactions, *row.shape[1:]), row.dtype) for row in part.answers[-1]]
    for j in range(n_reactions):
        lane.launch(partial(_react, memory.turns[turn], part, group, behaviour, columns, j, [x[j] for x in found]))

    def gather() -> None:
        places, t, b, j = index
        lasts = _lasts_of(memory.turns[turn], part)
        for target, rows in zip(nested.leaves(stacked[0]), lasts, strict=True):
            _put(target, places, move(lambda x: x[t, b], rows))
        for target, rows in zip(nested.leaves(stacked[1]), found, strict=True):
            _put(target, places, move(lambda x: x[j, b], rows))

    lane.launch(gather)


def _react(
    turn: TurnMemory, part: GroupMemory, group: Group, behaviour: Behaviour, columns: Tensor, j: int, into: list[Tensor]
) -> None:
    """React to the ``j``-th last observation of each column of a group, and write the infos ``(b, ...)``.

    Columns without one get their state at row 0.
    """
    state, rows = part.last_input, part.part.state
    (t, has), b = columns[:, j], torch.arange(group.width, device=columns.device)

    def pick(target: Tensor, source: Tensor, at: Tensor) -> None:
        _assign(target[0], move(lambda x: x[at, b], source))

    pick(state.stepno, rows.stepno, t)
    state.stepno.add_(1)
    pick(state.rew, rows.rew, t + 1)
    for target, source in zip(nested.leaves(state.act), nested.leaves(rows.act), strict=True):
        pick(target, source, t + 1)
    state.fin.fill_(False)
    for target, source, first in zip(
        nested.leaves(state.obs), _lasts_of(turn, part), nested.leaves(rows.obs), strict=True
    ):
        mask = (has != 0).view(-1, *(1,) * (source.ndim - 2))
        picked = move(lambda x, other, mask=mask: torch.where(mask, x[t, b], other[0]), source, first)
        _assign(target[0], picked)
    kept, structure = group.hx, nested.structure(group.hx)
    group.hx = structure.unflatten([rows[t, :, b].movedim(0, 1).contiguous() for rows in part.hxs])
    try:
        # the mask `fin` is all False: the recurrent state is taken as it is, also by compiled steps
        answer = behaviour.react_to_last(group, state, begun=everyone(behaviour, group))
    finally:
        group.hx = kept
    for target, value in zip(into, answer[behaviour.spec.n_acts :], strict=True):
        target.copy_(value[0])


def _lasts_of(turn: TurnMemory, part: GroupMemory) -> list[Tensor]:
    """Return the leaves of a group's last observations, ``(T, b, ...)``."""
    inside = part.part.inside
    if turn.lasts:
        return [leaf[:, inside] for leaf in turn.lasts]
    return [leaf[1:] for leaf in nested.leaves(part.part.state.obs)]  # NEXT_STEP: the next row has it


def _to_device(array: Array, lane: Lane) -> Tensor:
    source = torch.from_numpy(array)
    return source if lane.shared(Place.ACTOR, Place.HOST) else lane.clone(source, Place.ACTOR)


def _put(target: Tensor, places: Tensor, values: Tensor) -> None:
    move(lambda x, other: x.index_copy_(0, places, other), target, values.to(target.dtype))


def _assign(target: Tensor, values: Tensor) -> None:
    move(lambda x, other: x.copy_(other), target, values)
