"""Advantage actor-critic: the policy gradient with a learnt baseline, for one discrete action.

Mnih et al. (2016), "Asynchronous Methods for Deep Reinforcement Learning", section 4 and algorithm S3, run
synchronously. Their k-step advantage is ``C = 1`` here; lower values give GAE (Schulman et al., 2016).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from ..engine import BaseActorModule, Final, Fragment
from ..nested import Nested
from .returns import gae
from .transitions import blank_padding, transitions
from .unroll import unroll

__all__ = ["loss"]


def loss(
    fragment: Fragment,
    actor: BaseActorModule,
    *,
    gamma: float,
    C: float = 1.0,
    value_weight: float = 0.5,
    entropy_weight: float = 0.01,
    normalise: bool = False,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the actor-critic loss of a fragment, to be minimised.

    ::

        loss = mean(-log pi(a_t | s_t) A_t) + value_weight mean((A_t + V_t - V(s_t))^2) - entropy_weight mean(H_t)

    where ``A_t``, and ``V_t`` beside it, are constants: no gradient flows through advantages and targets. Means are
    over the valid transitions. Where a time limit cut an episode, its return is bootstrapped from its last state if
    the fragment has ``final`` (see :func:`rlplay.algo.transitions`).

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. Its actions are those of a single ``Discrete`` space: int64, ``(1+T, B)``, from 0.
    actor : BaseActorModule
        Its info must be a mapping with ``"logits"``, float ``(n_seq, B, A)``, unnormalised log-probabilities (``-inf``
        forbids an action), and ``"value"``, float ``(n_seq, B)``. It is unrolled over the fragment, with gradients.
    gamma : float in [0, 1]
        The discount.
    C : float in [0, 1]
        GAE's lambda. 1: returns to the end of the episode or of the fragment; 0: one step.
    value_weight, entropy_weight : float
        How much the critic's error and the policy's entropy (in nats) count.
    normalise : bool
        Whether to bring the advantages of the fragment to mean zero and deviation one. The value targets stay.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors, ``()``
        Detached, on the device: ``policy_loss``, ``value_loss``, ``entropy``, and the means ``advantage`` (before
        normalisation) and ``value``. The host is not made to wait: take ``.item()`` when it suits you. (A recurrent
        actor needs one wait, in :func:`rlplay.algo.unroll`.)

    Raises
    ------
    TypeError
        The info is no mapping, or the actions are not single integers.
    ValueError
        The info lacks an entry, or it has another shape.
    """
    info, _, final = unroll(blank_padding(fragment), actor)
    logits, value = _heads(info, fragment)
    final_value = final["value"] if isinstance(fragment.env.final, Final) else ()

    rew, fin, val, bootstrap, valid = transitions(fragment, value, final_value, gamma=gamma)
    advantage = gae(rew, fin, val, gamma=gamma, C=C, bootstrap=bootstrap)
    target = advantage + val

    # what is masked is what goes in: then nothing comes out of, nor any gradient goes into, rows that never happened
    value = value[:-1].masked_fill(~valid, 0)
    log_p = _log_probabilities(logits[:-1].masked_fill(~valid.unsqueeze(-1), 0))
    act = fragment.state.act[1:].masked_fill(~valid, 0).unsqueeze(-1)
    chosen = log_p.gather(-1, act).squeeze(-1)

    scaled = _normalised(advantage, valid) if normalise else advantage
    policy_loss = _mean(-chosen * scaled, valid)
    value_loss = _mean((target - value).square(), valid)
    entropy = _mean(-(log_p.exp() * log_p).sum(-1), valid)
    total = policy_loss + value_weight * value_loss - entropy_weight * entropy
    return total, {
        "policy_loss": policy_loss.detach(),
        "value_loss": value_loss.detach(),
        "entropy": entropy.detach(),
        "advantage": _mean(advantage, valid),
        "value": _mean(val, valid),
    }


def _heads(info: Nested, fragment: Fragment) -> tuple[Tensor, Tensor]:
    """Take the logits and the value out of the actor's info, or say what is amiss."""
    act: Any = fragment.state.act
    if not isinstance(act, Tensor) or act.dtype != torch.int64 or act.shape != fragment.state.fin.shape:
        got = f"{act.dtype} {tuple(act.shape)}" if isinstance(act, Tensor) else type(act).__name__
        raise TypeError(f"A2C is for a single Discrete action space: `state.act` must be int64 (1+T, B), got {got}.")
    if not isinstance(info, Mapping):
        raise TypeError(
            f"The actor's info must be a mapping with 'logits' and 'value', got {type(info).__name__}; return "
            f"`act, hx, {{'logits': logits, 'value': value}}` from its `forward`."
        )
    if missing := {"logits", "value"} - info.keys():
        raise ValueError(f"The actor's info lacks {sorted(missing)}; it has {sorted(info)}.")

    logits, value = info["logits"], info["value"]
    if logits.ndim != 3 or logits.shape[:2] != act.shape:
        raise ValueError(f"`logits` must be (1+T, B, A) = {(*act.shape, 'A')}, got {tuple(logits.shape)}.")
    if value.shape != act.shape:
        raise ValueError(
            f"`value` must be (1+T, B) = {tuple(act.shape)}, got {tuple(value.shape)}. A trailing dimension of one "
            f"goes by `.squeeze(-1)`."
        )
    return logits, value


def _log_probabilities(logits: Tensor) -> Tensor:
    """Normalise logits, in float32 at least; finite, since a forbidden action should add 0 to the entropy, not NaN."""
    log_p = logits.log_softmax(dim=-1, dtype=torch.promote_types(logits.dtype, torch.float32))
    return log_p.clamp(min=torch.finfo(log_p.dtype).min)


def _mean(x: Tensor, valid: Tensor) -> Tensor:
    """Average over the valid transitions; zero if there are none. The others must be finite."""
    return (x * valid).sum() / valid.sum().clamp(min=1)


def _normalised(x: Tensor, valid: Tensor) -> Tensor:
    """Bring to mean zero and deviation one, over the valid transitions."""
    centred = x - _mean(x, valid)
    return centred / (_mean(centred.square(), valid).sqrt() + 1e-8)
