"""Shared parts of the losses of actors and critics with a recurrent state, over sequences.

**Critics.** ``critic(rows, act)``, from rows and actions, nested ``(n_seq, B, ...)``, to the values of ``n`` critics,
``(n_seq, B, n)``. The rows are observations. If the critic has a ``memory``, an actor whose info are features, the rows
are these features, and the critics know the history by them. No fragment contains the memory's recurrent state: it
starts each sequence from its first one, so give it steps to burn in. :class:`rlplay.zoo.continuous.RecurrentCritics` is
such a module.
"""

from __future__ import annotations

from collections.abc import Callable
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ... import nested
from ...engine import Final, Fragment
from ...nested import Nested
from .. import masked
from ..returns import multistep
from ..transitions import blank_padding, taken, transitions
from ..unroll import react_with_actions, unroll
from ..wrapped import Actor, parallel_in, unwrap
from . import r2d2
from .replayed import checked_values

__all__ = ["Rows", "critic_terms", "prepared", "rows_of", "values_of", "weighted"]


class Rows(NamedTuple):
    """What a critic takes in the place of observations."""

    rows: Nested
    """``(1+T, B, ...)``"""
    final: Nested
    """``(1, K, ...)``: of the true last states; ``()`` if the fragment has no ``final``."""


def prepared(fragment: Fragment, actor: Actor, burn_in: int) -> Fragment:
    """Blank the padding, and remove the first steps, from which the actor computes its recurrent state."""
    return r2d2.burn_in(blank_padding(fragment), actor, burn_in)


def rows_of(fragment: Fragment, critic: nn.Module, burn_in: int) -> Rows:
    """Return the rows for a critic, behind the steps to burn in, with gradients to its memory if it has one."""
    memory = _memory_of(critic)
    if memory is None:
        rest = r2d2.burn_in(blank_padding(fragment)._replace(hx=()), critic, burn_in)
        final = rest.env.final
        return Rows(rest.state.obs, nested.map(lambda x: x[None], final.obs) if isinstance(final, Final) else ())
    fragment = blank_padding(fragment._replace(hx=_first_state(memory, fragment)))
    info, _, last = unroll(r2d2.burn_in(fragment, memory, burn_in), memory)
    return Rows(info, nested.map(lambda x: x[None], last) if isinstance(fragment.env.final, Final) else ())


def _memory_of(critic: nn.Module) -> Any:
    """Return a critic's memory, or None if it has none. DistributedDataParallel hides the attributes of its module."""
    memory = getattr(critic, "memory", None)
    parallel = parallel_in(critic) if memory is None else None
    return memory if parallel is None else getattr(parallel.module, "memory", None)


def _first_state(memory: Actor, fragment: Fragment) -> Nested:
    """Return a memory's first recurrent state, ``(L, B, ...)``."""
    with torch.no_grad():
        row = nested.map(itemgetter(slice(1)), blank_padding(fragment._replace(hx=())).state)
        _, hx, _ = react_with_actions(memory, row, None)
        return unwrap(memory).reset(hx, torch.ones_like(row.fin[0])) if nested.leaves(hx) else ()


def values_of(critic: Callable[..., Tensor], rows: Nested, act: Nested) -> Tensor:
    """Return the values of actions by several critics, ``(n_seq, B, n)``; an empty tensor if there are no actions.

    Raises
    ------
    ValueError
        The values have another shape.
    """
    first: Tensor = nested.leaves(act)[0]
    lead = first.shape[:2]
    if 0 in lead:  # no episode ended; not every network accepts an empty batch
        return first.new_zeros(*lead, 1)
    return checked_values(critic(rows, act), lead, "`critic(rows, act)` must return (n_seq, B, n)")


def critic_terms(
    fragment: Fragment,
    critic: nn.Module,
    rows: Nested,
    value: Tensor,
    final_value: Tensor | tuple[()],
    *,
    gamma: float,
    weight: Tensor | None,
) -> tuple[Tensor, dict[str, Tensor]]:
    """Compute the sum over critics of half the mean squared error, and its info.

    Parameters
    ----------
    fragment : Fragment
        Of ``T`` steps, prepared.
    rows : nested tensors, ``(1+T, B, ...)``
        For the critic, with gradients.
    value, final_value : float tensors, ``(1+T, B)`` and ``(K,)``
        ``V(s_t)``, and those of the true last states; constants.
    weight : float tensor, ``(B,)`` or ``(T, B)``, or None

    Returns
    -------
    loss : float tensor, ``()``
    info : dict of float tensors
        ``td_error`` ``(T, B)``, ``q`` and ``target`` ``()``.
    """
    x = transitions(fragment, value, final_value, gamma=gamma)
    y = multistep(x.rew, x.fin, x.val, gamma=gamma, n_lookahead=1, bootstrap=x.bootstrap)
    valid = x.valid
    q = values_of(critic, nested.map(itemgetter(slice(-1)), rows), taken(fragment))
    q = q.masked_fill(~valid.unsqueeze(-1), 0)
    y = y.masked_fill(~valid, 0).to(q.dtype)
    error = (q - y.unsqueeze(-1)).square().sum(dim=-1) / 2
    q = q.detach().mean(dim=-1)
    info = {"td_error": y - q, "q": masked.mean(q, valid), "target": masked.mean(y, valid)}
    return masked.mean(weighted(error, weight), valid), info


def weighted(x: Tensor, weight: Tensor | None) -> Tensor:
    """Multiply by importance weights, ``(T, B)`` or ``(B,)``.

    Raises
    ------
    ValueError
        The weights have another shape.
    """
    if weight is None:
        return x
    if weight.shape not in (x.shape, x.shape[1:]):
        expected = f"(T, B) = {tuple(x.shape)} or (B,) = {tuple(x.shape[1:])}"
        raise ValueError(f"`weight` must be {expected}, got {tuple(weight.shape)}.")
    return x * weight
