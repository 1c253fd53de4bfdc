"""Converts a fragment's rows to transitions. Only this module handles time limits and rows that are no transition.

A fragment has ``1+T`` rows of states and ``T`` transitions between them (:mod:`rlplay.engine.core` has the tables). The
functions of :mod:`rlplay.algo.returns` take arrays of ``T`` transitions with one flag, ``fin``, for all kinds of ends.
"""

from __future__ import annotations

from functools import partial
from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..dtypes import move
from ..engine import Final, Fragment
from ..nested import Nested
from .masked import like

__all__ = ["Transitions", "blank_padding", "taken", "transitions"]


class Transitions(NamedTuple):
    """The arguments of :mod:`rlplay.algo.returns`: on the fragment's device, of one float dtype, without gradients."""

    rew: Tensor
    """Float ``(T, B, ...)``: ``r_{t+1}``, plus ``gamma V(last state)`` where a time limit truncated the episode."""
    fin: Tensor
    """Bool ``(T, B)``: the return does not continue at ``s_{t+1}``, since an episode ended or ``valid`` is False."""
    val: Tensor
    """Float ``(T, B, ...)``: ``V(s_t)``."""
    bootstrap: Tensor
    """Float ``(B, ...)``: ``V(s_T)``."""
    valid: Tensor
    """Bool ``(T, B)``: the transitions that the means are over. For all others ``rew`` and ``val`` are zero."""


def transitions(
    fragment: Fragment, value: Tensor, final_value: Tensor | tuple[()] = (), *, gamma: float
) -> Transitions:
    """Convert a fragment to transitions, with bootstrapping where an episode was truncated.

    The last state of a truncated (and not terminated) episode has a value, from which its return is to be
    bootstrapped. Row ``t+1`` holds the first state of the next episode, so ``gamma`` times the value of the true last
    state is added to the last *reward*, and the transition then counts as an end. This is exact for
    :func:`~rlplay.algo.returns.gae`, :func:`~rlplay.algo.returns.deltas` and :func:`~rlplay.algo.returns.vtrace`, and
    for returns without importance weights.

    Without ``final`` the last state is not known, and truncation counts as termination, so that the returns of
    truncated episodes are too small. Use ``rollout(..., final=True)`` where episodes have a time limit.

    A transition that is not valid gets reward zero and value zero and counts as an end. So its content, even NaN, has
    no effect on other transitions. Exclude it from sums and counts by ``valid``.

    Parameters
    ----------
    fragment : Fragment
        Its rewards and outcomes are used.
    value : float tensor, ``(1+T, B)``
        ``V(s_t)``, or another value of the state, such as the largest of its action values.
    final_value : float tensor ``(K,)``, or ()
        The values of the last states ``fragment.env.final``; ``()`` if the fragment has no ``final``.
    gamma : float
        The discount.

    Returns
    -------
    Transitions
        New tensors, except that ``valid`` is the fragment's own, and ``bootstrap`` a view of ``value`` if no dtype
        changes. The fragment is not changed.

    Raises
    ------
    ValueError
        The shapes of the values do not fit the fragment; ``final_value`` is missing although the fragment has
        ``final``, or given although the fragment has none.
    """
    state, env = fragment.state, fragment.env
    if value.shape != state.rew.shape:
        raise ValueError(
            f"`value` must be (1+T, B) = {tuple(state.rew.shape)}, one for each row of the fragment, the look-ahead "
            f"row included; got {tuple(value.shape)}. If the last dimension has size 1, remove it with `.squeeze(-1)`."
        )
    _check_final_value(env.final, final_value, trailing=value.shape[2:])

    dtype = torch.promote_types(value.dtype, state.rew.dtype)
    value, rew = value.detach().to(dtype), state.rew[1:].to(dtype)
    if isinstance(final_value, Tensor):
        last_values = torch.zeros_like(rew).index_put((env.final.t, env.final.b), final_value.detach().to(dtype))
        rew = torch.where(like(env.truncated & ~env.terminated, rew), rew + gamma * last_values, rew)

    return Transitions(
        rew=rew.masked_fill(like(~env.valid, rew), 0),
        fin=env.terminated | env.truncated | ~env.valid,
        val=value[:-1].masked_fill(like(~env.valid, rew), 0),
        bootstrap=value[-1],
        valid=env.valid,
    )


