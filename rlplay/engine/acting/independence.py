"""Whether an actor's steps for different groups may run side by side on a device."""

from __future__ import annotations

from itertools import product
from typing import Any

import torch

from ... import nested
from ...nested import Nested
from ..core import BaseActorModule, State
from .compile.fingerprint import fingerprints
from .compile.step_checks import no_foreign_draws
from .copying.copy_actor import copy_actor
from .torch_context import global_generator_kept

__all__ = ["keeps_nothing"]


def keeps_nothing(
    actor: BaseActorModule, drawn_from: torch.Generator | None, state: State, hx: Nested, device: torch.device
) -> bool:
    """Step a copy of the actor in both modes, virtually and not; return whether each step leaves it as it was.

    A step that changes a buffer or another attribute, or draws from a generator that is not the actor's own, hands
    something on to the next step, which may be that of another group. The order of such steps matters, so they must run
    on one stream.

    Parameters
    ----------
    drawn_from : torch.Generator or None
        The actor's generator, in whose place the copy has one of its own.
    state : State of tensors, ``(1, b, ...)``
        A row to react to.
    hx : nested tensors, ``(L, b, ...)``
        A recurrent state.
    """
    twin = copy_actor(actor, device, {id(drawn_from): torch.Generator(device).manual_seed(0)}).module
    try:
        with global_generator_kept(device), no_foreign_draws():
            for training, virtual in product((True, False), repeat=2):
                twin.train(training)
                before = _attributes(twin)
                twin.step(*state, hx=nested.map(torch.clone, hx), virtual=virtual)
                if _attributes(twin) != before:
                    return False
    except Exception:  # it draws from another generator, or fails in a mode that it is never in
        return False
    return True


def _attributes(module: BaseActorModule) -> Any:
    """Return an object that compares equal as long as no buffer and no other attribute changes."""
    return fingerprints(module), [(name, id(x), x._version) for name, x in module.named_buffers()]
