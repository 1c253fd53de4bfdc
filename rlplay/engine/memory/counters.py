"""Counters of what a lane is asked for. They tell what makes a device fast or slow, without a clock."""

from __future__ import annotations

from dataclasses import dataclass, replace

__all__ = ["Counters"]


@dataclass
class Counters:
    """What an asynchronous lane has been asked for so far. On the host there is nothing to count: all stays zero.

    The consumer's thread and the collector's count together, without a lock: a number may be a little too small while
    both are at work.
    """

    steps: int = 0
    """Steps of turns that the actor has reacted to on a device."""
    copies_up: int = 0
    """Copies from the host to a device, a leaf each. Those of a captured step count at each replay."""
    bytes_up: int = 0
    copies_down: int = 0
    """Copies from a device to the host."""
    bytes_down: int = 0
    host_waits: int = 0
    """How often the host has waited for a device."""
    launches: int = 0
    """Pieces of work for the actor's device: eager or captured steps of a turn, mostly."""
    allocations: int = 0
    """Allocations of device memory by the engine, not by the operations of the actor."""
    device_bytes: int = 0
    """Bytes of all these allocations together, whether released since or not."""
    locked_bytes: int = 0
    """Bytes of page-locked memory, which is kept for as long as the feed."""

    def copy(self) -> Counters:
        """Return the present numbers, to compare them with later ones."""
        return replace(self)

    def since(self, before: Counters) -> Counters:
        """Return the differences from earlier numbers."""
        return Counters(**{name: now - getattr(before, name) for name, now in vars(self).items()})

    def per_step(self) -> dict[str, float]:
        """Return what a step of a turn takes, by name: the copies, bytes, waits, launches and allocations."""
        names = ("copies_up", "bytes_up", "copies_down", "bytes_down", "host_waits", "launches", "allocations")
        return {name: getattr(self, name) / (self.steps or 1) for name in names}

    def count_copy(self, n_bytes: int, *, to_host: bool, from_host: bool) -> None:
        """Count a copy, unless it is within the host or within a device."""
        if from_host and not to_host:
            self.copies_up += 1
            self.bytes_up += n_bytes
        elif to_host and not from_host:
            self.copies_down += 1
            self.bytes_down += n_bytes

    def add_copies(self, other: Counters) -> None:
        """Count the copies that ``other`` has counted."""
        self.copies_up += other.copies_up
        self.bytes_up += other.bytes_up
        self.copies_down += other.copies_down
        self.bytes_down += other.bytes_down

    def count_memory(self, n_bytes: int, *, on_host: bool) -> None:
        """Count an allocation."""
        if on_host:
            self.locked_bytes += n_bytes
        else:
            self.allocations += 1
            self.device_bytes += n_bytes
