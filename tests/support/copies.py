"""What is copied by the lagging device."""

from __future__ import annotations

from rlplay import nested
from rlplay.testing import LaggingLane


def copied_forms(monkeypatch, n_rows):
    """Return a list to which each copy adds the dtype and size of its leaves that have this many rows."""
    copied, copy = [], LaggingLane.copy

    def noting_copy(lane, target, source):
        copied.extend((leaf.dtype, leaf.numel()) for leaf in nested.leaves(target) if len(leaf) == n_rows)
        copy(lane, target, source)

    monkeypatch.setattr(LaggingLane, "copy", noting_copy)
    return copied