def taken(fragment: Fragment) -> Nested:
    """Return the actions that were carried out, ``a_t``: nested ``(T, B, ...)``, views of the fragment."""
    return nested.map(itemgetter(slice(1, None)), fragment.state.act)


def blank_padding(fragment: Fragment) -> Fragment:
    """Replace the actor's inputs in the rows for which the actor's output is not used.

    Masking a loss does not keep NaN out of its gradients: a zero gradient times a NaN activation is NaN. So the inputs
    are masked as well: in rows from which no valid transition starts, and in a look-ahead row to which no valid
    transition leads, or with ``fin``, so that no return continues there. With a recurrent actor, a row other than the
    look-ahead row is kept if the recurrent state is carried over from it to a row without ``fin`` (in the NEXT_STEP
    mode of vector environments).

    Parameters
    ----------
    fragment : Fragment
        Not changed.

    Returns
    -------
    Fragment
        The float leaves of ``obs`` (other dtypes cannot hold NaN, and copying them may be slow) have, in these rows,
        the observation of the first row that is used; ``act`` has the action of the first valid transition, and ``rew``
        zero, unless a valid transition led to the row and they belong to it. Observations and actions are zero only if
        there is no such row: a network need not be defined there, as where it takes a logarithm. All other tensors are
        shared with the argument.
    """
    state, valid = fragment.state, fragment.env.valid
    unused = ~valid & state.fin[1:] if nested.leaves(fragment.hx) else ~valid
    unused = torch.cat([unused, ~valid[-1:] | state.fin[-1:]])
    # `act` and `rew` of a row belong to the transition that led to the row, and losses and last states use them
    led_to = torch.cat([torch.zeros_like(valid[:1]), valid])
    unused_act = unused & ~led_to
    fill_obs = partial(_fill, where=unused, source=_first(~unused))
    obs = nested.map(lambda x: fill_obs(x) if x.is_floating_point() else x, state.obs)
    act = nested.map(partial(_fill, where=unused_act, source=_first(led_to)), state.act)
    return fragment._replace(state=state._replace(obs=obs, act=act, rew=state.rew.masked_fill(unused_act, 0)))


class _First(NamedTuple):
    """The place of the first True in a mask ``(1+T, B)``: tensors, so that nobody waits for a device."""

    t: Tensor
    b: Tensor
    exists: Tensor


def _first(mask: Tensor) -> _First:
    """Find the first True in a mask, in the order (t, b)."""
    place = mask.flatten().long().argmax(dim=0, keepdim=True)
    return _First(place // mask.shape[1], place % mask.shape[1], mask.any())


def _fill(x: Tensor, where: Tensor, source: _First) -> Tensor:
    """Fill the rows of ``x``, ``(1+T, B, ...)``, that a mask selects, with its row at ``source``; else with zeros."""

    def fill(x: Tensor) -> Tensor:
        return torch.where(like(where, x), x[source.t, source.b].masked_fill(~source.exists, 0), x)

    filled: Tensor = move(fill, x)
    return filled


def _check_final_value(final: Nested, final_value: Tensor | tuple[()], trailing: tuple[int, ...]) -> None:
    """Raise if the values of the last states are missing, superfluous or of the wrong shape."""
    if isinstance(final, Final) != isinstance(final_value, Tensor):
        has, given = ("has", "was not given") if isinstance(final, Final) else ("has no", "was given")
        raise ValueError(
            f"The fragment {has} `final`, but `final_value` {given}: it is needed if the fragment was collected with "
            f"`rollout(..., final=True)`, and only then; compute it from `rlplay.algo.unroll(fragment, actor).final`."
        )
    if isinstance(final_value, Tensor) and final_value.shape != (*final.t.shape, *trailing):
        raise ValueError(
            f"`final_value` must be (K,) = {(*final.t.shape, *trailing)}, one for each episode that ended; got "
            f"{tuple(final_value.shape)}. If the last dimension has size 1, remove it with `.squeeze(-1)`."
        )
