"""Shared parts of the actor-critic losses: reading an actor's info, and combining the terms of a loss.

The info of an actor-critic is a mapping with the entry ``"value"``, and the entries of one kind of action space::

    "value"              float (n_seq, B)           the critic's value of the state
    "logits"             float (n_seq, B, A)        Discrete space: unnormalised log-probabilities of the actions
    "mean", "log_std"    float, the shape of act    Box: independent normal distributions

``n_seq`` is the number of rows (``1+T`` in a fragment), ``B`` the number of environments and ``A`` the number of
actions. A logit of ``-inf`` forbids its action. :mod:`rlplay.zoo` has actors of this kind.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.distributions import Categorical, Distribution, Independent, Normal

from ..engine import Final, Fragment
from ..nested import Nested
from . import masked
from .transitions import Transitions, transitions

__all__ = ["PolicyTerms", "entry", "objective", "policy_terms", "transitions_with_values"]


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


def policy_terms(info: Nested, act: Nested, valid: Tensor) -> PolicyTerms:
    """Compute log-probabilities, entropies and values of transitions from an actor-critic's info.

    Parameters
    ----------
    info : mapping of float tensors, ``(T, B, ...)``
        With the entries that the module's docstring lists. Rows after the first ``T``, such as the look-ahead row, are
        ignored.
    act : int64 tensor ``(T, B)``, or float tensor ``(T, B, ...)``
        The actions that were carried out, of one ``Discrete`` space (numbered from 0) or of one ``Box``.
    valid : bool tensor, ``(T, B)``
        Which transitions were carried out.

    Returns
    -------
    PolicyTerms
        In the dtype of the info, but at least float32; with gradients to the info.

    Raises
    ------
    TypeError
        The info is no mapping, or the actions are of another kind of space.
    ValueError
        The info lacks an entry, or an entry has another shape.
    """

    def rows(name: str, *trailing: int | None) -> Tensor:
        x = entry(info, name)
        if len(x) < len(valid) or not _fits(x.shape[1:], trailing):
            expected = ", ".join("A" if n is None else str(n) for n in ("n_seq", *trailing))
            n_actions = " and A the number of actions" if None in trailing else ""
            raise ValueError(
                f"`{name}` must be (n_seq, B, ...) = ({expected}), with n_seq >= {len(valid)}{n_actions}; got "
                f"{tuple(x.shape)}. If the last dimension has size 1, remove it with `.squeeze(-1)`."
            )
        # the inputs are masked, so that neither gradients nor NaN pass through transitions that are not valid
        x = x[: len(valid)]
        x = x.masked_fill(~masked.like(valid, x), 0)
        return x.to(torch.promote_types(x.dtype, torch.float32))

    policy: Distribution
    if isinstance(act, Tensor) and act.dtype == torch.int64 and act.ndim == 2:
        policy = Categorical(logits=rows("logits", *act.shape[1:], None), validate_args=False)
    elif isinstance(act, Tensor) and act.is_floating_point():
        mean, log_std = rows("mean", *act.shape[1:]), rows("log_std", *act.shape[1:])
        policy = Independent(Normal(mean, log_std.exp(), validate_args=False), act.ndim - 2, validate_args=False)
    else:
        got = f"{act.dtype} {tuple(act.shape)}" if isinstance(act, Tensor) else type(act).__name__
        raise TypeError(
            f"The actions must be those of a single Discrete space, int64 (T, B), or of a single Box, float; got "
            f"{got}. For other spaces write a loss with `rlplay.algo.unroll`, `transitions` and `returns`."
        )
    log_p = policy.log_prob(act.masked_fill(~masked.like(valid, act), 0))
    return PolicyTerms(log_p, policy.entropy(), rows("value", *valid.shape[1:]))


def _fits(shape: Sequence[int], expected: Sequence[int | None]) -> bool:
    """Return whether a shape is the expected one, where None stands for any size."""
    return len(shape) == len(expected) and all(n in (m, None) for n, m in zip(expected, shape, strict=True))


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
    current: PolicyTerms, gain: Tensor, target: Tensor, valid: Tensor, *, value_weight: float, entropy_weight: float
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute ``-gain + value_weight * squared error - entropy_weight * entropy``, means over valid transitions.

    Parameters
    ----------
    current : PolicyTerms
        The terms of the current actor, with gradients.
    gain : float tensor, ``(T, B)``
        The quantity that the policy maximises, with gradients.
    target : float tensor, ``(T, B)``
        The critic's targets, without gradients.
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
    value_loss = masked.mean((target - current.value).square(), valid)
    entropy = masked.mean(current.entropy, valid)
    loss = policy_loss + value_weight * value_loss - entropy_weight * entropy
    terms = {"policy_loss": policy_loss, "value_loss": value_loss, "entropy": entropy}
    terms["value"] = masked.mean(current.value, valid)
    return loss, {name: term.detach() for name, term in terms.items()}


def entry(info: Nested, name: str) -> Tensor:
    """Return an entry of an actor's info.

    Raises
    ------
    TypeError
        The info is no mapping.
    ValueError
        The info has no such entry.
    """
    if not isinstance(info, Mapping):
        raise TypeError(
            f"The actor's info (in `fragment.actor`, or returned by the actor's `forward`) must be a mapping from "
            f"names to tensors, among them {name!r}; got {type(info).__name__}. An actor's `forward` returns "
            f"`act, hx, {{{name!r}: ..., ...}}`."
        )
    if name not in info:
        raise ValueError(f"The actor's info lacks {name!r}; it has {sorted(info)}.")
    x: Tensor = info[name]
    return x
