"""The verbs for moving data between the host, the actor's device and the consumer's device."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from enum import Enum, auto
from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

from ...nested import Nested, leaves

__all__ = ["Lane", "Place"]


class Place(Enum):
    """Where memory lies."""

    HOST = auto()
    """On the host; page-locked if anything is copied out of it asynchronously."""
    ACTOR = auto()
    """Where the behaviour copy of the actor is."""
    CONSUMER = auto()
    """Where fragments are delivered."""


class Lane:
    """The verbs, for the host as its own device."""

    asynchronous = False
    """Whether calls return before what they ask for has happened."""

    def __init__(self, device: torch.device, actor_device: torch.device) -> None:
        """Remember where fragments are delivered (``device``) and where the behaviour copy is (``actor_device``)."""
        self.device, self.actor_device = device, actor_device

    def shared(self, one: Place, other: Place) -> bool:
        """Whether two places are one, so that nothing need be copied between them."""
        return True

    def empty(self, place: Place, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
        """Allocate memory, on the current stream."""
        return torch.empty(tuple(shape), dtype=dtype, device="cpu")

    def lock(self, memory: npt.NDArray[Any]) -> Tensor:
        """Make a tensor over host memory that somebody else has allocated, as good as that of ``Place.HOST``."""
        return torch.from_numpy(memory)

    def copy(self, target: Nested, source: Nested) -> None:
        """Copy leaf by leaf. A source on the host must stay as it is until the copy has happened."""
        targets, sources = leaves(target), leaves(source)
        if targets:
            torch._foreach_copy_(targets, sources, non_blocking=self.asynchronous)

    def steady(self, sources: list[Tensor]) -> list[Tensor]:
        """Turn tensors that their owner may change at any moment into such as can be copied from later."""
        return sources

    def launch(self, work: Callable[[], None]) -> None:
        """Let the actor's device do what ``work`` asks of it, behind all that the current stream has been asked for."""
        work()

    def capture(self, work: Callable[[], None], generators: Sequence[torch.Generator]) -> Callable[[], None]:
        """Make a callable that asks the actor's device for all that ``work`` asks of it, once more, without running it.

        Nothing happens now. What is called, and on which memory, is what it is now for good: all that is read or
        written must stay where it is for as long as the callable is used, inside of :meth:`launch`. Random numbers are
        drawn anew each time, from ``generators``. When this is called, nothing may be under way that the current stream
        has been asked for.

        Raises
        ------
        Exception
            Whatever the work fails with, as it does if it asks for what there is not while it is only noted: a number.
        """
        return work

    @property
    def current(self) -> Any:
        """Something that is equal for equal current streams."""
        return None

    def borrow(self, tree: Nested) -> None:
        """Say that the current stream reads memory of another one: it may be let go, but not be used again before."""

    def record(self) -> Any:
        """Mark this point of the current stream."""
        return None

    def wait(self, event: Any) -> None:
        """Let the current stream, not the host, wait for a point of another one."""

    def host_wait(self, event: Any) -> None:
        """Let the host wait for a point of a stream; None is one that has been reached long since."""

    def stamp(self, side: Place) -> Any:
        """Mark this point of a stream so that its time can be told: the collector's (``ACTOR``), or the current one.

        None if there are no streams: calls have happened when they return.
        """
        return None

    def seconds(self, one: Any, other: Any) -> float | None:
        """Tell the time from one stamp of a stream to another; None while it has not come there. Nobody waits."""
        return None

    @contextmanager
    def collecting(self) -> Iterator[None]:
        """Make the collector's stream the current one of this thread."""
        yield
