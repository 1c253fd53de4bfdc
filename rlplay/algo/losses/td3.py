"""Twin delayed deep deterministic policy gradient (TD3), and its special case DDPG.

Fujimoto et al. (2018), "Addressing Function Approximation Error in Actor-Critic Methods", algorithm 1: the smaller of
twin critics, targets smoothed by noise, and a policy that is updated less often than the critics. DDPG (Lillicrap et
al., 2016, "Continuous control with deep reinforcement learning", algorithm 1) is ``noise=0``, one critic, and a policy
that is updated as often as the critics.

A training loop; ``target`` and ``target_actor`` are slow copies of critic and actor::

    for k in range(n_updates):
        batch = buffer.sample(256, gamma=0.99)
        loss, info = td3.critic_loss(batch, target_actor, critic, target=target, low=-1.0, high=1.0)
        descend(critic_optim, loss)
        if k % 2 == 0:
            descend(actor_optim, td3.actor_loss(batch, actor, critic)[0])
            # ... and move both slow copies, as for SAC

**Actor.** Its info is a mapping with ``"mean"``: the action of the deterministic policy, float and of the action's
shape, before the actor adds noise to explore; for Dict and Tuple actions a nest of such mappings, as
:mod:`rlplay.algo.policy` describes. ``rlplay.zoo.continuous.Deterministic`` is such an actor.

**Critic.** As for :mod:`rlplay.algo.sac`.

**Sequences.** :func:`sequence_critic_loss` and :func:`sequence_actor_loss` are for actors and critics with a recurrent
state, as those of :mod:`rlplay.algo.sac`.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from numbers import Real
from operator import itemgetter

import torch
from torch import Tensor, nn

from ... import nested
from ...engine import Final, Fragment
from ...nested import Nested
from ...replay import Batch
from .. import masked
from ..policy import mean_action
from ..unroll import unroll
from ..wrapped import Actor
from . import sequences
from .replayed import act_on, critic_terms, frozen, values_of, weighted_mean

__all__ = ["actor_loss", "critic_loss", "sequence_actor_loss", "sequence_critic_loss"]


def critic_loss(
    batch: Batch,
    target_actor: Actor,
    critic: nn.Module,
    *,
    target: nn.Module,
    low: float | Tensor,
    high: float | Tensor,
    noise: float = 0.2,
    noise_clip: float = 0.5,
    generator: torch.Generator | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the critics, to be minimised.

    ::

        loss = mean(w_i sum_k (Q_k(s_i, a_i) - y_i)^2 / 2)
        y_i = rew_i + discount_i min_k Q'_k(next_i, a')
        a' = clamp(mu'(next_i) + s clamp(noise e, -noise_clip, noise_clip), low, high),    e ~ N(0, 1)

    where ``s = (high - low) / 2`` converts noise from actions in (-1, 1) to those of the space. The targets ``y`` are
    constants. ``rew`` and ``discount`` already contain ``gamma``, the number of steps and the ends of episodes.

    Parameters
    ----------
    batch : rlplay.replay.Batch
        ``N`` transitions, on the device of the networks.
    target_actor : BaseActorModule
        The slow copy ``mu'`` of the actor, without recurrent state.
    critic, target : torch.nn.Module
        The critics ``Q`` and their slow copies ``Q'``.
    low, high : float, or float tensors that broadcast to the action
        The bounds of the action space, finite, since the noise is scaled by them. Tensors should be on the device of
        the actions: a copy of them makes the host wait.
    noise, noise_clip : float >= 0
        The standard deviation and the bound of the noise that smooths the targets, for actions in (-1, 1).
    generator : torch.Generator, optional
        Draws the noise; on the device of the networks. ``None``: torch's global one.

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
        ``noise`` or ``noise_clip`` is negative, or a bound is an infinite number; the actor has a recurrent state; its
        info lacks ``"mean"``, or it has another shape; the critics' values are not ``(1, N, n)``.
    """
    smoothed = _smoothing(low, high, noise, noise_clip, generator)
    with torch.no_grad():
        act = nested.map(smoothed, _deterministic(target_actor, batch, batch.next))
        next_value = values_of(target, batch.next, act).amin(dim=-1)
    return critic_terms(batch, critic, next_value)


