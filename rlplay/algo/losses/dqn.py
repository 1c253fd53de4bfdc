"""Deep Q-learning (DQN) over fragments, with or without recurrent networks, and over batches from a replay buffer.

Mnih et al. (2015), "Human-level control through deep reinforcement learning", and with ``double=True`` van Hasselt et
al. (2016), "Deep Reinforcement Learning with Double Q-learning", eq. 4.

The info of a Q-network is a mapping with ``"q"``, float ``(n_seq, B, A)``: the values of the actions of a single
``Discrete`` space. :mod:`rlplay.zoo` has such networks.

Recurrent networks learn from sequences; :mod:`rlplay.algo.r2d2` has the parts of R2D2. :mod:`c51
<rlplay.algo.c51>` and :mod:`quantile <rlplay.algo.quantile>` learn distributions of returns.
"""

from __future__ import annotations

from functools import partial

import torch
from torch import Tensor
from torch.nn import functional as F

from ... import nested
from ...dtypes import at_least_float32
from ...engine import Final, Fragment
from ...nested import Nested
from ...replay import Batch
from .. import masked
from ..policy import entry
from ..returns import multistep
from ..transitions import blank_padding, taken, transitions
from ..unroll import unroll
from ..wrapped import Actor
from . import r2d2
from .replayed import act_on, backed_up, check_discrete, weighted_mean
from .sequences import weighted

__all__ = ["loss", "replayed"]


