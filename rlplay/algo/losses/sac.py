"""Soft actor-critic (SAC): continuous control from a replay buffer, with a stochastic policy of high entropy.

Haarnoja et al. (2018), "Soft Actor-Critic Algorithms and Applications": eq. 5 and 6 (critics), 7 to 9 (policy) and 18
(temperature), with twin critics as in section 5. The temperature ``alpha`` is given by its logarithm, ``log_alpha``.

Each update of a training loop has four parts, and each has its own optimiser::

    batch = buffer.sample(256, gamma=0.99)
    loss, info = sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)
    descend(critic_optim, loss)
    loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
    descend(actor_optim, loss)
    descend(alpha_optim, sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-n_dims))
    for slow, fast in zip(target.parameters(), critic.parameters()):
        slow.data.lerp_(fast.data, 0.005)

**Actor.** Its action must have a gradient to its parameters: it is a function of the distribution's parameters and of
noise (the reparametrisation of eq. 8). Its info is that of a policy for a Box, squashed or not, or for Dict and Tuple
of these (:mod:`rlplay.algo.policy`); a squashed policy's ``"pre_tanh"`` has a gradient as well. The losses use the
actions that the actor draws, in its present mode (train or eval). ``rlplay.zoo.continuous.SquashedGaussian`` is such an
actor.

**Critic.** A module ``critic(obs, act)``, from observations and actions, nested ``(1, N, ...)``, to ``(1, N, n)``: the
values of ``n`` critics, two for SAC. ``rlplay.zoo.continuous.Critics`` is such a module.

**Sequences.** Actors and critics with a recurrent state learn from fragments, such as those of
``buffer.sample_sequences``, by :func:`sequence_critic_loss` and :func:`sequence_actor_loss`. The critic then has a
``memory``, an actor whose info are features: ``critic(features, act)``. ``rlplay.zoo.continuous.RecurrentCritics`` is
such a module. No fragment contains the memory's recurrent state: it starts each sequence from its first one, so give it
steps to burn in.
"""

from __future__ import annotations

from operator import itemgetter

import torch
from torch import Tensor, nn

from ... import nested
from ...engine import Final, Fragment, State
from ...nested import Nested
from ...replay import Batch
from .. import masked
from ..policy import drawn_log_prob
from ..unroll import unroll_with_actions
from ..wrapped import Actor
from . import sequences
from .replayed import act_on, critic_terms, frozen, values_of, weighted_mean

__all__ = ["actor_loss", "critic_loss", "sequence_actor_loss", "sequence_critic_loss", "temperature_loss"]


