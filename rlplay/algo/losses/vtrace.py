"""V-trace actor-critic: learning from fragments that were collected by an older policy.

Espeholt et al. (2018), "IMPALA: Scalable Distributed Deep-RL with Importance Weighted Actor-Learner Architectures",
section 4. The behaviour policy ``mu`` collected the fragment; its parameters are in ``fragment.actor``. The target
policy ``pi`` is the current actor. The two differ by the updates made since the collection: by the feed's ``lag``, or
by the fragment's age in a replay buffer.
"""

from __future__ import annotations

import math

from torch import Tensor

from ...engine import Fragment
from .. import masked, returns
from ..policy import carried_out
from ..transitions import blank_padding
from ..unroll import unroll
from ..wrapped import Actor
from .actor_critic import objective, policy_terms, transitions_with_values

__all__ = ["loss"]


def loss(
    fragment: Fragment,
    actor: Actor,
    *,
    gamma: float,
    r_bar: float | None = 1.0,
    c_bar: float | None = 1.0,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the off-policy actor-critic loss of a fragment, to be minimised.

    ::

        loss = mean(-log pi(a_t | s_t) rho_t A_t) + value_weight mean((v_t - V(s_t))^2) - entropy_weight mean(H_t)
        A_t = r_{t+1} + gamma v_{t+1} - V(s_t)

    where ``v_t`` are the V-trace targets (eq. 1), ``rho_t = min(pi / mu, r_bar)``, and ``H_t`` is the policy's entropy.
    All factors except ``log pi``, ``V`` and ``H`` are constants. Means are over the valid transitions. Where a time
    limit truncated an episode, its return is bootstrapped from its last state if the fragment has ``final`` (see
    :func:`rlplay.algo.transitions`).

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. Its info (``fragment.actor``) has the parameters of ``mu``.
    actor : BaseActorModule
        Its info must be that of an actor-critic, see :mod:`rlplay.algo.actor_critic`. It is unrolled over the fragment,
        with gradients.
    gamma : float in [0, 1]
        The discount.
    r_bar, c_bar : float >= 0, or None
        The upper bounds of the importance weights in the temporal differences and in the traces. ``r_bar`` determines
        which policy's values the critic converges to; with ``None`` (no bound) these are the values of ``pi``.
        ``c_bar`` determines only the speed of convergence.
    value_weight, entropy_weight : float
        The coefficients of the critic's squared error and of the policy's entropy (in nats).

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors, ``()``
        Detached, on the device: ``policy_loss``, ``value_loss``, ``entropy``, and the means ``value``, ``advantage``
        (``A_t``), ``rho`` (after clipping) and ``kl`` (an estimate of ``KL(mu || pi)``, in nats).

    Raises
    ------
    TypeError
        An info is no mapping, or there is an action of an unknown kind.
    ValueError
        An info lacks an entry, or an entry has another shape; a number is out of range.
    """
    info, _, final = unroll(blank_padding(fragment), actor)
    act, valid = carried_out(fragment), fragment.env.valid
    current, behaviour = policy_terms(info, act, valid), policy_terms(fragment.actor, act, valid)
    omega = (current.log_p - behaviour.log_p).detach()

    x = transitions_with_values(fragment, info, final, gamma=gamma)
    bounds = {"r_bar": r_bar, "c_bar": c_bar}
    v = returns.vtrace(x.rew, x.fin, x.val, omega, gamma=gamma, bootstrap=x.bootstrap, **bounds)
    one_step = returns.multistep(x.rew, x.fin, v, gamma=gamma, n_lookahead=1, bootstrap=x.bootstrap)
    rho = omega.exp().clamp(max=math.inf if r_bar is None else r_bar)
    advantage = one_step - x.val

    weights = {"value_weight": value_weight, "entropy_weight": entropy_weight}
    gain, squared_error = current.log_p * rho * advantage, (v - current.value).square()
    loss, terms = objective(current, gain, squared_error, valid, **weights)
    further = {"advantage": advantage, "rho": rho, "kl": -omega}
    return loss, terms | {name: masked.mean(y, valid) for name, y in further.items()}
