"""Shared parts of the losses over replayed transitions: networks without recurrent state, critics and their targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ... import nested
from ...engine import BaseActorModule, State
from ...nested import Nested
from ...replay import Batch
from ..unroll import react_with_actions

__all__ = ["act_on", "backed_up", "critic_terms", "frozen", "weighted_mean"]


def act_on(actor: BaseActorModule, state: State) -> tuple[Nested, Nested]:
    """Return the actions and the info of an actor for the states of a batch, with gradients.

    Parameters
    ----------
    actor : BaseActorModule
        Without recurrent state, since single transitions contain none.
    state : State
        ``(1, N, ...)``.

    Returns
    -------
    act, info : nested tensors, ``(1, N, ...)``

    Raises
    ------
    ValueError
        The actor has a recurrent state.
    """
    act, hx, info = react_with_actions(actor, state, None)
    if nested.leaves(hx):
        raise ValueError(
            f"{type(actor).__qualname__} has a recurrent state, which single transitions do not contain: sample "
            f"sequences, and use `dqn.loss` on their fragment."
        )
    return act, info


def backed_up(batch: Batch, value: Tensor) -> Tensor:
    """Compute ``y = rew + discount V(next)``, ``(1, N)``, where the discount is zero without regard to ``V``."""
    return batch.rew + torch.where(batch.discount == 0, 0, batch.discount * value)


def critic_terms(batch: Batch, critic: nn.Module, value: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the sum over critics of half the mean squared error, and its info.

    Parameters
    ----------
    batch : rlplay.replay.Batch
        ``N`` transitions.
    critic : torch.nn.Module
        ``critic(obs, act)`` returns ``(1, N, n)``.
    value : float tensor, ``(1, N)``
        ``V(next)``, a constant.

    Returns
    -------
    loss : float tensor, ``()``
    info : dict of float tensors
        ``td_error`` ``(N,)``, ``q`` and ``target`` ``()``.

    Raises
    ------
    ValueError
        The values of the critics have another shape.
    """
    q: Tensor = critic(batch.state.obs, batch.act)
    if q.ndim != 3 or q.shape[:2] != batch.rew.shape:
        raise ValueError(
            f"`critic(obs, act)` must return (1, N, n) = {(*batch.rew.shape, 'n')}, the values of n critics; got "
            f"{tuple(q.shape)}."
        )
    y = backed_up(batch, value).unsqueeze(-1).to(q.dtype)
    loss = weighted_mean((q - y).square().sum(dim=-1) / 2, batch.weight)
    q = q.detach()
    return loss, {"td_error": (y - q).mean(dim=-1).squeeze(0), "q": q.mean(), "target": y.mean()}


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """Return a function that calls a module with its parameters as constants: gradients reach the arguments alone."""
    constants = {name: x.detach() for name, x in module.named_parameters()}
    return lambda *args: functional_call(module, constants, args)


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Compute ``mean(w_i x_i)`` of ``x`` ``(1, N)`` with importance weights ``(N,)``."""
    return (x * weight).mean()
