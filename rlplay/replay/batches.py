"""The types of samples (multi-step transitions, whole columns), and functions that gather samples from the store.

The id ``i`` of an item determines where the item is. Transition ``(t, b)`` of fragment number ``k`` has the id
``i = (k T + t) B + b``; column ``b`` of fragment number ``k`` has the id ``i = k B + b``.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..dtypes import move
from ..engine import Final, Fragment, State
from ..nested import Nested
from .store import Store

__all__ = ["Batch", "Sequences", "gather_sequences", "gather_transitions"]


class Batch(NamedTuple):
    """``N`` transitions over ``m`` steps each: new tensors on the buffer's device.

    ``m`` is the ``n_steps`` of the call, or smaller if the episode or the fragment ends earlier, as in
    :func:`rlplay.algo.returns.multistep`. All ``m`` steps are valid. The leading dimension of states is a single row,
    so that they can be passed to the actor: ``actor.step(*batch.state, hx=None, virtual=True)``. The target of a value
    is ``batch.rew + batch.discount * value_of(batch.next)``.
    """

    state: State
    """``(1, N, ...)``: ``s_t``, the inputs of the actor."""
    act: Nested
    """Nested ``(1, N, ...)``, in the dtypes of the action space: ``a_t``."""
    rew: Tensor
    """float32 ``(1, N)``: ``r_{t+1} + gamma r_{t+2} + ... + gamma^{m-1} r_{t+m}``."""
    discount: Tensor
    """float32 ``(1, N)``: ``gamma^m``; 0 if the environment terminated the episode, or if the episode was truncated and
    its true last state is not known."""
    next: State
    """``(1, N, ...)``: ``s_{t+m}``. Where an episode ended, this is the true last state, as the engine passes it to the
    actor: the last observation, ``stepno + 1``, the action and the reward that led to it, ``fin`` False. If the
    fragments have no ``final``, this is the first row of the next episode instead, and ``discount`` is 0."""
    ids: Tensor
    """int64 ``(N,)``: the items' ids, for :meth:`rlplay.replay.Prioritized.update`."""
    weight: Tensor
    """float32 ``(N,)``: importance weights, of which the largest is 1. All are 1 from a uniform buffer."""
    actor: Nested = ()
    """Nested ``(1, N, ...)``: the actor's info for ``s_t``, if the buffer was made with ``keep="actor"``."""
    info: Nested = ()
    """A dict of nested ``(1, N, ...)``, by name, of the first of the ``m`` steps: the user's own fields, and the
    environment's info if the buffer was made with ``keep="info"``."""


class Sequences(NamedTuple):
    """``N`` whole columns of fragments, ``T`` steps of one environment each: new tensors on the buffer's device."""

    fragment: Fragment
    """A fragment of ``N`` environments: state and actor ``(1+T, N, ...)``, env ``(T, N, ...)``, the recurrent state
    ``(L, N, ...)``. If the stored fragments have ``final``, this one has it as well, ordered by ``(t, b)`` where
    ``b`` is the index in the batch. The user's own fields are in ``env.info``. A column may occur more than once."""
    ids: Tensor
    """int64 ``(N,)``: the items' ids, for :meth:`rlplay.replay.Prioritized.update`."""
    weight: Tensor
    """float32 ``(N,)``: importance weights, of which the largest is 1. All are 1 from a uniform buffer."""


