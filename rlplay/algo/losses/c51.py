"""Categorical Q-learning (C51): the distribution of the return, on a fixed grid of atoms.

Bellemare et al. (2017), "A Distributional Perspective on Reinforcement Learning", algorithm 1. With ``double=True`` the
actor chooses the next action, as in Hessel et al. (2018), "Rainbow", eq. 3 to 5, where the loss is also the priority.

The info of a network is a mapping with ``"q_logits"``, float ``(n_seq, B, A, n)``: for each action of a single
``Discrete`` space, the unnormalised log-probabilities that the return is each of the ``n`` atoms. The atoms are an
evenly spaced grid, such as ``torch.linspace(-10, 10, 51)``. ``rlplay.zoo.distributional.CategoricalQNetwork`` is such
a network.
"""

from __future__ import annotations

import torch
from torch import Tensor

from ...replay import Batch
from ..wrapped import Actor
from .replayed import act_on, chosen_of, of_each_action, weighted_mean

__all__ = ["project", "replayed"]


def replayed(
    batch: Batch,
    actor: Actor,
    *,
    atoms: Tensor,
    target: Actor | None = None,
    double: bool = True,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the categorical Q-learning loss of transitions from a replay buffer, to be minimised.

    ::

        loss = mean(w_i KL(m_i || p(s_i, a_i)))
        m_i = the distribution of rew_i + discount_i Z, projected onto the atoms,    Z ~ p'(next_i, a')
        a' = the best action of the actor (double) or of the target network, by the mean of its distribution

    The targets ``m`` are constants. ``rew`` and ``discount`` already contain ``gamma``, the number of steps and the
    ends of episodes; where the discount is zero the next state is not looked at. The cross-entropy of the papers
    differs from this divergence by a constant.

    Parameters
    ----------
    batch : rlplay.replay.Batch
        ``N`` transitions, on the actor's device. Its actions are those of a single ``Discrete`` space.
    actor, target : BaseActorModule
        Networks with the info above, without recurrent state. ``target=None``: the actor.
    atoms : float tensor, ``(n,)``
        The returns that are possible: at least two, rising in equal steps. Not checked, since the host would have to
        wait for the device. Larger and smaller returns count as the last and the first atom. They should be on the
        device of the networks, as the buffer ``actor.atoms`` is: a copy of them makes the host wait.
    double : bool
        Whether the actor, not the target network, chooses the next action.

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors
        Detached, on the device: ``kl``, ``(N,)``, in nats and not negative, which may be the priority in
        ``buffer.update(batch.ids, info["kl"])``; and the means ``q`` and ``target``, ``()``. The host does not wait for
        the device.

    Raises
    ------
    TypeError
        An info is no mapping, or the actions are of another kind of space.
    ValueError
        A network has a recurrent state; an info has no ``"q_logits"``, or it has another shape.
    """

    def log_p_of(network: Actor, next_states: bool = True) -> Tensor:
        _, info = act_on(network, batch.next if next_states else batch.state)
        return of_each_action(info, "q_logits", batch.act, len(atoms)).log_softmax(dim=-1)

    log_p = chosen_of(log_p_of(actor, next_states=False), batch.act)
    atoms = atoms.to(log_p)
    with torch.no_grad():
        following = log_p_of(actor if target is None else target).exp()
        chooser = log_p_of(actor).exp() if double and target is not None else following
        p = chosen_of(following, _means(chooser, atoms).argmax(dim=-1))
        # without a next state, all of Z times zero: any distribution will do, but no NaN
        p = torch.where((batch.discount == 0).unsqueeze(-1), 1 / len(atoms), p)
        m = project(p, batch.rew.unsqueeze(-1) + batch.discount.unsqueeze(-1) * atoms, atoms)
    kl = (torch.xlogy(m, m) - m * log_p).sum(dim=-1)
    # rounding may make the divergence of almost equal distributions negative, which no priority may be
    q, aim = _means(log_p.exp(), atoms).mean(), _means(m, atoms).mean()
    info = {"kl": kl.squeeze(0).clamp(min=0), "q": q, "target": aim}
    return weighted_mean(kl, batch.weight), {name: x.detach() for name, x in info.items()}


def _means(p: Tensor, atoms: Tensor) -> Tensor:
    """Return the means of distributions; not by a matrix product, for which autocast would round to 8 bits."""
    return (p * atoms).sum(dim=-1)


def project(p: Tensor, values: Tensor, atoms: Tensor) -> Tensor:
    """Move probabilities from any values to evenly spaced atoms: each value's to its two neighbours, linearly.

    Bellemare et al. (2017), eq. 7.

    Parameters
    ----------
    p, values : float tensors, ``(..., m)``
        Probabilities, and the values that have these probabilities.
    atoms : float tensor, ``(n,)``
        At least two, rising in equal steps. Values outside of the grid are moved to its ends.

    Returns
    -------
    float tensor, ``(..., n)``
    """
    step = (atoms[-1] - atoms[0]) / (len(atoms) - 1)
    position = ((values - atoms[0]) / step).clamp(0, len(atoms) - 1)
    distance = position.unsqueeze(-1) - torch.arange(len(atoms), dtype=p.dtype, device=p.device)
    return (p.unsqueeze(-1) * (1 - distance.abs()).clamp(min=0)).sum(dim=-2)
