"""Running an actor over a fragment once more: the current network for gradients, a target network for values."""

from __future__ import annotations

from itertools import pairwise
from operator import itemgetter
from typing import Any, NamedTuple

import torch
from torch import Tensor

from .. import nested
from ..engine import BaseActorModule, Final, Fragment, State
from ..nested import Nested

__all__ = ["Unrolled", "react", "unroll"]


class Unrolled(NamedTuple):
    """An actor's reactions to a fragment. Everything carries gradients."""

    info: Nested
    """Nested ``(1+T, B, ...)``: the info for all rows, the look-ahead row included. Compare ``fragment.actor``."""
    hx: Nested
    """The recurrent state at row ``T``, reset where ``fin``: the next fragment's ``hx`` if the weights are the same."""
    final: Nested
    """Nested ``(K, ...)``: the info for the last states ``fragment.env.final``; ``()`` if they were not asked for."""


def unroll(fragment: Fragment, actor: BaseActorModule) -> Unrolled:
    """Run an actor over a fragment, with gradients.

    The recurrent state starts from ``fragment.hx`` and is reset at every row with ``fin``. Consecutive rows without a
    reset among them are one call of ``actor.step``; the padding of a sticky fragment does not interrupt them, and is
    one call, too. The look-ahead row is a virtual step, and so are the last states ``fragment.env.final``, for which
    the actor is given what the engine gives it: ``stepno + 1``, the last observation, the action and the reward that
    led to it, ``fin`` False, and the recurrent state of that moment, before the reset.

    An actor without recurrent state is called once for all rows. As none of its actions is carried out and nothing
    advances, that call is virtual as a whole. Only for recurrent actors is the host made to wait for the device, once,
    to learn where the resets are. So under ``torch.compile`` they run as they stand, eagerly, and others are compiled.

    Parameters
    ----------
    fragment : Fragment
        On the actor's device. It is left as it is.
    actor : BaseActorModule
        Any actor whose recurrent state has the structure of ``fragment.hx``. Its mode (train or eval) is left alone,
        and the actions that it samples are thrown away.

    Returns
    -------
    Unrolled
        The info, the recurrent state and the info for the last states.

    Raises
    ------
    ValueError
        The info has not the two leading dimensions of the rows, or the actor has a recurrent state and the fragment
        none.
    """
    if nested.leaves(fragment.hx) and torch.compiler.is_compiling():
        # which calls are made depends on where episodes begin: a compiler would begin anew with each fragment
        eagerly: Unrolled = torch.compiler.disable(unroll)(fragment, actor)
        return eagerly
    if nested.leaves(fragment.hx):
        info, hx, before = _unroll_recurrent(fragment, actor)
    else:
        info, hx = react(actor, fragment.state, None, virtual=True)
        if nested.leaves(hx):
            raise ValueError(
                f"{type(actor).__qualname__} has a recurrent state, but `fragment.hx` is {fragment.hx!r}: the fragment "
                f"was collected by an actor without one. Unroll an actor of the same kind."
            )
        before = hx = fragment.hx

    if not isinstance(fragment.env.final, Final):
        return Unrolled(info, hx, ())
    if len(fragment.env.final.t) == 0:
        # a batch of none is not for every network (batch norm, cuDNN); the shapes are known without asking
        return Unrolled(info, hx, nested.map(lambda x: x[-1, :0], info))
    final, _ = react(actor, _last_states(fragment), before, virtual=True)
    return Unrolled(info, hx, nested.map(lambda x: x[0], final))


