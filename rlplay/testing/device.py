"""The parts of the lagging device: streams, events, and blocks of memory."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np
import torch

from ..engine.envs.rows import Array

__all__ = ["GARBAGE", "Block", "BlockView", "Event", "Stream"]

GARBAGE = 0xFF  # NaN in every float format, -1 in every integer


class BlockView(np.ndarray[Any, np.dtype[np.uint8]]):
    """The bytes of a block in use. Its finalizer releases the block once no tensor in this memory is alive."""


class Stream:
    """A queue of work that runs in order.

    Attributes
    ----------
    pending : deque
        The work that has not run yet. An event among the work is a wait until the event is reached.
    done : int
        The number of pieces of work that have run.
    """

    def __init__(self) -> None:
        self.pending: deque[Callable[[], None] | Event] = deque()
        self.done = 0

    def record(self) -> Event:
        """Return an event behind all work that is queued now."""
        return Event(self, self.done + len(self.pending))


class Event(NamedTuple):
    """A point of a stream: reached once the first ``position`` pieces of its work have run."""

    stream: Stream
    position: int

    @property
    def reached(self) -> bool:
        """True if the stream has run all work before this point."""
        return self.stream.done >= self.position


class Block:
    """A piece of device memory, which is reused on the stream that it was first allocated on, and never freed.

    Attributes
    ----------
    bytes : uint8 array
        The memory.
    stream : Stream
        The stream that the block belongs to.
    borrowers : list of Stream
        The streams that have borrowed the memory since it was last allocated.
    """

    def __init__(self, size: int, stream: Stream) -> None:
        # aligned to 64 bytes, as on a device: the last bits of a product may depend on the address of its operands
        self.bytes: Array = torch.full((size,), GARBAGE, dtype=torch.uint8, device="cpu").numpy()
        self.stream = stream
        self.borrowers: list[Stream] = []