def actor_loss(batch: Batch, actor: Actor, critic: nn.Module) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the policy, ``-mean(w_i Q_1(s_i, mu(s_i)))``, to be minimised.

    Parameters
    ----------
    batch, critic
        As for :func:`critic_loss`.
    actor : BaseActorModule
        The actor ``mu``, without recurrent state.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters alone: the parameters of ``critic`` are constants.
    info : dict of float tensors, ``()``
        Detached, on the device: the mean ``q`` of the first critic. The host does not wait for the device.

    Raises
    ------
    TypeError, ValueError
        As for :func:`critic_loss`.
    """
    q = values_of(frozen(critic), batch.state, _deterministic(actor, batch, batch.state))[..., 0]
    return -weighted_mean(q, batch.weight), {"q": q.detach().mean()}


def sequence_critic_loss(
    fragment: Fragment,
    target_actor: Actor,
    critic: nn.Module,
    *,
    target: nn.Module,
    gamma: float,
    low: float | Tensor,
    high: float | Tensor,
    noise: float = 0.2,
    noise_clip: float = 0.5,
    generator: torch.Generator | None = None,
    weight: Tensor | None = None,
    burn_in: int = 0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the critics over a fragment, for actors and critics with a recurrent state.

    As :func:`critic_loss`, for each valid transition of the fragment. Where a time limit truncated an episode, the
    target is bootstrapped from the true last state if the fragment has ``final``.

    Parameters
    ----------
    fragment, target, gamma, weight, burn_in
        As for :func:`rlplay.algo.sac.sequence_critic_loss`.
    target_actor : BaseActorModule
        The slow copy of the actor, unrolled from ``fragment.hx``.
    critic : torch.nn.Module
        As for :func:`rlplay.algo.sac.sequence_critic_loss`.
    low, high, noise, noise_clip, generator
        As for :func:`critic_loss`.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the parameters of ``critic``.
    info : dict of float tensors
        As for :func:`rlplay.algo.sac.sequence_critic_loss`.

    Raises
    ------
    TypeError, ValueError
        As for :func:`critic_loss`; or ``weight`` or ``burn_in`` does not fit the fragment.
    """
    smoothed = _smoothing(low, high, noise, noise_clip, generator)
    inputs = sequences.prepared(fragment, target_actor, burn_in)
    with torch.no_grad():
        rows, drawn = sequences.rows_of(fragment, target, burn_in), unroll(inputs, target_actor)

        def value_of(rows: Nested, info: Nested, like: Nested) -> Tensor:
            return sequences.values_of(target, rows, nested.map(smoothed, mean_action(info, like))).amin(dim=-1)

        value, final = value_of(rows.rows, drawn.info, inputs.state.act), inputs.env.final
        final_value: Tensor | tuple[()] = ()
        if isinstance(final, Final):
            info, like = nested.map(lambda x: x[None], drawn.final), _first_columns(inputs.state.act, len(final.t))
            final_value = value_of(rows.final, info, like)[0]
    mine = sequences.rows_of(fragment, critic, burn_in).rows
    return sequences.critic_terms(inputs, critic, mine, value, final_value, gamma=gamma, weight=weight)


def sequence_actor_loss(
    fragment: Fragment, actor: Actor, critic: nn.Module, *, weight: Tensor | None = None, burn_in: int = 0
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the loss of the policy over a fragment, for actors and critics with a recurrent state.

    As :func:`actor_loss`, for each state from which a valid transition starts.

    Parameters
    ----------
    fragment, critic, weight, burn_in
        As for :func:`rlplay.algo.sac.sequence_critic_loss`.
    actor : BaseActorModule
        The actor, unrolled from ``fragment.hx``.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters alone.
    info : dict of float tensors, ``()``
        Detached, on the device: the mean ``q`` of the first critic.

    Raises
    ------
    TypeError, ValueError
        As for :func:`sequence_critic_loss`.
    """
    inputs, valid = sequences.prepared(fragment, actor, burn_in), fragment.env.valid[burn_in:]
    with torch.no_grad():
        rows = sequences.rows_of(fragment, critic, burn_in).rows
    info = unroll(inputs._replace(env=inputs.env._replace(final=())), actor).info
    act = mean_action(info, inputs.state.act)
    rows, act = nested.map(itemgetter(slice(-1)), (rows, act))
    q = sequences.values_of(frozen(critic), rows, act)[..., 0]
    return -masked.mean(sequences.weighted(q, weight), valid), {"q": masked.mean(q.detach(), valid)}


def _first_columns(act: Nested, n: int) -> Nested:
    """Return actions of the form ``(1, n, ...)``; only their form matters."""
    return nested.map(lambda x: x[:1, :1].expand(1, n, *x.shape[2:]), act)


def _smoothing(
    low: float | Tensor, high: float | Tensor, noise: float, noise_clip: float, generator: torch.Generator | None
) -> Callable[[Tensor], Tensor]:
    """Return the function that adds the noise to the target's actions.

    Raises
    ------
    ValueError
        A number is out of range.
    """
    for name, value in (("noise", noise), ("noise_clip", noise_clip)):
        if not value >= 0:
            raise ValueError(f"`{name}` must be a number >= 0, got {value!r}.")
    for name, bound in (("low", low), ("high", high)):
        if isinstance(bound, Real) and not math.isfinite(bound):  # a tensor is not looked at: the host would wait
            raise ValueError(f"`{name}` must be finite, since the noise is scaled by the bounds; got {bound!r}.")

    def smoothed(act: Tensor) -> Tensor:
        drawn = torch.randn(act.shape, dtype=act.dtype, device=act.device, generator=generator)
        upper, lower = (_as_bound(x, act) for x in (high, low))
        by = (drawn * noise).clamp(-noise_clip, noise_clip) * ((upper - lower) / 2)
        return torch.minimum(torch.maximum(act + by, lower), upper)

    return smoothed


def _as_bound(x: float | Tensor, act: Tensor) -> Tensor:
    """Return a bound as a tensor on the device of the actions; to copy a number there would make the host wait."""
    if isinstance(x, Real):
        return torch.full((), float(x), dtype=act.dtype, device=act.device)
    return torch.as_tensor(x, dtype=act.dtype, device=act.device)


def _deterministic(actor: Actor, batch: Batch, state: Nested) -> Nested:
    """Return the actions of the deterministic policy."""
    _, info = act_on(actor, state)
    return mean_action(info, batch.act)
