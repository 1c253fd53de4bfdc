"""What sampling gives, and how it is gathered from the rows: transitions over several steps, and whole columns."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..engine import Final, Fragment, State
from ..nested import Nested
from .store import Store

__all__ = ["Batch", "Sequences", "sequences", "transitions"]


class Batch(NamedTuple):
    """``N`` transitions over ``m`` steps each: new tensors on the buffer's device.

    ``m`` is the number of steps asked for, or fewer where the episode or the fragment ends before, as in
    :func:`rlplay.algo.returns.multistep`. A transition that is not valid is never part of one. States are rows of one
    step, so that ``actor.step(*batch.state, hx=None, virtual=True)`` reacts to them, and the target of a value is
    ``batch.rew + batch.discount * value_of(batch.next)``.
    """

    state: State
    """``(1, N, ...)``: s_t, as the actor saw it."""
    act: Nested
    """Nested ``(1, N, ...)``, in the action space's own dtypes: a_t."""
    rew: Tensor
    """float32 ``(1, N)``: ``r_{t+1} + gamma r_{t+2} + ... + gamma^{m-1} r_{t+m}``."""
    discount: Tensor
    """float32 ``(1, N)``: ``gamma^m``, or 0 if there is no value beyond: the environment ended the episode, or it was
    cut, and its true last state is not known."""
    next: State
    """``(1, N, ...)``: s_{t+m}. Where an episode ended it is the true last state, as the engine shows it to the actor:
    the last observation, ``stepno + 1``, the action and the reward that led there, ``fin`` False. Without ``final`` it
    is the first row of the next episode instead, and ``discount`` is 0."""
    ids: Tensor
    """int64 ``(N,)``: the items' names, for :meth:`rlplay.replay.Prioritized.update`."""
    weight: Tensor
    """float32 ``(N,)``: importance weights, the largest of which is 1; ones from a uniform buffer."""


class Sequences(NamedTuple):
    """``N`` whole columns of fragments: new tensors on the buffer's device."""

    fragment: Fragment
    """``T`` steps of ``N`` columns, as if ``N`` environments had been collected from: state and actor
    ``(1+T, N, ...)``, env ``(T, N, ...)``, the recurrent state ``(L, N, ...)``. If the buffer has ``final``, so has the
    fragment, ordered by ``(t, b)`` with ``b`` the index in the batch. A column may be there more than once."""
    ids: Tensor
    """int64 ``(N,)``: the items' names, for :meth:`rlplay.replay.Prioritized.update`."""
    weight: Tensor
    """float32 ``(N,)``: importance weights, the largest of which is 1; ones from a uniform buffer."""


def transitions(store: Store, ids: Tensor, weight: Tensor, *, n_steps: int, gamma: float) -> Batch:
    """Gather transitions, looking ahead ``n_steps`` steps at most. The host does not wait for the device.

    Item ``i`` is transition ``(t, b)`` of fragment ``k``, ``i = (k T + t) B + b``.
    """
    state, env = store.columns.state, store.columns.env
    t, b = ids // store.n_envs % store.n_steps, ids % store.n_envs
    shelf = ids // (store.n_envs * store.n_steps) % store.n_shelves

    # the steps ahead, (n_steps, N): each is taken if it is there and valid, and follows on one that was taken
    steps = torch.arange(n_steps, device=ids.device)[:, None]
    ahead = (t + steps).clamp(max=store.n_steps - 1)
    ended = env.terminated[shelf, ahead, b] | env.truncated[shelf, ahead, b]
    taken = env.valid[shelf, ahead, b] & (t + steps < store.n_steps)
    taken[1:] &= ~ended[:-1]
    taken = taken.cumprod(dim=0) > 0
    m = taken.sum(dim=0)

    end = t + m - 1
    last = store.last[shelf, end, b]
    unknown = env.truncated[shelf, end, b] & (last < 0)  # then truncation counts as termination
    over = env.terminated[shelf, end, b] | unknown
    rew = state.rew[shelf, ahead + 1, b].masked_fill(~taken, 0) * gamma ** steps.float()
    return Batch(
        state=nested.map(lambda x: _rows(x, shelf, t, b)[None], state),
        act=nested.map(lambda x: _rows(x, shelf, t + 1, b)[None], state.act),
        rew=rew.sum(dim=0)[None],
        discount=(gamma ** m.float()).masked_fill(over, 0)[None],
        next=nested.map(lambda x: x[None], _arrived(store, shelf, end, b, last)),
        ids=ids,
        weight=weight,
    )


def sequences(store: Store, ids: Tensor, weight: Tensor) -> Sequences:
    """Gather whole columns. If the buffer has ``final``, the host waits for the device once, to learn of how many.

    Item ``i`` is column ``b`` of fragment ``k``, ``i = k B + b``.
    """
    shelf, b = ids // store.n_envs % store.n_shelves, ids % store.n_envs

    def column(x: Tensor) -> Tensor:
        return _rows(x, shelf, torch.arange(x.shape[1], device=ids.device)[:, None], b)

    fragment, last = nested.map(column, (store.columns, store.last))
    if store.lasts is not None:
        t, n = (last >= 0).nonzero(as_tuple=True)
        obs, actor = store.lasts[last[t, n]]
        fragment = fragment._replace(env=fragment.env._replace(final=Final(t, n, obs, actor)))
    return Sequences(fragment, ids, weight)


def _arrived(store: Store, shelf: Tensor, t: Tensor, b: Tensor, last: Tensor) -> State:
    """Gather the states that transitions led to: row ``t + 1``, or the true last state where it is known."""
    state = store.columns.state
    row: State = nested.map(lambda x: _rows(x, shelf, t + 1, b), state)
    if store.lasts is None:
        return row
    known = last >= 0
    obs, _ = store.lasts[last]

    def chosen(x: Tensor, instead: Tensor) -> Tensor:
        return torch.where(known.view(-1, *(1,) * (x.ndim - 1)), instead, x)

    return row._replace(
        stepno=chosen(row.stepno, state.stepno[shelf, t, b] + 1),
        obs=nested.map(chosen, row.obs, obs),
        fin=row.fin & ~known,
    )


def _rows(x: Tensor, shelf: Tensor, t: Tensor, b: Tensor) -> Tensor:
    """Gather ``x[shelf, t, b]``. On the CPU, ``index_select`` copies an image at once, indexing number by number."""
    _, n_rows, n_envs = x.shape[:3]
    at = (shelf * n_rows + t) * n_envs + b
    return x.flatten(0, 2).index_select(0, at.flatten()).view(*at.shape, *x.shape[3:])
