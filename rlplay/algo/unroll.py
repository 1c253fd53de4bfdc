"""Runs an actor over a collected fragment: the current actor for gradients, or a target network for values."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..dtypes import move
from ..engine import BaseActorModule, Final, Fragment, State
from ..nested import Nested
from .wrapped import Actor, call_step, synchronised_once, unwrap

__all__ = ["Unrolled", "react", "react_with_actions", "unroll", "unroll_with_actions"]


class NoFinal(NamedTuple):
    """The empty tuple that stands for the infos of last states, if the fragment has no ``final``.

    Whoever uses an entry of it gets an error that says what to do. A named tuple without fields is a container without
    leaves, as ``()`` is. Compiled calls give ``()`` itself.
    """

    def __getitem__(self, key: Any) -> Any:
        """Raise TypeError if an entry is asked for by name, IndexError if by place; else do as ``()`` does."""
        if isinstance(key, str):
            raise TypeError(_NO_FINAL)
        try:
            return tuple.__getitem__(self, key)
        except IndexError:
            raise IndexError(_NO_FINAL) from None

    def __getattr__(self, name: str) -> Any:
        """Raise AttributeError with the remedy: the caller expects a tensor, or a named tuple of tensors."""
        raise AttributeError(_NO_FINAL)

    def __repr__(self) -> str:
        return "()"


_NO_FINAL = (
    "this fragment has no `final`: collect it with `rollout(..., final=True)`, or leave the last states out, as in "
    "`transitions(fragment, value, gamma=gamma)`."
)


class Unrolled(NamedTuple):
    """The outputs of an actor for all rows of a fragment, with gradients."""

    info: Nested
    """Nested ``(1+T, B, ...)``: the info for all rows, including the look-ahead row, as in ``fragment.actor``."""
    hx: Nested
    """Nested ``(L, B, ...)``: the recurrent state at row ``T``, reset where ``fin``. With the same weights, this is the
    ``hx`` of the next fragment."""
    final: Nested
    """Nested ``(K, ...)``: the info for the last states ``fragment.env.final``; ``()`` if there is no ``final``. Using
    an entry of this ``()`` raises an error with the remedy, unless the call was compiled."""


def unroll(fragment: Fragment, actor: Actor) -> Unrolled:
    """Run an actor over a fragment, with gradients.

    The recurrent state starts from ``fragment.hx`` and is reset at every row with ``fin``. Consecutive rows without a
    reset between them are one call of ``actor.step``. The padding of a sticky fragment does not split such a run of
    rows, and is one further call. The look-ahead row is a virtual step. The last states ``fragment.env.final`` are a
    virtual step as well, with the same inputs as in the engine: ``stepno + 1``, the last observation, the action and
    the reward that led to it, ``fin`` False, and the recurrent state before the reset.

    An actor without recurrent state is called once for all rows. This call is virtual, since none of its actions is
    carried out and no recurrent state advances.

    For a recurrent actor the host waits for the device once, as the resets determine the calls. Under
    ``torch.compile`` a recurrent actor is unrolled eagerly, and an actor without recurrent state is compiled.

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. It is not changed.
    actor : BaseActorModule, or one in a wrapper of torch
        Any actor whose recurrent state has the structure of ``fragment.hx``. Its mode (train or eval) is not changed,
        and the actions that it samples are discarded. A wrapped one (``torch.compile(actor)``,
        ``DistributedDataParallel(actor)``) is called through its ``forward``: the compiled graph is used, and gradients
        are synchronised. Pass the actor inside to ``rollout``.

    Returns
    -------
    Unrolled
        The info, the recurrent state and the info for the last states.

    Raises
    ------
    ValueError
        The info lacks the two leading dimensions of the rows, or the actor has a recurrent state and the fragment has
        none.
    TypeError
        ``actor`` is no :class:`~rlplay.engine.BaseActorModule`, nor one in a wrapper of torch; or it is wrapped and has
        both a ``step`` and a ``forward`` of its own.
    """
    return _unroll(fragment, actor, react)


def unroll_with_actions(fragment: Fragment, actor: Actor) -> Unrolled:
    """Do the same as :func:`unroll`, and keep the actions: the result's ``info`` and ``final`` are ``(act, info)``."""
    return _unroll(fragment, actor, _react_to_pairs)


