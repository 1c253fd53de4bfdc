"""What is asked of collectors elsewhere, wherever they are: in processes, or in Ray actors."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol, TypeVar

from ..core import Final, Fragment
from .collector_process import Reply

__all__ = ["CollectorElsewhere", "Collectors"]


class CollectorElsewhere(Protocol):
    """The consumer's side of one collector elsewhere."""

    @property
    def columns(self) -> slice:
        """The numbers of its environments among all environments: of the feed, or of all shards."""

    @property
    def version(self) -> int | None:
        """The version of the snapshot that it was last given; None if its fragment has been taken."""

    @property
    def reply(self) -> Reply | None:
        """What it answered with that fragment; None while it is being collected."""

    @property
    def fragment(self) -> Fragment:
        """That fragment, on the host; it may be read until the next one is started."""

    @property
    def finals(self) -> Final:
        """Its ``final``, in the same way."""

    @property
    def collecting(self) -> bool:
        """Whether a fragment has been requested, and there is no reply."""

    def request(self, method: str, *args: Any) -> None:
        """Request the call of a method of its service."""

    def receive_fragment(self, answer: Any) -> None:
        """Keep an answer to the request of a fragment."""

    def take_fragment(self) -> None:
        """Forget the reply: the fragment has been copied."""

    def finished_part(self) -> dict[str, Any] | None:
        """Return the fragment that it has replied with, if that has not been taken; to be saved."""

    def load_finished_part(self, saved: Mapping[str, Any] | None) -> None:
        """Go on as if it had replied with what :meth:`finished_part` returned."""


C = TypeVar("C", bound=CollectorElsewhere)


class Collectors(Protocol[C]):
    """All collectors elsewhere, in order."""

    def __iter__(self) -> Iterator[C]: ...

    def __len__(self) -> int: ...

    def receive_one_each(self) -> list[Any]:
        """Wait for one answer of each collector; return the answers in the order of the collectors."""

    def receive(self, awaited: Sequence[C]) -> list[tuple[C, Any]]:
        """Wait until some of the awaited collectors have answered; the list may be empty, as after a pause."""

    def close(self) -> list[str]:
        """End them; return what went wrong."""
