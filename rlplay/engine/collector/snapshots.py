"""The snapshots of a collector, wherever it collects: taken, packed and unpacked in the consumer's thread."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from ..acting.behaviour import Behaviour, Snapshot
from ..core import BaseActorModule

__all__ = ["SnapshotTaker"]


class SnapshotTaker:
    """Takes snapshots of the weights for a behaviour copy; in the consumer's thread, on its current stream."""

    _behaviour: Behaviour

    def snapshot(self, actor: BaseActorModule) -> Snapshot:
        """Take a snapshot of the learner's weights."""
        return self._behaviour.publish(actor)

    def pack_snapshot(self, snapshot: Snapshot) -> dict[str, Any]:
        """Return a snapshot that is complete, in a form that can be saved."""
        return self._behaviour.pack_snapshot(snapshot)

    def unpack_snapshot(self, saved: Mapping[str, Any]) -> Snapshot:
        """Return the snapshot that :meth:`pack_snapshot` has packed."""
        return self._behaviour.unpack_snapshot(saved)
