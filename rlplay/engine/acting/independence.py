"""Whether an actor's steps for different groups may run side by side on a device: whether they keep nothing."""

from __future__ import annotations

from typing import Any

import torch

from ... import nested
from ...dtypes import as_bytes
from ...nested import Nested
from ...process_state import global_generator_kept
from ..core import BaseActorModule, State
from .compile.fingerprint import fingerprints
from .compile.step_checks import no_foreign_draws
from .copying.copy_actor import copy_actor

__all__ = ["keeps_nothing"]


def keeps_nothing(
    actor: BaseActorModule, drawn_from: torch.Generator | None, state: State, hx: Nested, device: torch.device
) -> bool:
    """Step a copy of the actor in both modes, virtually and not, and reset it; return whether it stays as it was.

    A step that changes a weight, a buffer or another attribute, or that draws from Python's or NumPy's generators,
    hands something on to the next step, which may be that of another group. The order of such steps matters, so they
    must run on one stream. What a trial does not show is not found: a step that changes something only later must tell
    so by a plain attribute or a mode (:meth:`rlplay.engine.acting.behaviour.Behaviour.adopt`).

    Parameters
    ----------
    drawn_from : torch.Generator or None
        The actor's generator, in whose place the copy has one of its own.
    state : State of tensors, ``(1, b, ...)``
        A row to react to.
    hx : nested tensors, ``(L, b, ...)``
        A recurrent state.
    """
    try:
        twin = copy_actor(actor, device, {id(drawn_from): torch.Generator(device).manual_seed(0)}).module
        with global_generator_kept(device), no_foreign_draws():
            for training in (True, False):
                twin.train(training)
                before = _contents(twin)
                for virtual in (True, False):
                    twin.step(*state, hx=nested.map(torch.clone, hx), virtual=virtual)
                if nested.leaves(hx):
                    for mask in (torch.zeros_like(state.fin[0]), torch.ones_like(state.fin[0])):
                        twin.reset(nested.map(torch.clone, hx), mask)
                if before is None or _contents(twin) != before:
                    return False
    except Exception:  # it draws from another generator, or fails in a mode that it is never in
        return False
    return True


def _contents(module: BaseActorModule) -> Any:
    """Return an object that compares equal as long as nothing in the module changes; None if that cannot be told."""
    attributes = fingerprints(module)
    if any(isinstance(fingerprint, int) for fingerprint in attributes.values()):
        return None  # an attribute that cannot be pickled may change within
    tensors = [*module.named_parameters(), *module.named_buffers()]
    return attributes, [(name, id(x), as_bytes(x).cpu().numpy().tobytes()) for name, x in tensors]
