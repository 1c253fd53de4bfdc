"""The collection engine: the actor's contract and the nouns that a training loop meets."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import BaseActorModule, Episode, Final, Fragment, Outcome, State

__all__ = ["BaseActorModule", "Episode", "Final", "Fragment", "Outcome", "State"]


def __getattr__(name: str) -> Any:
    """Load the nouns when they are asked for: a process that only steps environments has no need of torch."""
    if name in __all__:
        from . import core

        return getattr(core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
