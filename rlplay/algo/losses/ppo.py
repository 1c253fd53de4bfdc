"""Proximal policy optimisation (PPO): several epochs over each fragment, near the policy that collected it.

Schulman et al. (2017), "Proximal Policy Optimization Algorithms", eq. 7 and algorithm 1, with GAE. Advantages and old
probabilities are computed from the info of the behaviour policy, ``fragment.actor``, so they are the same in all
epochs, and correct for any ``lag`` of the feed. As in the paper, the critic's error is not clipped unless
``value_clip`` is given, and all epochs are completed unless ``max_kl`` is given.

A training loop::

    for fragment in feed:
        for loss, info in ppo.losses(fragment, actor, gamma=0.99, n_epochs=4, n_minibatches=4):
            optim.zero_grad()
            loss.backward()
            optim.step()

With ``torch.compile``, compile the function that contains the inner loop. ``torch.compile(ppo.losses)`` has little
effect, since ``losses`` returns an iterator and the losses are computed when the loop advances the iterator.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from numbers import Integral
from operator import itemgetter
from typing import Literal, NamedTuple

import torch
from torch import Tensor

from ... import nested
from ...dtypes import move
from ...engine import Final, Fragment
from ...nested import Nested
from .. import masked
from ..policy import carried_out
from ..returns import gae
from ..transitions import blank_padding
from ..unroll import unroll
from ..wrapped import Actor
from .actor_critic import lambda_of, objective, policy_terms, transitions_with_values

__all__ = ["loss", "losses"]


class _Batch(NamedTuple):
    """The constants of a loss, without gradients. A minibatch selects from the second dimension of every leaf."""

    fragment: Fragment
    """The inputs of the actor."""
    act: Nested
    """``(T, B, ...)``: the actions that were carried out."""
    log_p: Tensor
    """Float ``(T, B)``: the log-probabilities of the actions under the behaviour policy."""
    advantage: Tensor
    """Float ``(T, B)``: the advantages, normalised over the fragment if the user chose so."""
    value: Tensor
    """Float ``(T, B)``: the values of the behaviour policy's critic."""
    target: Tensor
    """Float ``(T, B)``: the critic's targets."""
    valid: Tensor
    """Bool ``(T, B)``: the transitions that the means are over."""


