"""What passes between consumer and collector: tokens in one direction, deliveries in the other."""

from __future__ import annotations

from typing import Any, NamedTuple, Protocol

from ...nested import Nested
from ..acting.behaviour import Snapshot
from ..acting.torch_context import TorchContext
from ..core import BaseActorModule, Episode, Fragment
from ..envs.info import Entries

__all__ = ["Collecting", "Delivery", "Plan", "Token"]


class Token(NamedTuple):
    """The right to collect one fragment, and what it takes."""

    version: int
    """The number of the ask whose weights these are."""
    snapshot: Snapshot
    blank: Fragment
    home: Any
    """The consumer's stream on which these were allocated."""
    asked: Any
    """The event behind the snapshot's copy and the blank's allocation, on the consumer's stream."""


class Delivery(NamedTuple):
    """A fragment on its way to the consumer."""

    version: int | tuple[int, ...]
    """That of the token; of each part, if it is made of parts that were collected apart."""
    fragment: Fragment
    staged: Nested
    """A ``Final`` in memory of the collector's, or ``()``."""
    copied: Any
    """The event behind the copies into the blank, on the collector's stream."""
    home: Any
    """As in the token."""
    snapshot: Snapshot
    steps: int
    """Transitions that were carried out."""
    episodes: list[Episode]
    complaint: str
    """What the user is to be warned of; mostly nothing."""


class Plan(NamedTuple):
    """What a feed was asked to do, checked."""

    n_steps: int
    groups: list[slice]
    """The environments of each group."""
    seed: int
    sticky: bool
    final: bool
    entries: Entries
    first: int = 0
    """The number of the first group, if there are others that somebody else collects."""


class Collecting(Protocol):
    """What a driver and a feed ask of a collector, wherever it is."""

    torch_context: TorchContext

    @property
    def warnings(self) -> list[str]:
        """What the user is to be warned of at the call; after :meth:`prepare`."""

    def prepare(self, torch_context: TorchContext) -> None:
        """Learn what the actor answers; in the calling thread, before the first token."""

    def blank(self) -> Fragment:
        """Allocate blank memory of the consumer's for one fragment; in the consumer's thread, on its stream."""

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread."""

    def serve(self, token: Token) -> Delivery:
        """Collect one fragment with the token's weights, into its blank; in the collector's thread."""

    def close(self) -> list[str]:
        """End; return what went wrong with it."""
