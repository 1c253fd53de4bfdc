"""Presents several collectors in Ray actors to the consumer's process as one collector."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ..acting.behaviour import Snapshot
from ..collector.messages import Token
from ..remote.joined_collector import JoinedCollector
from .object_store import PartForms, bytes_of
from .ray_collector import RayCollector
from .ray_collectors import RayCollectors

__all__ = ["ClusterCollector"]


class ClusterCollector(JoinedCollector[RayCollector]):
    """A collector whose work is done by Ray actors; weights and fragments pass through Ray's object store.

    The weights of a snapshot are put there once, for all Ray actors.
    """

    _collectors: RayCollectors

    _weights: tuple[Snapshot | None, Any] = None, None
    """The snapshot that was put into the object store last, and Ray's reference to its weights."""

    def _set_up(self) -> None:
        """Receive the shapes and dtypes of the actor's outputs, by which fragments are read."""
        answers = self._collectors.receive_one_each()
        (self.layout, self.warnings), _ = answers[0]
        forms = PartForms(self.layout, self._plan.n_steps, self._n_envs_each)
        for collector, (_, state) in zip(self._collectors, answers, strict=True):
            collector.set_up(forms, self.torch_context, state)

    def _start_fragments(self, collectors: Sequence[RayCollector], token: Token) -> None:
        last, weights = self._weights
        if token.snapshot is not last:  # the tokens of the first ask share a snapshot
            weights = self._collectors.put(bytes_of(token.snapshot.weights))
            self._weights = token.snapshot, weights
        for collector in collectors:
            collector.start_fragment(token, weights)

    def _news(self) -> list[str]:
        return self._collectors.take_warnings()
