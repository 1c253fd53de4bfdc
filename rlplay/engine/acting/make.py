"""Makes the behaviour copy: eager, compiled on the host, or captured on a device."""

from __future__ import annotations

from ..core import BaseActorModule
from ..memory.lane import Lane, Place
from .behaviour import Behaviour
from .compile.captured import CapturedBehaviour
from .compile.compiled import CompiledBehaviour

__all__ = ["make_behaviour"]


def make_behaviour(actor: BaseActorModule, lane: Lane, *, compile: bool) -> Behaviour:
    """Copy an actor, for steps of the kind that is asked for: those that are compiled are captured on a device."""
    if not compile:
        return Behaviour(actor, lane)
    return (CompiledBehaviour if lane.shared(Place.ACTOR, Place.HOST) else CapturedBehaviour)(actor, lane)
