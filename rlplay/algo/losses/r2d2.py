"""Parts of recurrent replay (R2D2): burn-in, value rescaling, and the priority of a sequence.

Kapturowski et al. (2019), "Recurrent Experience Replay in Distributed Reinforcement Learning", section 2.3 and 3. The
loss is :func:`rlplay.algo.dqn.loss`, with ``burn_in`` and ``rescale``::

    columns, ids, weight = buffer.sample_sequences(16, beta=0.6)  # from a buffer made with `sequences=True`
    options = {"gamma": 0.997, "n_lookahead": 5, "burn_in": 40, "rescale": 1e-3}
    loss, info = dqn.loss(columns, actor, target=target, weight=weight, **options)
    buffer.update(ids, r2d2.priority(info["td_error"], columns.env.valid[40:]))

The recurrent state from which a sequence starts is the stored one, ``fragment.hx``.
"""

from __future__ import annotations

from operator import itemgetter

import torch
from torch import Tensor

from ... import nested
from ...engine import Final, Fragment
from ..unroll import unroll
from ..wrapped import Actor

__all__ = ["burn_in", "priority", "rescaled", "unscaled"]


def burn_in(fragment: Fragment, actor: Actor, n_steps: int) -> Fragment:
    """Remove the first steps of a fragment, and start the rest from the recurrent state that an actor has then.

    The stored recurrent state is that of older weights. Running the present weights over some steps without learning
    from them makes it more like their own (section 3 of the paper). No gradient flows through these steps.

    Parameters
    ----------
    fragment : Fragment
        Of ``T`` steps. It is not changed.
    actor : BaseActorModule
        As for :func:`rlplay.algo.unroll`. It is unrolled over the first ``n_steps`` rows.
    n_steps : int
        From 0 to ``T - 1``.

    Returns
    -------
    Fragment
        Of ``T - n_steps`` steps, views of the fragment except for ``hx`` and ``final``. With ``final`` the host waits
        for the device, since the number of remaining episodes determines the shape.

    Raises
    ------
    ValueError
        ``n_steps`` is out of range.
    """
    state, info, env, hx = fragment
    n_total = len(env.valid)
    if not 0 <= n_steps < n_total:
        raise ValueError(f"`burn_in` must be from 0 to {n_total - 1} for a fragment of {n_total} steps, got {n_steps}.")
    if n_steps == 0:
        return fragment
    begin, rest, final = slice(n_steps + 1), slice(n_steps, None), env.final
    env = env._replace(final=())
    if nested.leaves(hx):
        first = Fragment(nested.map(itemgetter(begin), state), (), nested.map(itemgetter(slice(n_steps)), env), hx)
        with torch.no_grad():
            hx = unroll(first, actor).hx
    if isinstance(final, Final):
        final = nested.map(itemgetter(final.t >= n_steps), final)
        final = final._replace(t=final.t - n_steps)
    env = nested.map(itemgetter(rest), env)._replace(final=final)
    return Fragment(nested.map(itemgetter(rest), state), nested.map(itemgetter(rest), info), env, hx)


def rescaled(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Compute ``h(x) = sign(x) (sqrt(|x| + 1) - 1) + epsilon x``, which makes large returns small.

    Pohlen et al. (2018), "Observe and Look Further: Achieving Consistent Performance on Atari", section 3.2.

    Parameters
    ----------
    x : float tensor
        Returns.
    epsilon : float > 0
        Makes the inverse Lipschitz continuous.
    """
    return x / ((x.abs() + 1).sqrt() + 1) + epsilon * x  # without cancellation where x is small


def unscaled(x: Tensor, epsilon: float = 1e-3) -> Tensor:
    """Compute the inverse of :func:`rescaled` (proposition A.2 of the same paper)."""
    # the root of the return's magnitude + 1, less 1: the quotient (sqrt(1 + 4 epsilon (|x| + 1 + epsilon)) - 1) /
    # 2 epsilon - 1 of the paper, expanded so that nothing cancels where x is small
    root = (1 + 4 * epsilon * (x.abs() + 1 + epsilon)).sqrt()
    excess = 2 * x.abs() / (root + 1 + 2 * epsilon)
    return x.sign() * excess * (excess + 2)


def priority(td_error: Tensor, valid: Tensor, eta: float = 0.9) -> Tensor:
    """Compute ``eta max_t |delta_t| + (1 - eta) mean_t |delta_t|`` of each sequence, over its valid transitions.

    Parameters
    ----------
    td_error : float tensor, ``(T, B)``
        Temporal differences.
    valid : bool tensor, ``(T, B)``
        Which transitions were carried out.
    eta : float in [0, 1]
        The weight of the largest error. The paper has 0.9.

    Returns
    -------
    float tensor, ``(B,)``
        Zero for a column without valid transitions.

    Raises
    ------
    ValueError
        ``eta`` is out of range.
    """
    if not 0 <= eta <= 1:
        raise ValueError(f"`eta` must be in [0, 1], got {eta!r}.")
    size = td_error.abs().masked_fill(~valid, 0)
    return eta * size.amax(dim=0) + (1 - eta) * size.sum(dim=0) / valid.sum(dim=0).clamp(min=1)