def gather_transitions(store: Store, ids: Tensor, weight: Tensor, *, n_steps: int, gamma: float) -> Batch:
    """Gather the transitions with these ids, over at most ``n_steps`` steps. The host does not wait for the device."""
    state, env = store.columns.state, store.columns.env
    t, b = ids // store.n_envs % store.n_steps, ids % store.n_envs
    position = ids // (store.n_envs * store.n_steps) % store.n_fragments

    def step(t: Tensor) -> Tensor:
        """Return where the outcomes of steps ``t`` are."""
        return _place(position, t, b, store.n_steps, store.n_envs)

    def row(t: Tensor) -> Tensor:
        """Return where rows ``t`` of the states are."""
        return _place(position, t, b, 1 + store.n_steps, store.n_envs)

    # the steps from t on, (n_steps, N). A step is taken if it is in the fragment and valid, and if the step before it
    # was taken and did not end the episode
    steps = torch.arange(n_steps, device=ids.device)[:, None]
    ahead = (t + steps).clamp(max=store.n_steps - 1)
    those = step(ahead)
    ended = _rows(env.terminated, those) | _rows(env.truncated, those)
    taken = _rows(env.valid, those) & (t + steps < store.n_steps)
    taken[1:] &= ~ended[:-1]
    taken = taken.cumprod(dim=0) > 0
    m = taken.sum(dim=0).clamp(min=1)  # 0 only where the buffer holds nothing valid, and weights are zero

    end = t + m - 1
    last = step(end)
    final_numbers = _rows(store.final_numbers, last)
    unknown = _rows(env.truncated, last) & (final_numbers < 0)  # truncated, and the true last state is not known
    no_value = _rows(env.terminated, last) | unknown
    rew = _rows(state.rew, row(ahead + 1)).masked_fill(~taken, 0) * gamma ** steps.float()
    here, after = row(t), row(t + 1)
    return Batch(
        state=nested.map(lambda x: _rows(x, here)[None], state),
        act=nested.map(lambda x: _rows(x, after)[None], state.act),
        rew=rew.sum(dim=0)[None],
        discount=(gamma ** m.float()).masked_fill(no_value, 0)[None],
        next=nested.map(lambda x: x[None], _next_states(store, row(end), row(end + 1), final_numbers)),
        ids=ids,
        weight=weight,
        actor=nested.map(lambda x: _rows(x, here)[None], store.columns.actor),
        info=nested.map(lambda x: _rows(x, step(t))[None], env.info),
    )


def gather_sequences(store: Store, ids: Tensor, weight: Tensor) -> Sequences:
    """Gather the columns with these ids.

    If the store has ``final``, the host waits for the device once, since the number of episodes that ended determines
    the shape of ``final``.
    """
    position, b = ids // store.n_envs % store.n_fragments, ids % store.n_envs

    def column(x: Tensor) -> Tensor:
        n_rows = x.shape[1]
        return _rows(x, _place(position, torch.arange(n_rows, device=ids.device)[:, None], b, n_rows, store.n_envs))

    fragment, final_numbers = nested.map(column, (store.columns, store.final_numbers))
    if store.finals is not None:
        t, n = (final_numbers >= 0).nonzero(as_tuple=True)
        obs, actor = store.finals[final_numbers[t, n]]
        fragment = fragment._replace(env=fragment.env._replace(final=Final(t, n, obs, actor)))
    return Sequences(fragment, ids, weight)


def _next_states(store: Store, before: Tensor, after: Tensor, final_numbers: Tensor) -> State:
    """Gather the states that transitions led to, at ``after``, or the true last states where they are stored.

    ``before`` are the places of the states one step earlier.
    """
    state = store.columns.state
    row: State = nested.map(lambda x: _rows(x, after), state)
    if store.finals is None:
        return row
    is_final = final_numbers >= 0
    obs, _ = store.finals[final_numbers]

    def replaced(x: Tensor, final: Tensor) -> Tensor:
        chosen = is_final.view(-1, *(1,) * (x.ndim - 1))
        result: Tensor = move(lambda x, final: torch.where(chosen, final, x), x, final)
        return result

    return row._replace(
        stepno=replaced(row.stepno, _rows(state.stepno, before) + 1),
        obs=nested.map(replaced, row.obs, obs),
        fin=row.fin & ~is_final,
    )


def _place(position: Tensor, t: Tensor, b: Tensor, n_rows: int, n_envs: int) -> Tensor:
    """Return the index of ``[position, t, b]`` in flattened dimensions, which were ``(N, n_rows, n_envs)``."""
    return (position * n_rows + t) * n_envs + b


def _rows(x: Tensor, places: Tensor) -> Tensor:
    """Return the rows of ``x`` at these places (:func:`_place`).

    ``index_select`` copies whole rows. On the CPU, indexing would copy each number by itself, which is slower.
    """
    rows: Tensor = move(lambda x: x.flatten(0, 2).index_select(0, places.flatten()), x)
    return rows.view(*places.shape, *x.shape[3:])