def loss(
    fragment: Fragment,
    actor: Actor,
    *,
    gamma: float,
    target: Actor | None = None,
    n_lookahead: int | None = 1,
    double: bool = True,
    huber: float | None = 1.0,
    weight: Tensor | None = None,
    burn_in: int = 0,
    rescale: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the Q-learning loss of a fragment, to be minimised.

    ::

        loss = mean(w_t l(y_t - Q(s_t, a_t)))
        y_t = r_{t+1} + gamma r_{t+2} + ... + gamma^n V(s_{t+n})
        V(s) = Q'(s, argmax_a Q(s, a))      double
             = max_a Q'(s, a)               not double

    where ``Q'`` is the target network, and ``l`` is Huber's loss or half the square. Targets are constants. Means are
    over the valid transitions. Where a time limit truncated an episode, its return is bootstrapped from its last state
    if the fragment has ``final`` (see :func:`rlplay.algo.transitions`). Near the end of the fragment only the remaining
    steps are used. With ``n > 1`` there is no correction for actions that the greedy policy would not take.

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. Its actions are those of a single ``Discrete`` space: int64 ``(1+T, B)``, from 0.
    actor : BaseActorModule
        Its info must have ``"q"``, float ``(n_seq, B, A)``. It is unrolled over the fragment, with gradients.
    gamma : float in [0, 1]
        The discount.
    target : BaseActorModule, optional
        The target network; its recurrent state, if any, starts from ``fragment.hx`` as well. ``None``: the actor.
    n_lookahead : int >= 1, or None
        ``n``, the number of rewards in a target; ``None``: all up to the end of the episode or of the fragment.
    double : bool
        Whether the actor, not the target network, chooses the actions that the target network evaluates.
    huber : float > 0, or None
        The error above which Huber's loss is linear, with this slope, instead of half the square. ``None``: half the
        square everywhere.
    weight : float tensor, optional
        Importance weights ``w_t``, ``(T, B)`` or ``(B,)``. ``None``: all are 1.
    burn_in : int
        The number of steps at the beginning that are not learnt from, and from which each recurrent network computes
        its own recurrent state (:func:`rlplay.algo.r2d2.burn_in`). Below and above, ``T`` is the number of the
        other steps.
    rescale : float > 0, or None
        If given, the networks' values are ``h`` of returns, where ``h`` is :func:`rlplay.algo.r2d2.rescaled`
        with this ``epsilon``: ``y_t = h(r_{t+1} + ... + gamma^n h^-1(V(s_{t+n})))``.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors
        Detached, on the device: ``td_error``, ``(T, B)``, that is ``y_t - Q(s_t, a_t)``, zero for transitions that are
        not valid; and the means ``q`` and ``target``, ``()``. The host does not wait for the device, except in
        :func:`rlplay.algo.unroll` of a recurrent network, and in :func:`rlplay.algo.r2d2.burn_in` with ``final``.

    Raises
    ------
    TypeError
        An info is no mapping, or the actions are of another kind of space.
    ValueError
        An info has no ``"q"``, or ``"q"`` has another shape; a number is out of range.
    """
    _check_huber(huber)
    if rescale is not None and not rescale > 0:
        raise ValueError(f"`rescale` must be a number > 0, or None for values that are not rescaled; got {rescale!r}.")
    if n_lookahead is not None and n_lookahead < 1:
        raise ValueError(f"`n_lookahead` must be a number of steps >= 1, or None for all; got {n_lookahead}.")
    inputs = blank_padding(fragment)
    theirs = inputs if target is None else r2d2.burn_in(inputs, target, burn_in)
    inputs, fragment = r2d2.burn_in(inputs, actor, burn_in), r2d2.burn_in(fragment._replace(hx=()), actor, burn_in)
    valid, has_final = fragment.env.valid, isinstance(fragment.env.final, Final)
    info, _, final = unroll(inputs, actor)
    q = _action_values(info, fragment.state.act)
    with torch.no_grad():
        target_info, _, target_final = (info, None, final) if target is None else unroll(theirs, target)
        value = _greedy_values(info, target_info, double)
        final_value = _greedy_values(final, target_final, double) if has_final else ()
        if rescale is not None:
            value, final_value = nested.map(partial(r2d2.unscaled, epsilon=rescale), (value, final_value))
        x = transitions(fragment, value, final_value, gamma=gamma)
        y = multistep(x.rew, x.fin, x.val, gamma=gamma, n_lookahead=n_lookahead, bootstrap=x.bootstrap)
        y = y if rescale is None else r2d2.rescaled(y, rescale)

    q = q[:-1].masked_fill(~valid.unsqueeze(-1), 0)
    act = taken(fragment).masked_fill(~valid, 0).unsqueeze(-1)
    chosen = q.gather(-1, act).squeeze(-1)
    total = masked.mean(weighted(_elementwise_loss(chosen, y, huber), weight), valid)
    return total, {
        "td_error": (y - chosen).detach(),
        "q": masked.mean(chosen.detach(), valid),
        "target": masked.mean(y, valid),
    }


def replayed(
    batch: Batch,
    actor: Actor,
    *,
    target: Actor | None = None,
    double: bool = True,
    huber: float | None = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the Q-learning loss of transitions from a replay buffer, to be minimised.

    ::

        loss = mean(w_i l(y_i - Q(s_i, a_i))),    y_i = rew_i + discount_i V(next_i)

    with ``V`` and ``l`` as for :func:`loss`. ``rew`` and ``discount`` already contain ``gamma``, the number of steps
    and the ends of episodes.

    Parameters
    ----------
    batch : rlplay.replay.Batch
        ``N`` transitions, on the actor's device.
    actor, target : BaseActorModule
        As for :func:`loss`, but without recurrent state. (With recurrent state, sample sequences and use :func:`loss`.)
    double, huber
        As for :func:`loss`.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors
        Detached, on the device: ``td_error``, ``(N,)``, whose magnitude is the priority in
        ``buffer.update(batch.ids, info["td_error"].abs())``; and the means ``q`` and ``target``, ``()``. The host does
        not wait for the device.

    Raises
    ------
    TypeError, ValueError
        As for :func:`loss`.
    """
    _check_huber(huber)
    q = _action_values(act_on(actor, batch.state)[1], batch.act)
    with torch.no_grad():
        info = act_on(actor, batch.next)[1] if double or target is None else ()
        value = _greedy_values(info, info if target is None else act_on(target, batch.next)[1], double)
        y = backed_up(batch, value)

    chosen = q.gather(-1, batch.act.unsqueeze(-1)).squeeze(-1)
    total = weighted_mean(_elementwise_loss(chosen, y, huber), batch.weight)
    return total, {
        "td_error": (y - chosen).detach().squeeze(0),
        "q": chosen.detach().mean(),
        "target": y.mean(),
    }


def _action_values(info: Nested, act: Nested) -> Tensor:
    """Return ``info["q"]``, and check its shape against the actions, which must be of a single Discrete space."""
    check_discrete(act)
    q: Tensor = entry(info, "q")
    if q.ndim != 3 or q.shape[:2] != act.shape:
        raise ValueError(f"`q` must be (n_seq, B, A) = {(*act.shape, 'A')}, got {tuple(q.shape)}.")
    return at_least_float32(q)


def _greedy_values(chosen_by: Nested, evaluated_by: Nested, double: bool) -> Tensor:
    """Compute ``V(s)``, at least float32, given the infos of two networks.

    With ``double``, the network of ``chosen_by`` chooses the action whose value the network of ``evaluated_by`` gives.
    Otherwise ``V(s)`` is the largest value of the latter.
    """
    q = at_least_float32(entry(evaluated_by, "q").detach())
    if not double:
        return q.amax(-1)
    best = entry(chosen_by, "q").detach().argmax(-1, keepdim=True)
    return q.gather(-1, best).squeeze(-1)


def _elementwise_loss(q: Tensor, y: Tensor, huber: float | None) -> Tensor:
    """Compute Huber's loss, or half the square, of each ``y - q``."""
    y = y.to(q.dtype)
    if huber is None:
        return F.mse_loss(q, y, reduction="none") / 2
    return F.huber_loss(q, y, reduction="none", delta=huber)


def _check_huber(huber: float | None) -> None:
    if huber is not None and not huber > 0:
        raise ValueError(f"`huber` must be a number > 0, or None for half the square; got {huber!r}.")