_React = Callable[..., tuple[Nested, Nested]]
"""Calls the actor as :func:`react` does, and returns what is to be kept of each row, and the recurrent state."""


def _unroll(fragment: Fragment, actor: Actor, react: _React) -> Unrolled:
    if nested.leaves(fragment.hx) and torch.compiler.is_compiling():
        # the calls depend on the rows where episodes begin, so the compiler would recompile for each fragment
        eagerly: Unrolled = torch.compiler.disable(_unroll)(fragment, actor, react)
        return eagerly
    with synchronised_once(actor):
        return _unroll_in_calls(fragment, actor, react)


def _unroll_in_calls(fragment: Fragment, actor: Actor, react: _React) -> Unrolled:
    """Unroll with any number of calls of the actor."""
    if nested.leaves(fragment.hx):
        info, hx, hx_final = _unroll_recurrent(fragment, actor, react)
    else:
        info, hx = react(actor, fragment.state, None, virtual=True)
        if nested.leaves(hx):
            raise ValueError(
                f"{type(actor).__qualname__} has a recurrent state, but `fragment.hx` is {fragment.hx!r}: the fragment "
                f"was collected by an actor without one. Unroll an actor of the same kind."
            )
        hx_final = hx = fragment.hx

    if not isinstance(fragment.env.final, Final):
        return Unrolled(info, hx, () if torch.compiler.is_compiling() else NoFinal())
    if len(fragment.env.final.t) == 0:
        # not every network accepts an empty batch (batch norm, cuDNN), and the shapes follow from `info`
        return Unrolled(info, hx, nested.map(lambda x: x[-1, :0], info))
    final, _ = react(actor, _last_states(fragment), hx_final, virtual=True)
    return Unrolled(info, hx, nested.map(lambda x: x[0], final))


def _unroll_recurrent(fragment: Fragment, actor: Actor, react: _React) -> tuple[Nested, Nested, Nested]:
    """Call ``actor.step`` for each run of rows without resets.

    Returns
    -------
    info : nested ``(1+T, B, ...)``
        For all rows.
    hx : nested ``(L, B, ...)``
        The recurrent state at row ``T``.
    hx_final : nested ``(L, K, ...)``
        The recurrent states for the last states of the episodes that ended; ``()`` without ``final``.
    """
    state, final, hx = fragment.state, fragment.env.final, fragment.hx
    # padding: rows that are reset and whose recurrent state is discarded, such as the rows after the end of an episode
    # in a sticky fragment. Padding does not split a run, and is computed separately below
    padding = state.fin[:-1] & state.fin[1:] & ~fragment.env.valid
    resets = torch.cat([state.fin[:-1] & ~padding, state.fin[-1:]])
    splits = resets[1:-1].any(dim=1)  # (T-1,): True if a run begins at row 1, 2, ..., T-1
    if isinstance(final, Final):  # a run ends with each episode, since the recurrent state at the end is needed
        splits = splits | (state.fin[1:-1] & fragment.env.valid[:-1]).any(dim=1)
    n_steps, n_envs = padding.shape
    packed = torch.cat([resets, padding, splits[:, None].expand(-1, n_envs)]).cpu()  # the only wait for the device
    host_resets, host_padding, host_splits = packed.split([n_steps + 1, n_steps, n_steps - 1])
    starts = [0, *(host_splits[:, 0].nonzero().flatten() + 1).tolist(), n_steps]

    infos, hx_after_run = [], []
    for start, stop in pairwise([*starts, n_steps + 1]):
        hx = _reset(actor, hx, resets[start], host_resets[start])
        info, advanced = react(actor, nested.map(itemgetter(slice(start, stop)), state), hx, virtual=start == n_steps)
        infos.append(info)
        if start < n_steps:
            hx = advanced
            hx_after_run.append(hx)
    info = nested.map(partial(move, lambda *xs: torch.cat(xs)), *infos)

    if host_padding.any():
        t, b = (index.to(padding.device) for index in host_padding.nonzero(as_tuple=True))
        fresh = _reset(actor, fragment.hx, torch.ones_like(resets[0]), torch.ones_like(host_resets[0]))
        rows = nested.map(partial(move, lambda x: x[t, b][None]), state)
        fresh = nested.map(partial(move, lambda x: x[:, b]), fresh)
        padding_info, _ = react(actor, rows, fresh, virtual=True)
        info = nested.map(partial(move, lambda x, y: x.index_put((t, b), y[0])), info, padding_info)

    hx_final: Nested = ()
    if isinstance(final, Final):
        # the index of the run that ends with the episode
        run = torch.cat([splits[:0].new_zeros(1), splits]).cumsum(0)[final.t]
        # contiguous, as cuDNN requires
        chosen = partial(move, lambda *xs: torch.stack(xs)[run, :, final.b].movedim(0, 1).contiguous())
        hx_final = nested.map(chosen, *hx_after_run)
    return info, hx, hx_final


