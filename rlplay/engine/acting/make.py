"""Chooses the kind of behaviour copy: eager, compiled on the host, or captured on a device."""

from __future__ import annotations

from ..core import BaseActorModule
from ..memory.lane import Lane, Place
from .behaviour import Behaviour
from .compile.captured import CapturedBehaviour
from .compile.compiled import CompiledBehaviour

__all__ = ["make_behaviour"]


def make_behaviour(actor: BaseActorModule, lane: Lane, *, compile: bool, snapshot_in_place: bool = False) -> Behaviour:
    """Copy an actor. With ``compile``, its step is compiled if the actor runs on the host, else captured.

    ``snapshot_in_place`` is explained at :class:`~rlplay.engine.acting.copying.copied_actor.CopiedActor`.
    """
    kind: type[Behaviour] = Behaviour
    if compile:
        kind = CompiledBehaviour if lane.shared(Place.ACTOR, Place.HOST) else CapturedBehaviour
    return kind(actor, lane, snapshot_in_place=snapshot_in_place)
