"""The consumer's side of one collector process."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from ... import nested
from ...nested import Nested
from ..collector.messages import Token
from ..concurrency.progress import SharedProgress
from ..concurrency.service import ServiceProcess
from ..concurrency.shared_memory import map_memory, new_memory
from ..core import Fragment
from ..stepping.shares import name_environments
from .collector_process import CollectorService, CollectorSpec, Reply
from .elsewhere import CollectorElsewhere
from .saving import unpack_part
from .shared_fragment import SharedFragment, SharedFragmentSpec

__all__ = ["CollectorProcess"]


class CollectorProcess(CollectorElsewhere):
    """One collector process. If it has died, methods raise RuntimeError, which names the process and the signal."""

    progress: SharedProgress

    def __init__(self, number: int, spec: CollectorSpec) -> None:
        """Start the process; it begins to make its environments at once."""
        super().__init__(spec.columns)
        self._name = f"collector process {number} ({name_environments([spec.columns])})"
        fd = new_memory(SharedProgress.SIZE)
        try:
            self.progress = SharedProgress(map_memory(fd))
            self.service = ServiceProcess(CollectorService, spec, name=self.name, memory_fd=fd)
        except Exception:
            spec.check_sendable("a collector process")
            raise
        finally:
            os.close(fd)
        self.service.link.on_transfer = self.progress.note_transfer
        self._shared: SharedFragment | None = None

    @property
    def name(self) -> str:
        """How messages call the process: by its number, and by the numbers of its environments."""
        return self._name

    @property
    def shared(self) -> SharedFragment:
        """The memory that fragments and weights are passed in; available after :meth:`share`."""
        assert self._shared is not None, "call `share` first"
        return self._shared

    def request(self, method: str, *args: Any) -> None:
        """Ask the process to call this method of its service."""
        self.service.request(method, *args)

    @property
    def fragment(self) -> Fragment:
        """The fragment that the process has replied with, in shared memory."""
        return self.shared.fragment

    @property
    def finals(self) -> Nested:
        """Its ``final``, as far as it is filled in; empty if the plan has no ``final``."""
        n = self.reply.n_finals if self.reply is not None else 0
        return nested.map(lambda x: x[:n], self.shared.final)

    def share(self, spec: SharedFragmentSpec, lock: Callable[[Any], Tensor]) -> None:
        """Allocate the memory that fragments and weights are passed in; have the process map it.

        ``lock`` makes a tensor of the mapped memory, page-locked if that speeds up copies to the consumer's device. A
        fragment that lies in memory that was shared before is kept.
        """
        finished = self.finished_part()
        fd = new_memory(spec.size)
        try:
            self._shared = spec.divide(lock(map_memory(fd)))
            self.service.request("share", spec, fds=[fd])
        finally:
            os.close(fd)
        self.load_finished_part(finished)

    def start_fragment(self, token: Token) -> None:
        """Copy the token's weights into shared memory, and request a fragment."""
        weights = self.shared.weights
        if weights:
            torch._foreach_copy_(weights, token.snapshot.weights)
        self.version = token.version
        self.service.request("collect", token.version, token.snapshot.modes, token.snapshot.plain)

    def receive_fragment(self, answer: Reply) -> None:
        """Keep the reply, until the fragment is taken."""
        self.reply = answer

    def load_finished_part(self, saved: Mapping[str, Any] | None) -> None:
        """Put what :meth:`finished_part` returned back into the shared memory, as if the process had replied."""
        if saved is not None:
            self.version, self.reply = unpack_part(saved, self.shared)