def critic_loss(
    batch: Batch, actor: Actor, critic: nn.Module, *, target: nn.Module, log_alpha: Tensor
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the critics, to be minimised.

    ::

        loss = mean(w_i sum_k (Q_k(s_i, a_i) - y_i)^2 / 2)
        y_i = rew_i + discount_i (min_k Q'_k(next_i, a') - alpha log pi(a' | next_i)),    a' ~ pi(. | next_i)

    The targets ``y`` are constants. ``rew`` and ``discount`` already contain ``gamma``, the number of steps and the
    ends of episodes: a truncated episode is bootstrapped from its true last state.

    Parameters
    ----------
    batch : rlplay.replay.Batch
        ``N`` transitions, on the device of the networks.
    actor : BaseActorModule
        Without recurrent state. See the module's docstring.
    critic, target : torch.nn.Module
        The critics ``Q`` and their slow copies ``Q'``. See the module's docstring.
    log_alpha : float tensor, ``()``
        The logarithm of the temperature.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the parameters of ``critic``.
    info : dict of float tensors
        Detached, on the device: ``td_error``, ``(N,)``, the mean over the critics of ``y - Q``, whose magnitude may be
        a priority; and the means ``q`` and ``target``, ``()``. The host does not wait for the device.

    Raises
    ------
    TypeError
        The actor's info is no mapping, or the actions are no floats or nests of floats.
    ValueError
        The actor has a recurrent state; its info lacks an entry, or an entry has another shape; the critics' values are
        not ``(1, N, n)``.
    """
    with torch.no_grad():
        act, log_p = _drawn(actor, batch.next)
        soft_value = values_of(target, batch.next, act).amin(dim=-1) - log_alpha.exp() * log_p
    return critic_terms(batch, critic, soft_value)


def actor_loss(batch: Batch, actor: Actor, critic: nn.Module, *, log_alpha: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the policy, to be minimised.

    ::

        loss = mean(w_i (alpha log pi(a | s_i) - min_k Q_k(s_i, a))),    a ~ pi(. | s_i)

    Parameters
    ----------
    batch, actor, critic, log_alpha
        As for :func:`critic_loss`.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters alone: the parameters of ``critic`` are constants.
    info : dict of float tensors
        Detached, on the device: ``log_p``, ``(N,)``, ``log pi(a | s_i)`` for :func:`temperature_loss`; and the means
        ``q`` (of the smallest critic) and ``entropy`` (in nats, an estimate), ``()``. The host does not wait for the
        device.

    Raises
    ------
    TypeError, ValueError
        As for :func:`critic_loss`; or the actor's action has no gradient to its parameters.
    """
    act, log_p = _drawn(actor, batch.state)
    q = values_of(frozen(critic), batch.state, act).amin(dim=-1)
    loss = weighted_mean(log_alpha.detach().exp() * log_p - q, batch.weight)
    log_p = log_p.detach().squeeze(0)
    return loss, {"log_p": log_p, "q": q.detach().mean(), "entropy": -log_p.mean()}


def sequence_critic_loss(
    fragment: Fragment,
    actor: Actor,
    critic: nn.Module,
    *,
    target: nn.Module,
    log_alpha: Tensor,
    gamma: float,
    weight: Tensor | None = None,
    burn_in: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the critics over a fragment, for actors and critics with a recurrent state.

    As :func:`critic_loss`, for each valid transition of the fragment. Where a time limit truncated an episode, the
    target is bootstrapped from the true last state if the fragment has ``final``.

    Parameters
    ----------
    fragment : Fragment
        Of ``burn_in + T`` steps, on the device of the networks.
    actor : BaseActorModule
        Unrolled from ``fragment.hx``. See the module's docstring.
    critic, target : torch.nn.Module
        See the module's docstring; their memories, if any, are unrolled from their first recurrent state.
    log_alpha : float tensor, ``()``
        The logarithm of the temperature.
    gamma : float in [0, 1]
        The discount.
    weight : float tensor, optional
        Importance weights, ``(T, B)`` or ``(B,)``.
    burn_in : int
        The number of steps at the beginning that are not learnt from, over which recurrent states are computed, without
        gradients (:func:`rlplay.algo.r2d2.burn_in`).

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the parameters of ``critic``.
    info : dict of float tensors
        Detached, on the device: ``td_error``, ``(T, B)``, the mean over the critics of ``y - Q``, zero for transitions
        that are not valid, for :func:`rlplay.algo.r2d2.priority`; and the means ``q`` and ``target``, ``()``. The host
        waits for the device as in :func:`rlplay.algo.unroll`, and with ``final`` in :func:`rlplay.algo.r2d2.burn_in`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`critic_loss`; or ``weight`` or ``burn_in`` does not fit the fragment.
    """
    inputs = sequences.prepared(fragment, actor, burn_in)
    with torch.no_grad():
        rows = sequences.rows_of(fragment, target, burn_in)
        drawn = unroll_with_actions(inputs, actor)
        value = _soft_value(target, rows.rows, drawn.info, log_alpha)
        final_value: Tensor | tuple[()] = ()
        if isinstance(inputs.env.final, Final):
            last = nested.map(lambda x: x[None], drawn.final)
            final_value = _soft_value(target, rows.final, last, log_alpha)[0]
    mine = sequences.rows_of(fragment, critic, burn_in).rows
    return sequences.critic_terms(inputs, critic, mine, value, final_value, gamma=gamma, weight=weight)


def sequence_actor_loss(
    fragment: Fragment,
    actor: Actor,
    critic: nn.Module,
    *,
    log_alpha: Tensor,
    weight: Tensor | None = None,
    burn_in: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the policy over a fragment, for actors and critics with a recurrent state.

    As :func:`actor_loss`, for each state from which a valid transition starts.

    Parameters
    ----------
    fragment, actor, critic, log_alpha, weight, burn_in
        As for :func:`sequence_critic_loss`.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters alone.
    info : dict of tensors
        Detached, on the device: ``log_p``, float ``(T, B)``, and ``valid``, bool ``(T, B)``, both for
        :func:`temperature_loss`; and the means ``q`` and ``entropy``, float ``()``.

    Raises
    ------
    TypeError, ValueError
        As for :func:`sequence_critic_loss`; or the actor's action has no gradient to its parameters.
    """
    inputs, valid = sequences.prepared(fragment, actor, burn_in), fragment.env.valid[burn_in:]
    with torch.no_grad():
        rows = sequences.rows_of(fragment, critic, burn_in).rows
    without_final = inputs._replace(env=inputs.env._replace(final=()))
    act, info = nested.map(itemgetter(slice(-1)), unroll_with_actions(without_final, actor).info)
    log_p = _checked_log_p(actor, act, info)
    q = sequences.values_of(frozen(critic), nested.map(itemgetter(slice(-1)), rows), act).amin(dim=-1)
    loss = masked.mean(sequences.weighted(log_alpha.detach().exp() * log_p - q, weight), valid)
    log_p, q = log_p.detach(), masked.mean(q.detach(), valid)
    return loss, {"log_p": log_p, "valid": valid, "q": q, "entropy": -masked.mean(log_p, valid)}


def temperature_loss(log_p: Tensor, log_alpha: Tensor, *, target_entropy: float, valid: Tensor | None = None) -> Tensor:
    """Compute the loss of the temperature: ``-log_alpha mean(log_p + target_entropy)``, to be minimised.

    Its gradient has the sign of that of eq. 18, ``mean(-alpha (log_p + target_entropy))``, but not the factor
    ``alpha``, so that a small temperature changes as fast as a large one. The authors' code does the same.

    Parameters
    ----------
    log_p : float tensor, ``(N,)`` or ``(T, B)``
        The log-probabilities in the info of :func:`actor_loss` or :func:`sequence_actor_loss`.
    log_alpha : float tensor, ``()``
        The logarithm of the temperature, a parameter.
    target_entropy : float
        The entropy that the policy is to have, in nats. The paper takes minus the number of an action's dimensions.
    valid : bool tensor, optional
        Of the same shape: which of them count.

    Returns
    -------
    float tensor, ``()``
        With a gradient to ``log_alpha``.
    """
    excess = log_p.detach() + target_entropy
    return -log_alpha * (excess.mean() if valid is None else masked.mean(excess, valid))


def _drawn(actor: Actor, state: State) -> tuple[Nested, Tensor]:
    """Return the actions that an actor draws, and their log-probabilities, ``(1, N)``."""
    act, info = act_on(actor, state)
    return act, _checked_log_p(actor, act, info)


def _soft_value(critic: nn.Module, rows: Nested, drawn: Nested, log_alpha: Tensor) -> Tensor:
    """Return ``min_k Q_k(s, a) - alpha log pi(a | s)``, ``(n_seq, B)``, for the pair of actions and their info."""
    act, info = drawn
    q = sequences.values_of(critic, rows, act).amin(dim=-1)
    return q - log_alpha.exp() * _log_p(act, info)


def _log_p(act: Nested, info: Nested) -> Tensor:
    """Return the log-probabilities of drawn actions, ``(n_seq, B)``."""
    for name, x in zip(nested.names(act, "act"), nested.leaves(act), strict=True):
        if not x.is_floating_point():
            raise TypeError(f"SAC is for the real actions of a Box, but `{name}` of the actor is {x.dtype}.")
    return drawn_log_prob(info, act)


def _checked_log_p(actor: Actor, act: Nested, info: Nested) -> Tensor:
    """Return the log-probabilities of drawn actions, and check that the actions have gradients if they should."""
    log_p = _log_p(act, info)
    if log_p.requires_grad and not all(x.requires_grad for x in nested.leaves(act)):
        raise ValueError(
            f"The actions of {type(actor).__qualname__} have no gradient to its parameters: compute them from `mean` "
            f"and `log_std` without `detach`, as `rlplay.zoo.continuous.SquashedGaussian` does."
        )
    return log_p
