"""The collection engine: the actor's contract and the nouns that a training loop meets."""

from .core import BaseActorModule, Episode, Final, Fragment, Outcome, State

__all__ = ["BaseActorModule", "Episode", "Final", "Fragment", "Outcome", "State"]
