"""What collectors elsewhere have in common, wherever they are: in processes, or in Ray actors."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Generic, TypeVar

from ...nested import Nested
from ..concurrency.channel import Closed
from ..concurrency.exceptions import closed_on_error
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import Fragment
from ..stepping.shares import check_equal_spaces
from .collector_process import CollectorSpec, Reply
from .saving import pack_part

__all__ = ["CollectorElsewhere", "Collectors"]


class CollectorElsewhere(ABC):
    """The consumer's side of one collector elsewhere.

    Attributes
    ----------
    columns : slice
        The numbers of its environments among all environments: of the feed, or of all shards.
    progress : Progress
        What the collector is doing.
    version : int or None
        The version of the snapshot that the collector was given last; None once its fragment has been taken.
    reply : Reply or None
        What the collector answered with that fragment; None while the fragment is being collected.
    """

    progress: Progress

    def __init__(self, columns: slice) -> None:
        self.columns = columns
        self.version: int | None = None
        self.reply: Reply | None = None

    @property
    @abstractmethod
    def name(self) -> str:
        """How messages call the collector: by its number, and by the numbers of its environments."""

    @property
    @abstractmethod
    def fragment(self) -> Fragment:
        """The fragment of the last reply, on the host; it may be read until the next fragment is started."""

    @property
    @abstractmethod
    def finals(self) -> Nested:
        """The ``final`` of the last reply, in the same way; empty if the plan has no ``final``."""

    @abstractmethod
    def request(self, method: str, *args: Any) -> None:
        """Ask the collector to call this method of its service."""

    @abstractmethod
    def receive_fragment(self, answer: Any) -> None:
        """Keep the answer to a request for a fragment, until the fragment is taken."""

    @abstractmethod
    def load_finished_part(self, saved: Mapping[str, Any] | None) -> None:
        """Go on as if the collector had replied with what :meth:`finished_part` returned."""

    def take_fragment(self) -> None:
        """Forget the reply: the fragment has been copied, or its copy has been asked for."""
        self.version = self.reply = None

    @property
    def collecting(self) -> bool:
        """Whether a fragment has been requested, and there is no reply."""
        return self.version is not None and self.reply is None

    def finished_part(self) -> dict[str, Any] | None:
        """Return the fragment of the last reply, if it has not been taken; to be saved."""
        if self.version is None or self.reply is None:
            return None
        return pack_part(self.version, self.reply, self.fragment, self.finals)


C = TypeVar("C", bound=CollectorElsewhere)


class Collectors(ABC, Generic[C]):
    """All collectors that work in other processes, in order.

    Methods raise RuntimeError if one of them has died, and is not replaced by a new one.
    """

    def __init__(self, progress: Progress, gate: Gate) -> None:
        self._progress, self._gate = progress, gate
        self._collectors: list[C] = []

    def _start(self, specs: Sequence[CollectorSpec]) -> None:
        """Start all collectors at once, and wait until they have made and reset their environments.

        If that fails, the collectors are ended. Raises ValueError if the environments of different collectors have
        different spaces.
        """
        self._gate.on_give_up(self.kill)
        self._gate.on_change(self._on_gate_change)
        with closed_on_error(self.close):
            for number, spec in enumerate(specs):
                self._add(number, spec)
                if self._gate.closed:
                    raise Closed
            self._progress.set_parts(self)
            check_equal_spaces([one.columns.start for one in self], self.receive_one_each())

    def __iter__(self) -> Iterator[C]:
        return iter(list(self._collectors))

    def __len__(self) -> int:
        return len(self._collectors)

    def receive_one_each(self) -> list[Any]:
        """Wait for one answer of each collector; return the answers in the order of the collectors."""
        answers: dict[C, Any] = {}
        while len(answers) < len(self._collectors):
            answers.update(self.receive([one for one in self if one not in answers]))
        return [answers[one] for one in self]

    @abstractmethod
    def _add(self, number: int, spec: CollectorSpec) -> None:
        """Start a collector, and append it to ``_collectors``."""

    @abstractmethod
    def _on_gate_change(self, shut: bool) -> None:
        """Have the collectors look at the gate."""

    @abstractmethod
    def receive(self, awaited: Sequence[C]) -> list[tuple[C, Any]]:
        """Wait until some of the awaited collectors have answered; the list may be empty, as after a pause."""

    @abstractmethod
    def resume_paused(self) -> None:
        """Resume the collectors that have paused, unless the feed is still paused (the gate is shut)."""

    @abstractmethod
    def kill(self) -> None:
        """Kill the collectors. May be called in any thread."""

    @abstractmethod
    def close(self) -> list[str]:
        """End the collectors; return what went wrong."""
