"""The collection engine. From here users import the base class of actors, and the types that a feed returns."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .core import BaseActorModule, Episode, Final, Fragment, Outcome, State

__all__ = ["BaseActorModule", "Episode", "Final", "Fragment", "Outcome", "State"]


def __getattr__(name: str) -> Any:
    """Import :mod:`rlplay.engine.core` on first use, so that a process that only steps environments loads no torch."""
    if name in __all__:
        from . import core

        return getattr(core, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List names that are imported on first use, too: for completion, and for the documentation."""
    return sorted({*globals(), *__all__})