def _unroll_recurrent(fragment: Fragment, actor: BaseActorModule) -> tuple[Nested, Nested, Nested]:
    """Step over runs of rows without resets. Return the info, ``hx`` at row ``T``, and ``hx`` for the last states."""
    state, final, hx = fragment.state, fragment.env.final, fragment.hx
    # what begins afresh and passes nothing on need not interrupt a run: in a sticky fragment, all rows after an end
    padding = state.fin[:-1] & state.fin[1:] & ~fragment.env.valid
    resets = torch.cat([state.fin[:-1] & ~padding, state.fin[-1:]])
    cut = resets[1:-1].any(dim=1)
    if isinstance(final, Final):  # for whose reactions the recurrent state is needed where the episode ended
        cut = cut | (state.fin[1:-1] & fragment.env.valid[:-1]).any(dim=1)
    n_steps, n_envs = padding.shape
    packed = torch.cat([resets, padding, cut[:, None].expand(-1, n_envs)]).cpu()  # the one wait for the device
    begun, apart, cuts = packed.split([n_steps + 1, n_steps, n_steps - 1])
    starts = [0, *(cuts[:, 0].nonzero().flatten() + 1).tolist(), n_steps]

    infos, after = [], []
    for start, stop in pairwise([*starts, n_steps + 1]):
        hx = _reset(actor, hx, resets[start], begun[start])
        info, advanced = react(actor, nested.map(itemgetter(slice(start, stop)), state), hx, virtual=start == n_steps)
        infos.append(info)
        if start < n_steps:
            hx = advanced
            after.append(hx)
    info = nested.map(lambda *xs: torch.cat(xs), *infos)

    if apart.any():
        t, b = (index.to(padding.device) for index in apart.nonzero(as_tuple=True))
        fresh = _reset(actor, fragment.hx, torch.ones_like(resets[0]), torch.ones_like(begun[0]))
        rows, fresh = nested.map(lambda x: x[t, b][None], state), nested.map(lambda x: x[:, b], fresh)
        met, _ = react(actor, rows, fresh, virtual=True)
        info = nested.map(lambda x, y: x.index_put((t, b), y[0]), info, met)

    before: Nested = ()
    if isinstance(final, Final):
        run = torch.cat([cut[:0].new_zeros(1), cut]).cumsum(0)[final.t]  # it ends with the last transition
        # contiguous, as cuDNN will have it
        before = nested.map(lambda *xs: torch.stack(xs)[run, :, final.b].movedim(0, 1).contiguous(), *after)
    return info, hx, before


def _reset(actor: BaseActorModule, hx: Nested, mask: Tensor, where: Tensor) -> Nested:
    """Reset the recurrent state where an episode begins; ``where`` is ``mask`` on the host."""
    if not where.any():
        return hx
    if getattr(actor.reset, "__func__", None) is BaseActorModule.reset:
        return actor.reset(hx, mask)
    # not every override honours a mask (`x[:, mask].zero_()` changes a copy); an integer is always right
    for b in where.nonzero().flatten().tolist():
        hx = actor.reset(hx, b)
    return hx


def _last_states(fragment: Fragment) -> State:
    """Put the true last states of the episodes that ended into one row: leaves are ``(1, K, ...)``."""
    state, final = fragment.state, fragment.env.final

    def arrived(x: Tensor) -> Tensor:
        return x[final.t + 1, final.b][None]

    stepno = state.stepno[final.t, final.b][None] + 1
    return State(
        stepno=stepno,
        obs=nested.map(lambda x: x[None], final.obs),
        act=nested.map(arrived, state.act),
        rew=arrived(state.rew),
        fin=torch.zeros_like(stepno, dtype=torch.bool),
    )


def react(actor: BaseActorModule, state: State, hx: Nested, *, virtual: bool = True) -> tuple[Nested, Nested]:
    """Let an actor react to some rows that no reset separates, with gradients: one call of its ``step``.

    Parameters
    ----------
    actor : BaseActorModule
        Its mode (train or eval) is left alone, and the actions that it samples are thrown away.
    state : State
        Leaves are ``(n_seq, B, ...)``, on the actor's device.
    hx : nested tensors, ``(L, B, ...)``
        The recurrent state, already reset; ``None`` asks for a fresh one.
    virtual : bool
        What the actor is told.

    Returns
    -------
    info : nested tensors, ``(n_seq, B, ...)``
    hx : nested tensors, ``(L, B, ...)``
        The recurrent state after the last row.

    Raises
    ------
    ValueError
        The info has not the two leading dimensions of the rows.
    """
    _, hx, info = actor.step(*state, hx=hx, virtual=virtual)
    lead = state.fin.shape
    if any(_leading(x) != tuple(lead) for x in nested.leaves(info)):
        found = dict(zip(nested.names(info, "info"), [_leading(x) for x in nested.leaves(info)], strict=True))
        raise ValueError(
            f"Every leaf of the actor's info must begin with the dimensions (n_seq, B) = {tuple(lead)} of what it was "
            f"shown; {type(actor).__qualname__} gave {found}."
        )
    return info, hx


def _leading(x: Any) -> tuple[int, ...]:
    return tuple(x.shape[:2])
