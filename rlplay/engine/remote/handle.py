"""A collector process, as the consumer's process sees it."""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any

from torch import Tensor

from ..concurrency.child import Child
from ..concurrency.exceptions import unpack
from ..concurrency.link import Gone
from ..concurrency.progress import SharedProgress
from ..concurrency.shared_memory import map_memory, new_memory
from .collector_process import CollectorSpec, Reply, serve
from .shared_fragment import SharedFragment, SharedFragmentSpec

__all__ = []


class CollectorProcess:
    """A collector process, seen from here. Methods raise RuntimeError if it has died, which name it and the signal."""

    def __init__(self, number: int, spec: CollectorSpec) -> None:
        self.columns = spec.columns
        first, last = spec.columns.start, spec.columns.stop - 1
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        self.name = f"collector process {number} ({which})"
        fd = new_memory(SharedProgress.SIZE)
        try:
            self.progress = SharedProgress(map_memory(fd))
            self.child = Child(serve, spec, name=self.name)
            self.tell(None, fd)
        finally:
            os.close(fd)
        self.region: SharedFragment
        self.version: int | None = None
        """That of the snapshot which it has been given last, while the fragment of that has not been taken."""
        self.reply: Reply | None = None
        """What came with that fragment, once it is there."""

    def share(self, form: SharedFragmentSpec, lock: Callable[[Any], Tensor]) -> None:
        """Share the memory that fragments and weights travel in."""
        fd = new_memory(form.size)
        try:
            self.region = form.region(lock(map_memory(fd)))
            self.tell(("share", form), fd)
        finally:
            os.close(fd)

    def tell(self, thing: Any, *fds: int) -> None:
        """Tell it to do something."""
        try:
            self.child.link.send(thing, *fds)
        except Gone:
            raise RuntimeError(f"{self.child.epitaph()}.") from None

    def hear(self) -> tuple[str, Any]:
        """Wait for what it says: that something is ``done``, or ``standing``, when it stands still at a step."""
        try:
            (kind, answer), _ = self.child.link.receive()
        except Gone:
            raise RuntimeError(f"{self.child.epitaph()}.") from None
        if kind == "failed":
            raise unpack(answer)
        return kind, answer
