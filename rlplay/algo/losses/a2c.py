"""Advantage actor-critic (A2C): the policy gradient with a learnt baseline.

Mnih et al. (2016), "Asynchronous Methods for Deep Reinforcement Learning", section 4 and algorithm S3, without the
asynchronous updates. Their k-step advantage is ``C = 1`` here; lower values give GAE (Schulman et al., 2016).
"""

from __future__ import annotations

from torch import Tensor

from ...engine import Fragment
from .. import masked
from ..policy import carried_out
from ..returns import gae, multistep
from ..transitions import blank_padding
from ..unroll import unroll
from ..wrapped import Actor
from .actor_critic import lambda_of, objective, policy_terms, transitions_with_values

__all__ = ["loss"]


def loss(
    fragment: Fragment,
    actor: Actor,
    *,
    gamma: float,
    C: float | None = None,
    gae_lambda: float | None = None,
    n_lookahead: int | None = None,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    normalise: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the actor-critic loss of a fragment, to be minimised.

    ::

        loss = mean(-log pi(a_t | s_t) A_t) + value_weight mean((A_t + V_t - V(s_t))^2) - entropy_weight mean(H_t)

    where the advantages ``A_t`` and the targets ``A_t + V_t`` are constants: no gradient flows through them. ``H_t`` is
    the policy's entropy. Means are over the valid transitions. Where a time limit truncated an episode, its return is
    bootstrapped from its last state if the fragment has ``final`` (see :func:`rlplay.algo.transitions`).

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. Its actions may be of any space that :mod:`rlplay.algo.policy` lists.
    actor : BaseActorModule
        Its info must be that of an actor-critic, see :mod:`rlplay.algo.actor_critic`. It is unrolled over the fragment,
        with gradients.
    gamma : float in [0, 1]
        The discount.
    C, gae_lambda : float in [0, 1]
        GAE's lambda, by either name. 1, the default: returns to the end of the episode or of the fragment; 0: one step.
    n_lookahead : int >= 0, or None
        If given, returns over this number of steps replace GAE (:func:`rlplay.algo.returns.multistep`).
    value_weight, entropy_weight : float
        The coefficients of the critic's squared error and of the policy's entropy (in nats).
    normalise : bool
        Whether to normalise the fragment's advantages to mean zero and standard deviation one. The value targets are
        not changed.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors, ``()``
        Detached, on the device: ``policy_loss``, ``value_loss``, ``entropy``, and the means ``value`` and ``advantage``
        (before normalisation). The host does not wait for the device, except once for a recurrent actor, in
        :func:`rlplay.algo.unroll`.

    Raises
    ------
    TypeError
        The info is no mapping, there is an action of an unknown kind, or lambda is given by both names.
    ValueError
        The info lacks an entry, or an entry has another shape; a number is out of range; ``n_lookahead`` is given, and
        lambda is not 1.
    """
    lambda_ = lambda_of(C, gae_lambda, 1.0)
    info, _, final = unroll(blank_padding(fragment), actor)
    current = policy_terms(info, carried_out(fragment), fragment.env.valid)
    x = transitions_with_values(fragment, info, final, gamma=gamma)
    if n_lookahead is None:
        advantage = gae(x.rew, x.fin, x.val, gamma=gamma, C=lambda_, bootstrap=x.bootstrap)
    elif lambda_ == 1:
        n_step_returns = multistep(x.rew, x.fin, x.val, gamma=gamma, n_lookahead=n_lookahead, bootstrap=x.bootstrap)
        advantage = n_step_returns - x.val
    else:
        raise ValueError(f"`C` = {lambda_} (GAE) and `n_lookahead` = {n_lookahead} exclude each other: leave one out.")

    gain = current.log_p * (masked.normalised(advantage, x.valid) if normalise else advantage)
    weights = {"value_weight": value_weight, "entropy_weight": entropy_weight}
    loss, terms = objective(current, gain, (advantage + x.val - current.value).square(), x.valid, **weights)
    return loss, terms | {"advantage": masked.mean(advantage, x.valid)}
