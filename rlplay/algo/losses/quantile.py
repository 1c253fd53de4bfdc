"""Quantile regression Q-learning (QR-DQN): the distribution of the return, by its quantiles.

Dabney et al. (2018), "Distributional Reinforcement Learning with Quantile Regression", eq. 9 and 10 and algorithm 1.

The info of a network is a mapping with ``"q_quantiles"``, float ``(n_seq, B, A, n)``: for each action of a single
``Discrete`` space, the quantiles of the return at ``tau_i = (2 i + 1) / 2 n``, whose mean is the action's value.
``rlplay.zoo.distributional.QuantileQNetwork`` is such a network.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional as F

from ...replay import Batch
from ..wrapped import Actor
from .replayed import act_on, backed_up, chosen_of, of_each_action, weighted_mean

__all__ = ["replayed"]


def replayed(
    batch: Batch,
    actor: Actor,
    *,
    target: Actor | None = None,
    double: bool = False,
    huber: float | None = 1.0,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the quantile regression loss of transitions from a replay buffer, to be minimised.

    ::

        loss = mean(w_i sum_k mean_j |tau_k - 1{u < 0}| l(u)),    u = y_ij - theta_k(s_i, a_i)
        y_ij = rew_i + discount_i theta'_j(next_i, a')

    with ``theta`` the quantiles, ``l`` Huber's loss or the absolute value, and ``a'`` the action of the largest mean.
    The targets ``y`` are constants. ``rew`` and ``discount`` already contain ``gamma``, the number of steps and the
    ends of episodes; where the discount is zero the next state is not looked at.

    Parameters
    ----------
    batch : rlplay.replay.Batch
        ``N`` transitions, on the actor's device. Its actions are those of a single ``Discrete`` space.
    actor, target : BaseActorModule
        Networks with the info above, without recurrent state. ``target=None``: the actor.
    double : bool
        Whether the actor, not the target network, chooses the next action. The paper's does not.
    huber : float > 0, or None
        The error above which Huber's loss is linear, with this slope (the paper's kappa). ``None``: the absolute value
        (kappa = 0).

    Returns
    -------
    loss : float tensor, ``()``
        With gradients to the actor's parameters.
    info : dict of float tensors
        Detached, on the device: ``td_error``, ``(N,)``, the mean of ``y`` less that of the quantiles, whose magnitude
        may be a priority; and the means ``q`` and ``target``, ``()``. The host does not wait for the device.

    Raises
    ------
    TypeError
        An info is no mapping, or the actions are of another kind of space.
    ValueError
        A network has a recurrent state; an info has no ``"q_quantiles"``, or it has another shape; ``huber`` is not
        positive.
    """
    if huber is not None and not huber > 0:
        raise ValueError(f"`huber` must be a number > 0, or None for the absolute value; got {huber!r}.")

    def quantiles_of(network: Actor, next_states: bool = True) -> Tensor:
        _, info = act_on(network, batch.next if next_states else batch.state)
        return of_each_action(info, "q_quantiles", batch.act, None)

    theta = chosen_of(quantiles_of(actor, next_states=False), batch.act)
    with torch.no_grad():
        following = quantiles_of(actor if target is None else target)
        chooser = quantiles_of(actor) if double and target is not None else following
        y = backed_up(batch, chosen_of(following, chooser.mean(dim=-1).argmax(dim=-1)))

    n = theta.shape[-1]
    tau = (2 * torch.arange(n, dtype=theta.dtype, device=theta.device) + 1) / (2 * n)
    u = y.to(theta.dtype).unsqueeze(-2) - theta.unsqueeze(-1)  # (1, N, k, j)
    size = u.abs() if huber is None else F.huber_loss(u, torch.zeros_like(u), reduction="none", delta=huber)
    each = (tau.unsqueeze(-1) - (u.detach() < 0).to(u.dtype)).abs() * size
    loss = weighted_mean(each.mean(dim=-1).sum(dim=-1), batch.weight)
    q, expected = theta.detach().mean(dim=-1), y.mean(dim=-1)
    return loss, {"td_error": (expected - q).squeeze(0), "q": q.mean(), "target": expected.mean()}