def _reset(actor: Actor, hx: Nested, mask: Tensor, host_mask: Tensor) -> Nested:
    """Reset the recurrent state of the environments in ``mask``; ``host_mask`` is the same mask on the host."""
    if not host_mask.any():
        return hx
    actor = unwrap(actor)
    if getattr(actor.reset, "__func__", None) is BaseActorModule.reset:
        return actor.reset(hx, mask)
    # some overrides do not work with a mask (`x[:, mask].zero_()` changes a copy); all work with an integer
    for b in host_mask.nonzero().flatten().tolist():
        hx = actor.reset(hx, b)
    return hx


def _last_states(fragment: Fragment) -> State:
    """Return the true last states of the episodes that ended, as one row of ``K`` columns: leaves ``(1, K, ...)``."""
    state, final = fragment.state, fragment.env.final

    def next_row(x: Tensor) -> Tensor:
        row: Tensor = move(lambda x: x[final.t + 1, final.b][None], x)
        return row

    stepno = state.stepno[final.t, final.b][None] + 1
    return State(
        stepno=stepno,
        obs=nested.map(lambda x: x[None], final.obs),
        act=nested.map(next_row, state.act),
        rew=next_row(state.rew),
        fin=torch.zeros_like(stepno, dtype=torch.bool),
    )


def react(actor: Actor, state: State, hx: Nested, *, virtual: bool = True) -> tuple[Nested, Nested]:
    """Call ``actor.step`` as :func:`react_with_actions` does, and return only ``info`` and ``hx``."""
    _, hx, info = react_with_actions(actor, state, hx, virtual=virtual)
    return info, hx


def _react_to_pairs(actor: Actor, state: State, hx: Nested, *, virtual: bool = True) -> tuple[Nested, Nested]:
    """Call ``actor.step`` as :func:`react_with_actions` does, and return ``(act, info)`` and ``hx``."""
    act, hx, info = react_with_actions(actor, state, hx, virtual=virtual)
    return (act, info), hx


def react_with_actions(
    actor: Actor, state: State, hx: Nested, *, virtual: bool = True
) -> tuple[Nested, Nested, Nested]:
    """Call ``actor.step`` on consecutive rows without a reset between them, with gradients.

    Parameters
    ----------
    actor : BaseActorModule
        Its mode (train or eval) is not changed.
    state : State
        Leaves are ``(n_seq, B, ...)``, on the actor's device.
    hx : nested tensors, ``(L, B, ...)``
        The recurrent state, already reset; ``None``: the actor's initial one.
    virtual : bool
        Passed to ``actor.step``.

    Returns
    -------
    act : nested tensors, ``(n_seq, B, ...)``
    hx : nested tensors, ``(L, B, ...)``
        The recurrent state after the last row.
    info : nested tensors, ``(n_seq, B, ...)``

    Raises
    ------
    ValueError
        The info lacks the two leading dimensions of the rows.
    """
    act, hx, info = call_step(actor, state, hx, virtual=virtual)
    lead = state.fin.shape
    if any(_leading(x) != tuple(lead) for x in nested.leaves(info)):
        found = dict(zip(nested.names(info, "info"), [_leading(x) for x in nested.leaves(info)], strict=True))
        raise ValueError(
            f"Every leaf of the actor's info must begin with the dimensions (n_seq, B) = {tuple(lead)} of the "
            f"inputs; {type(actor).__qualname__} gave {found}."
        )
    return act, hx, info


def _leading(x: Any) -> tuple[int, ...]:
    return tuple(x.shape[:2])
