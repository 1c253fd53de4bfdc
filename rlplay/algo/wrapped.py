"""Calls of an actor's step through the wrapper that a learner has put around it, such as DistributedDataParallel."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from typing import Any, TypeAlias

from torch import nn
from torch.nn.parallel import DistributedDataParallel

from ..contexts import contextmanager
from ..engine import BaseActorModule, State
from ..nested import Nested

__all__ = ["Actor", "call_step", "parallel_in", "synchronised_once", "unwrap"]

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
        within = _within(inner)
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


def synchronised_once(actor: Actor) -> AbstractContextManager[None]:
    """Let DistributedDataParallel send the actor's buffers with the first call in this context, and with no other.

    The number of calls depends on the fragment: on whether episodes ended, and for recurrent actors on where. Processes
    that send a different number of times wait for one another forever.
    """
    parallel = parallel_in(actor)
    if parallel is not None and parallel.broadcast_buffers:
        return _synchronised_once(actor, parallel)
    return nullcontext()


@contextmanager
def _synchronised_once(actor: Actor, parallel: DistributedDataParallel) -> Iterator[None]:
    hook = actor.register_forward_hook(lambda *_: setattr(parallel, "broadcast_buffers", False))
    try:
        yield
    finally:
        hook.remove()
        parallel.broadcast_buffers = True


def parallel_in(module: nn.Module) -> DistributedDataParallel | None:
    """Return the DistributedDataParallel that a module is, or that is inside of its wrappers; None if there is none."""
    inner: Any = module
    while inner is not None and not isinstance(inner, BaseActorModule | DistributedDataParallel):
        inner = _within(inner)
    return inner if isinstance(inner, DistributedDataParallel) else None


def _within(module: Any) -> Any:
    """Return the module inside of a wrapper; None if there is none."""
    return getattr(module, "_orig_mod", None) or getattr(module, "module", None)
