"""From a fragment's rows to transitions: the one place where time limits and padding are taken care of.

A fragment has ``1+T`` rows of states and ``T`` transitions between them (:mod:`rlplay.engine.core` has the tables).
What learns wants columns of ``T`` transitions, in which it need not ask how an episode ended.
"""

from __future__ import annotations

from operator import itemgetter
from typing import NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..engine import Final, Fragment
from ..nested import Nested
from .masked import like

__all__ = ["Transitions", "blank_padding", "taken", "transitions"]


class Transitions(NamedTuple):
    """What :mod:`rlplay.algo.returns` takes. Without gradients, on the fragment's device, of one float dtype."""

    rew: Tensor
    """Float ``(T, B, ...)``: ``r_{t+1}``, plus ``gamma V(last state)`` where a time limit cut the episode."""
    fin: Tensor
    """Bool ``(T, B)``: nothing is carried over from ``s_{t+1}``. True at the ends of episodes, and where not valid."""
    val: Tensor
    """Float ``(T, B, ...)``: ``V(s_t)``."""
    bootstrap: Tensor
    """Float ``(B, ...)``: ``V(s_T)``."""
    valid: Tensor
    """Bool ``(T, B)``: what to take means over. In the other rows ``rew`` and ``val`` are zero."""


def transitions(
    fragment: Fragment, value: Tensor, final_value: Tensor | tuple[()] = (), *, gamma: float
) -> Transitions:
    """Make transitions of a fragment, right under truncation.

    An episode that was cut by a time limit (truncated, and not terminated) went on as far as its value is concerned:
    its return should be bootstrapped from its last state. Row ``t+1`` shows the next episode instead, so ``gamma``
    times the value of the true last state is added to the last *reward*, and the transition then counts as an end. This
    is exact for :func:`~rlplay.algo.returns.gae`, :func:`~rlplay.algo.returns.deltas` and
    :func:`~rlplay.algo.returns.vtrace`, and for returns without importance weights.

    Without ``final`` the last state is not known. Then truncation counts as an end with nothing beyond it, just as
    termination does: returns are too small there. Ask the feed for ``final=True`` where episodes have a time limit.

    A transition that is not valid is given reward and value zero and counts as an end, so that it influences no other,
    whatever it holds (NaN, too). Leave it out of sums and counts by ``valid``.

    Parameters
    ----------
    fragment : Fragment
        The rewards, and how each transition ended.
    value : float tensor, ``(1+T, B)``
        ``V(s_t)``, or any other value of a state, such as the largest of its action values.
    final_value : float tensor ``(K,)``, or ()
        The values of the last states ``fragment.env.final``, if these were asked for.
    gamma : float
        The discount.

    Returns
    -------
    Transitions
        New tensors; the fragment is left as it is.

    Raises
    ------
    ValueError
        The shapes of the values do not fit the fragment, or ``final_value`` is missing although the fragment has
        ``final``, or the other way round.
    """
    state, env = fragment.state, fragment.env
    if value.shape != state.rew.shape:
        raise ValueError(
            f"`value` must be (1+T, B) = {tuple(state.rew.shape)}, one for each row of the fragment, the look-ahead "
            f"row included; got {tuple(value.shape)}. A trailing dimension of one goes by `.squeeze(-1)`."
        )
    _check_final_value(env.final, final_value, trailing=value.shape[2:])

    dtype = torch.promote_types(value.dtype, state.rew.dtype)
    value, rew = value.detach().to(dtype), state.rew[1:].to(dtype)
    if isinstance(final_value, Tensor):
        beyond = torch.zeros_like(rew).index_put((env.final.t, env.final.b), final_value.detach().to(dtype))
        rew = torch.where(like(env.truncated & ~env.terminated, rew), rew + gamma * beyond, rew)

    return Transitions(
        rew=rew.masked_fill(like(~env.valid, rew), 0),
        fin=env.terminated | env.truncated | ~env.valid,
        val=value[:-1].masked_fill(like(~env.valid, rew), 0),
        bootstrap=value[-1],
        valid=env.valid,
    )


def taken(fragment: Fragment) -> Nested:
    """Take the actions that were carried out: ``a_t``, nested ``(T, B, ...)``, views of the fragment."""
    return nested.map(itemgetter(slice(1, None)), fragment.state.act)


def blank_padding(fragment: Fragment) -> Fragment:
    """Zero what the actor is shown in rows that nothing depends on.

    Masking a loss is not enough to keep NaN out of its gradients: a zero gradient times a NaN activation is NaN. So a
    loss shows the actor zeros wherever its reaction is not used: in rows that begin no valid transition, and in a
    look-ahead row that no valid transition leads to. A recurrent actor still sees such a row if its recurrent state is
    carried over from there (in the NEXT_STEP mode of vector environments).

    Parameters
    ----------
    fragment : Fragment
        It is left as it is.

    Returns
    -------
    Fragment
        With zeros in the float leaves of ``obs`` (the others cannot be NaN, and may be large), and in ``act`` and
        ``rew`` unless a valid transition led to the row: then they are its own. The remaining tensors are shared with
        the argument.
    """
    state, valid = fragment.state, fragment.env.valid
    unused = ~valid & state.fin[1:] if nested.leaves(fragment.hx) else ~valid
    unused = torch.cat([unused, ~valid[-1:]])
    # the action and the reward that ended an episode are in the row after it, and the last state is shown with them
    meaningless = unused & ~torch.cat([torch.zeros_like(valid[:1]), valid])

    def blank(x: Tensor) -> Tensor:
        return x.masked_fill(like(meaningless, x), 0)

    def blank_float(x: Tensor) -> Tensor:
        return x.masked_fill(like(unused, x), 0) if x.is_floating_point() else x

    obs, act = nested.map(blank_float, state.obs), nested.map(blank, state.act)
    return fragment._replace(state=state._replace(obs=obs, act=act, rew=blank(state.rew)))


def _check_final_value(final: Nested, final_value: Tensor | tuple[()], trailing: tuple[int, ...]) -> None:
    """Refuse values of last states that are missing, or of states that are not there."""
    if isinstance(final, Final) != isinstance(final_value, Tensor):
        has, given = ("has", "but not given") if isinstance(final, Final) else ("has no", "but given")
        raise ValueError(
            f"The fragment {has} `final`, {given}: `final_value`. It is needed where `rollout(..., final=True)` was "
            f"asked for, and only there; `rlplay.algo.unroll(fragment, actor).final` is what an actor makes of them."
        )
    if isinstance(final_value, Tensor) and final_value.shape != (*final.t.shape, *trailing):
        raise ValueError(
            f"`final_value` must be (K,) = {(*final.t.shape, *trailing)}, one for each episode that ended; got "
            f"{tuple(final_value.shape)}. A trailing dimension of one goes by `.squeeze(-1)`."
        )
