"""The messages between consumer and collector: tokens in one direction, deliveries in the other."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, NamedTuple, Protocol

from ...nested import Nested
from ..acting.behaviour import Snapshot
from ..acting.torch_context import TorchContext
from ..core import BaseActorModule, Episode, Fragment
from ..envs.info import Entries

__all__ = ["Collecting", "Delivery", "Late", "Plan", "Token"]


class Token(NamedTuple):
    """The permission to collect one fragment: the weights to act with, and the memory to fill."""

    version: int
    """The number of the ask at which the snapshot was taken."""
    snapshot: Snapshot
    blank: Fragment
    """Uninitialised memory of the consumer's."""
    consumer_stream: Any
    """The consumer's stream, on which snapshot and blank fragment were allocated."""
    ready: Any
    """An event of that stream: the snapshot is copied, and earlier uses of the blank fragment's memory are over."""


class Late(Protocol):
    """Episodes and number of steps of one fragment, which reach the host after the fragment has been delivered."""

    def arrived(self) -> bool:
        """Return whether :meth:`result` would not wait."""

    def result(self) -> tuple[Collection[Episode], int]:
        """Wait for it; return the episodes that ended, and the number of valid transitions. May be called once."""


class Delivery(NamedTuple):
    """A collected fragment on its way to the consumer."""

    version: int | tuple[int, ...]
    """The version of the token; one for each part, if several collectors have collected parts of the fragment."""
    fragment: Fragment
    """The token's blank fragment, filled, but for ``env.final``."""
    final: Nested
    """A :class:`~rlplay.engine.core.Final` in memory of the collector's, or ``()``."""
    copied: Any
    """An event of the collector's stream: all copies into the fragment are done."""
    consumer_stream: Any
    """As in the token."""
    snapshot: Snapshot
    """The token's snapshot, so that the consumer releases its memory."""
    steps: int
    """The number of transitions that were carried out."""
    episodes: Collection[Episode]
    """The episodes that ended, ordered by time and environment."""
    warning: str
    """A warning for the user, or an empty string."""
    late: Late | None = None
    """Episodes and steps that are not known on the host yet, beside ``episodes`` and ``steps``."""


class Plan(NamedTuple):
    """What to collect: the checked arguments of a ``rollout``."""

    n_steps: int
    """``T``."""
    groups: list[slice]
    """The environments of each group."""
    seed: int
    sticky: bool
    final: bool
    entries: Entries
    """The entries of the environments' info that are recorded."""
    first_group: int = 0
    """The number of the first group, among the groups of all collectors and of all shards."""
    first_env: int = 0
    """The number of the first environment, among those of all shards."""


class Collecting(Protocol):
    """The interface of a collector for drivers and feeds, wherever the collecting is done."""

    @property
    def environments_are(self) -> str:
        """What the environments are, as :attr:`~rlplay.engine.feed.stats.Stats.environments`."""

    @property
    def torch_context(self) -> TorchContext:
        """The torch context that the actor runs in; after :meth:`prepare`."""

    @property
    def warnings(self) -> list[str]:
        """What the user is to be warned of at the call; after :meth:`prepare`."""

    def prepare(self, torch_context: TorchContext) -> None:
        """Find the form of the actor's answers; in the calling thread, before the first token."""

    def blank(self) -> Fragment:
        """Allocate a blank fragment; in the consumer's thread, on its current stream."""

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights; in the consumer's thread, on its current stream."""

    def pack_snapshot(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return a snapshot that is complete, in a form that can be saved; in the consumer's thread."""

    def unpack_snapshot(self, saved: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot that :meth:`pack_snapshot` has packed; in the consumer's thread, on its stream."""

    @property
    def forms(self) -> dict[str, list[str]]:
        """Names, shapes and dtypes of what environments and actor have; after :meth:`prepare`."""

    def state_dict(self, *, whole: bool) -> dict[str, Any]:
        """Return what the next fragments depend on beside the tokens; in the collector's thread, between fragments.

        ``whole``: whether the states of the environments are part of it. :mod:`.saving` has the table.
        """

    @property
    def under_way(self) -> bool:
        """Whether, between two fragments, parts of later fragments are being collected."""

    def stand_still(self) -> None:
        """While the feed is paused, let no collector step; between two fragments, in the collector's thread."""

    def serve(self, token: Token) -> Delivery:
        """Collect one fragment with the token's weights, into its blank fragment; in the collector's thread."""

    def close(self) -> list[str]:
        """Release everything; return what went wrong, as warnings for the consumer."""
