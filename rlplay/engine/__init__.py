"""The collection engine. From here users import the base class of actors, and the types that a feed returns."""

from typing import TYPE_CHECKING

from ..lazy_imports import import_on_first_use

if TYPE_CHECKING:
    from .core import BaseActorModule, Episode, Final, Fragment, Outcome, State

__all__ = ["BaseActorModule", "Episode", "Final", "Fragment", "Outcome", "State"]

__getattr__, __dir__ = import_on_first_use(__name__, dict.fromkeys(__all__, ".core"))
