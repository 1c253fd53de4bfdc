"""Shared parts of the actor-critic losses: reading an actor's info, and combining the terms of a loss.

The info of an actor-critic is a mapping with the entry ``"value"``, float ``(n_seq, B)``, the critic's value of the
state, and with the entries of a policy, which depend on the action space: :mod:`rlplay.algo.policy` lists them. For a
``Discrete`` space it is ``"logits"``, for a ``Box`` ``"mean"`` and ``"log_std"``. ``n_seq`` is the number of rows
(``1+T`` in a fragment), and ``B`` the number of environments. :mod:`rlplay.zoo` has actors of this kind.
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from ... import nested
from ...dtypes import at_least_float32
from ...engine import Final, Fragment
from ...nested import Nested
from .. import masked
from ..policy import check_rows, entry, policy
from ..transitions import Transitions, transitions

__all__ = ["PolicyTerms", "lambda_of", "objective", "policy_terms", "transitions_with_values"]


class PolicyTerms(NamedTuple):
    """The log-probabilities, entropies and values of transitions.

    For transitions that are not valid, the entries are finite and have no gradient.
    """

    log_p: Tensor
    """Float ``(T, B)``: ``log pi(a_t | s_t)`` of the actions that were carried out; for a Box, the log-density."""
    entropy: Tensor
    """Float ``(T, B)``: the entropy of ``pi(. | s_t)``, in nats."""
    value: Tensor
    """Float ``(T, B)``: ``V(s_t)``."""


def lambda_of(C: float | None, gae_lambda: float | None, default: float) -> float:
    """Return GAE's lambda, which may be given by either name.

    Raises
    ------
    TypeError
        It is given by both.
    """
    if C is not None and gae_lambda is not None:
        raise TypeError(f"give lambda once, as `C` or as `gae_lambda`; got C={C!r}, gae_lambda={gae_lambda!r}.")
    given = C if gae_lambda is None else gae_lambda
    return default if given is None else given


def policy_terms(info: Nested, act: Nested, valid: Tensor) -> PolicyTerms:
    """Compute log-probabilities, entropies and values of transitions from an actor-critic's info.

    Parameters
    ----------
    info : mapping of float tensors, ``(T, B, ...)``
        With the entries that the module's docstring lists. Rows after the first ``T``, such as the look-ahead row, are
        ignored.
    act : nested tensors, ``(T, B, ...)``
        The actions that were carried out, as :func:`rlplay.algo.policy.carried_out` returns them.
    valid : bool tensor, ``(T, B)``
        Which transitions were carried out.

    Returns
    -------
    PolicyTerms
        In the dtype of the info, but at least float32; with gradients to the info.

    Raises
    ------
    TypeError
        The info is no mapping, or there is an action of an unknown kind.
    ValueError
        The info lacks an entry, or an entry has another shape.
    """
    # the inputs are masked, so that neither gradients nor NaN pass through transitions that are not valid
    masked_act = nested.map(lambda x: x.masked_fill(~masked.like(valid, x), 0), act)
    distribution = policy(info, masked_act, valid)
    value = check_rows(entry(info, "value"), "value", valid.shape)[: len(valid)].masked_fill(~valid, 0)
    return PolicyTerms(distribution.log_prob(masked_act), distribution.entropy(), at_least_float32(value))


def transitions_with_values(fragment: Fragment, info: Nested, final: Nested, *, gamma: float) -> Transitions:
    """Convert a fragment to transitions, with the values in an actor's info.

    Parameters
    ----------
    fragment : Fragment
        See :func:`rlplay.algo.transitions`.
    info, final : mapping of float tensors
        ``info["value"]`` is float ``(1+T, B)``. ``final["value"]`` is float ``(K,)``; it is ignored if the fragment has
        no ``final``.
    gamma : float in [0, 1]
        The discount.

    Returns
    -------
    Transitions

    Raises
    ------
    TypeError, ValueError
        ``info`` or ``final`` has no entry ``"value"``, or the entry has another shape.
    """
    final_values = entry(final, "value") if isinstance(fragment.env.final, Final) else ()
    return transitions(fragment, entry(info, "value"), final_values, gamma=gamma)


def objective(
    current: PolicyTerms,
    gain: Tensor,
    squared_error: Tensor,
    valid: Tensor,
    *,
    value_weight: float,
    entropy_weight: float,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute ``-gain + value_weight * squared_error - entropy_weight * entropy``, means over valid transitions.

    Parameters
    ----------
    current : PolicyTerms
        The terms of the current actor, with gradients.
    gain : float tensor, ``(T, B)``
        The quantity that the policy maximises, with gradients.
    squared_error : float tensor, ``(T, B)``
        That of the critic, with gradients.
    valid : bool tensor, ``(T, B)``
        The transitions that the means are over.
    value_weight, entropy_weight : float
        The coefficients of the critic's squared error and of the entropy.

    Returns
    -------
    loss : float tensor, ``()``
    info : dict of float tensors, ``()``
        Detached: ``policy_loss``, ``value_loss``, ``entropy``, and the mean ``value``.
    """
    policy_loss = -masked.mean(gain, valid)
    value_loss = masked.mean(squared_error, valid)
    entropy = masked.mean(current.entropy, valid)
    loss = policy_loss + value_weight * value_loss - entropy_weight * entropy
    terms = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    terms["value"] = masked.mean(current.value, valid)
    return loss, {name: term.detach() for name, term in terms.items()}