def loss(
    fragment: Fragment,
    actor: Actor,
    *,
    gamma: float,
    C: float | None = None,
    gae_lambda: float | None = None,
    clip: float = 0.2,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    normalise: bool | Literal["minibatch"] = True,
    value_clip: float | None = None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the clipped loss of a whole fragment, to be minimised.

    ::

        loss = mean(-min(w_t A_t, clamp(w_t, 1 - clip, 1 + clip) A_t))
             + value_weight mean((A_t + V_t - V(s_t))^2) - entropy_weight mean(H_t)

    where ``w_t = pi(a_t | s_t) / mu(a_t | s_t)``, and ``H_t`` is the policy's entropy. The advantages ``A_t`` and the
    values ``V_t`` are those of the behaviour policy ``mu`` and its critic, and constants. Means are over the valid
    transitions. Where a time limit truncated an episode, its return is bootstrapped from its last state if the fragment
    has ``final`` (see :func:`rlplay.algo.transitions`).

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. Its info (``fragment.actor``) is that of an actor-critic.
    actor : BaseActorModule
        Its info must be that of an actor-critic, see :mod:`rlplay.algo.actor_critic`. It is unrolled over the fragment,
        with gradients.
    gamma : float in [0, 1]
        The discount.
    C, gae_lambda : float in [0, 1]
        GAE's lambda, by either name; by default 0.95.
    clip : float > 0
        The loss has no gradient to the policy where ``w_t`` has already moved from one by more than this distance, in
        the direction that the advantage favours.
    value_weight, entropy_weight : float
        The coefficients of the critic's squared error and of the policy's entropy (in nats).
    normalise : bool or "minibatch"
        Whether to normalise the advantages to mean zero and standard deviation one: over the fragment, or, in
        :func:`losses`, over each minibatch by itself, as Stable-Baselines3 does. The value targets are not changed.
    value_clip : float > 0, or None
        If given, the critic's error is ``max((y - V)^2, (y - V_mu - clamp(V - V_mu, -value_clip, value_clip))^2)``,
        where ``y`` is the target: no gradient where the value has already moved further than this from ``V_mu``, and
        not too far. As in OpenAI's code; Andrychowicz et al. (2021), "What Matters in On-Policy Reinforcement
        Learning?", find no benefit. It depends on the scale of the returns.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors, ``()``
        Detached, on the device: ``policy_loss``, ``value_loss``, ``entropy``, and the means ``value``, ``kl`` (an
        estimate of ``KL(mu || pi)``, in nats, never negative) and ``clipped`` (the fraction of transitions whose
        ``w_t`` is outside of the bounds). The host does not wait for the device, except once for a recurrent actor, in
        :func:`rlplay.algo.unroll`.

    Raises
    ------
    TypeError
        An info is no mapping, there is an action of an unknown kind, or lambda is given by both names.
    ValueError
        An info lacks an entry, or an entry has another shape; a number is out of range.
    """
    options = _options(clip, value_weight, entropy_weight, normalise, value_clip)
    return _loss(_prepare(fragment, gamma=gamma, C=lambda_of(C, gae_lambda, 0.95), normalise=normalise), actor, options)


def losses(
    fragment: Fragment,
    actor: Actor,
    *,
    gamma: float,
    C: float | None = None,
    gae_lambda: float | None = None,
    clip: float = 0.2,
    n_epochs: int = 4,
    n_minibatches: int = 4,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    normalise: bool | Literal["minibatch"] = True,
    value_clip: float | None = None,
    max_kl: float | None = None,
    generator: torch.Generator | None = None,
) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
    """Yield the loss of each random minibatch of a fragment, over several epochs.

    Each loss is computed when the iterator is advanced, with the actor's weights at that time. (A ``torch.autocast``
    around the loop needs ``cache_enabled=False``: otherwise it uses the first weights that it has cast for all losses.)
    A minibatch consists of single transitions if the actor has no recurrent state, and of whole columns if the actor
    has one. Transitions that are not valid are drawn as well and left out of the means, so minibatches of a sticky
    fragment have fewer valid transitions.

    Parameters
    ----------
    fragment, actor, gamma, C, gae_lambda, clip, value_weight, entropy_weight, normalise, value_clip
        As for :func:`loss`.
    n_epochs : int
        The number of passes over the fragment.
    n_minibatches : int
        The number of minibatches in each epoch. The ``T B`` transitions (or the ``B`` columns) are divided among them
        evenly: the sizes of minibatches differ by one at most.
    max_kl : float > 0, or None
        If given, the iterator ends, without yielding, at the first minibatch whose ``info["kl"]`` is larger. For that
        the host waits for the device at each minibatch. As in OpenAI's "Spinning Up" and Stable-Baselines3, which stop
        at 1.5 times their ``target_kl``. Not with several learners: each would end at another minibatch, and the others
        would wait for it. Compare the mean of their ``info["kl"]`` instead, and leave the loop.
    generator : torch.Generator, optional
        Draws the minibatches; on the fragment's device. ``None``: torch's global one.

    Yields
    ------
    loss, info
        What :func:`loss` returns, ``n_epochs n_minibatches`` times, or fewer with ``max_kl``. To stop
        early, leave the loop.

    Raises
    ------
    TypeError, ValueError
        As for :func:`loss`; or there are more minibatches than transitions or columns. Wrong
        arguments raise at the call, not when the iterator is advanced.
    """
    options = _options(clip, value_weight, entropy_weight, normalise, value_clip)
    if max_kl is not None and not max_kl > 0:
        raise ValueError(f"`max_kl` must be a number > 0, or None to complete all epochs; got {max_kl!r}.")
    batch = _prepare(fragment, gamma=gamma, C=lambda_of(C, gae_lambda, 0.95), normalise=normalise)
    if not nested.leaves(fragment.hx):
        # each transition becomes a column of one step
        batch = nested.map(lambda x: x[: len(batch.valid)].flatten(0, 1)[None], batch)
    n_columns, unit = batch.valid.shape[1], "columns" if nested.leaves(fragment.hx) else "transitions"
    if not (isinstance(n_epochs, Integral) and isinstance(n_minibatches, Integral)):
        raise TypeError(f"`n_epochs` and `n_minibatches` must be integers, got {n_epochs!r} and {n_minibatches!r}.")
    if not (n_epochs >= 0 and 1 <= n_minibatches <= n_columns):
        raise ValueError(
            f"`n_minibatches` must be from 1 to the fragment's {n_columns} {unit}, and `n_epochs` at least 0; got "
            f"{n_minibatches} and {n_epochs}."
        )

    def minibatches() -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        for _ in range(n_epochs):
            order = torch.randperm(n_columns, generator=generator, device=batch.valid.device)
            for chosen in order.tensor_split(n_minibatches):
                minibatch = nested.map(partial(move, itemgetter((slice(None), chosen))), batch)
                loss, info = _loss(minibatch, actor, options)
                if max_kl is not None and info["kl"] > max_kl:
                    return
                yield loss, info

    iterate = minibatches
    if torch.compiler.is_compiling():
        # each loss is compiled by itself: tracing the generator would compute all losses before the first is returned
        iterate = torch.compiler.disable(minibatches, recursive=False)
    return iterate()


def _prepare(fragment: Fragment, *, gamma: float, C: float, normalise: bool | str) -> _Batch:
    """Compute the constants of the loss (advantages, targets, old log-probabilities) from ``fragment.actor``."""
    final = fragment.env.final.actor if isinstance(fragment.env.final, Final) else ()
    x = transitions_with_values(fragment, fragment.actor, final, gamma=gamma)
    act = carried_out(fragment)
    # if the user has computed the info anew by `unroll`, its gradients would cancel those of the current policy
    log_p = policy_terms(fragment.actor, act, x.valid).log_p.detach()
    advantage = gae(x.rew, x.fin, x.val, gamma=gamma, C=C, bootstrap=x.bootstrap)
    scaled = masked.normalised(advantage, x.valid) if normalise and normalise != "minibatch" else advantage
    # `final` is not needed any more, since the rewards contain the values of the last states
    inputs = blank_padding(fragment)._replace(actor=(), env=fragment.env._replace(info={}, final=()))
    return _Batch(inputs, act, log_p, scaled, x.val, advantage + x.val, x.valid)


class _Options(NamedTuple):
    """The options of a loss, checked."""

    clip: float
    weights: dict[str, float]
    by_minibatch: bool
    value_clip: float | None


def _options(
    clip: float, value_weight: float, entropy_weight: float, normalise: bool | str, value_clip: float | None
) -> _Options:
    """Check and collect the options of a loss."""
    if not clip > 0:
        raise ValueError(f"`clip` must be a number > 0, got {clip!r}.")
    if value_clip is not None and not value_clip > 0:
        raise ValueError(f"`value_clip` must be a number > 0, or None for no clipping; got {value_clip!r}.")
    if normalise not in (True, False, "minibatch"):
        raise ValueError(f"`normalise` must be True (over the fragment), False or 'minibatch', got {normalise!r}.")
    weights = {"value_weight": value_weight, "entropy_weight": entropy_weight}
    return _Options(clip, weights, normalise == "minibatch", value_clip)


def _loss(batch: _Batch, actor: Actor, options: _Options) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the clipped loss and its info, with gradients to the actor's parameters."""
    clip, value_clip = options.clip, options.value_clip
    current = policy_terms(unroll(batch.fragment, actor).info, batch.act, batch.valid)
    advantage = masked.normalised(batch.advantage, batch.valid) if options.by_minibatch else batch.advantage
    omega = current.log_p - batch.log_p
    ratio = omega.exp()
    gain = torch.minimum(ratio * advantage, ratio.clamp(1 - clip, 1 + clip) * advantage)

    squared_error = (batch.target - current.value).square()
    if value_clip is not None:
        clipped = batch.value + (current.value - batch.value).clamp(-value_clip, value_clip)
        squared_error = torch.maximum(squared_error, (batch.target - clipped).square())
    loss, terms = objective(current, gain, squared_error, batch.valid, **options.weights)
    with torch.no_grad():
        further = {"kl": omega.expm1() - omega, "clipped": ((ratio - 1).abs() > clip).to(ratio.dtype)}
        return loss, terms | {name: masked.mean(y, batch.valid) for name, y in further.items()}
