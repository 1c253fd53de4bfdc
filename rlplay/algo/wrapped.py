"""Calls of an actor's step through the wrapper that a learner has put around it, such as DistributedDataParallel."""

from __future__ import annotations

from typing import Any, TypeAlias

from torch import nn

from ..engine import BaseActorModule, State
from ..nested import Nested

__all__ = ["Actor", "call_step", "unwrap"]

Actor: TypeAlias = nn.Module
"""A :class:`~rlplay.engine.BaseActorModule`, or one in a wrapper of torch."""


def unwrap(actor: Actor) -> BaseActorModule:
    """Return the actor inside of wrappers: of ``torch.compile``, or for data parallelism (``.module``).

    Raises
    ------
    TypeError
        There is no :class:`~rlplay.engine.BaseActorModule` inside.
    """
    inner: Any = actor
    while not isinstance(inner, BaseActorModule):
        within = getattr(inner, "_orig_mod", None) or getattr(inner, "module", None)
        if not isinstance(inner, nn.Module) or not isinstance(within, nn.Module):
            raise TypeError(
                "`actor` must be a rlplay.engine.BaseActorModule, or one in a wrapper of torch (`torch.compile(...)`, "
                f"`DistributedDataParallel(...)`), got {type(actor).__name__}."
            )
        inner = within
    return inner


def call_step(actor: Actor, state: State, hx: Nested, *, virtual: bool) -> tuple[Nested, Nested, Nested]:
    """Return what ``actor.step`` returns. A wrapped actor is called as a module, so that its wrapper does its work.

    The ``forward`` of a wrapper synchronises gradients, or is the compiled function; its ``step`` would be that of the
    actor inside, past the wrapper.

    Raises
    ------
    TypeError
        The actor is wrapped and has both a ``step`` and a ``forward`` of its own: a wrapper knows only ``forward``.
    """
    inner = unwrap(actor)
    if inner is actor:
        return inner.step(*state, hx=hx, virtual=virtual)
    kind = type(inner)
    if kind.step is not BaseActorModule.step and kind.forward is not BaseActorModule.forward:
        raise TypeError(
            f"{kind.__qualname__} has a `step` and a `forward` of its own, but {type(actor).__name__} calls only "
            "`forward`: give that one another name, then `forward` calls `step`."
        )
    stepno, obs, act, rew, fin = state
    answer: tuple[Nested, Nested, Nested] = actor(obs, act=act, rew=rew, fin=fin, stepno=stepno, hx=hx, virtual=virtual)
    return answer
