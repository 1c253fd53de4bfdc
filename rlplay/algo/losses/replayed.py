"""Shared parts of the losses over replayed transitions: networks without recurrent state, critics and their targets."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from ... import nested
from ...dtypes import at_least_float32
from ...engine import State
from ...nested import Nested
from ...replay import Batch
from .. import masked
from ..policy import entry
from ..unroll import react_with_actions
from ..wrapped import Actor

__all__ = [
    "act_on",
    "backed_up",
    "checked_values",
    "check_discrete",
    "chosen_of",
    "critic_terms",
    "frozen",
    "of_each_action",
    "values_of",
    "weighted_mean",
]


def act_on(actor: Actor, state: State) -> tuple[Nested, Nested]:
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
            f"sequences, and use `dqn.loss`, or `sequence_critic_loss` of `sac` or `td3`, on their fragment."
        )
    return act, info


def backed_up(batch: Batch, value: Tensor) -> Tensor:
    """Compute ``y = rew + discount V(next)``, ``(1, N, ...)``; where the discount is zero, without regard to ``V``."""
    rew, discount = masked.like(batch.rew, value), masked.like(batch.discount, value)
    return rew + torch.where(discount == 0, 0, discount * value)


def chosen_of(x: Tensor, act: Tensor) -> Tensor:
    """Return the entries ``(1, N, n)`` of actions ``(1, N)``, given those of all actions, ``(1, N, A, n)``."""
    return x.gather(2, act[..., None, None].expand(-1, -1, 1, x.shape[-1])).squeeze(2)


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
    q = values_of(critic, batch.state, batch.act)
    y = backed_up(batch, value).detach().unsqueeze(-1).to(q.dtype)  # a learnt reward may have a gradient
    loss = weighted_mean((q - y).square().sum(dim=-1) / 2, batch.weight)
    q = q.detach()
    return loss, {"td_error": (y - q).mean(dim=-1).squeeze(0), "q": q.mean(), "target": y.mean()}


def values_of(critic: Callable[..., Tensor], state: State, act: Nested) -> Tensor:
    """Return the values of actions by several critics, ``(1, N, n)``.

    Raises
    ------
    ValueError
        The values have another shape.
    """
    return checked_values(critic(state.obs, act), state.fin.shape, "`critic(obs, act)` must return (1, N, n)")


def checked_values(q: Tensor, lead: torch.Size, demand: str) -> Tensor:
    """Return the values of several critics, ``(*lead, n)``, at least float32.

    Raises
    ------
    ValueError
        They have another shape. The message begins with ``demand``.
    """
    if q.ndim != 3 or q.shape[:2] != lead:
        raise ValueError(f"{demand} = {(*lead, 'n')}, the values of n critics; got {tuple(q.shape)}.")
    return at_least_float32(q)


def frozen(module: nn.Module) -> Callable[..., Tensor]:
    """Return a function that calls a module with its parameters as constants: gradients reach the arguments alone."""
    constants = {name: x.detach() for name, x in module.named_parameters()}
    return lambda *args: functional_call(module, constants, args)


def of_each_action(info: Nested, name: str, act: Nested, n: int | None) -> Tensor:
    """Return an entry of an info that has ``n`` numbers for each action of a single Discrete space.

    Parameters
    ----------
    info : mapping
        The info of a network.
    name : str
        The name of the entry.
    act : int64 tensor, ``(1, N)``
        Actions; only their dtype and shape are used.
    n : int, or None
        The number of numbers for each action; ``None``: any.

    Returns
    -------
    float tensor, ``(1, N, A, n)``
        At least float32.

    Raises
    ------
    TypeError
        The info is no mapping, or the actions are of another kind of space.
    ValueError
        There is no such entry, or it has another shape.
    """
    check_discrete(act)
    x: Tensor = entry(info, name)
    if x.ndim != 4 or x.shape[:2] != act.shape or n not in (None, x.shape[-1]):
        expected = (*act.shape, "A", "n" if n is None else n)
        raise ValueError(f"`{name}` must be (n_seq, B, A, n) = {expected}, got {tuple(x.shape)}.")
    return at_least_float32(x)


def check_discrete(act: Nested) -> None:
    """Raise TypeError unless actions are those of a single Discrete space."""
    if not isinstance(act, Tensor) or act.dtype != torch.int64 or act.ndim != 2:
        got = f"{act.dtype} {tuple(act.shape)}" if isinstance(act, Tensor) else type(act).__name__
        raise TypeError(f"Q-learning is for the actions of a single Discrete space, int64 (n_seq, B); got {got}.")


def weighted_mean(x: Tensor, weight: Tensor) -> Tensor:
    """Compute ``mean(w_i x_i)`` of ``x`` ``(1, N)`` with importance weights ``(N,)``."""
    return (x * weight).mean()
