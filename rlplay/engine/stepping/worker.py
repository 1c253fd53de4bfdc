"""What runs in a worker process: a service that makes environments and steps them on request.

Must import neither torch nor threads, so that a worker process does not load torch.
"""

from __future__ import annotations

import struct
from collections.abc import Callable
from typing import Any, NamedTuple

import numpy as np

from ...nested import Nested
from ..concurrency.progress import SharedProgress
from ..concurrency.service import HEAD_SIZE, SHORT, Server
from ..concurrency.shared_memory import receive_memory
from ..envs.info import Entries
from ..envs.rows import Array
from .blocks import SlotLayout
from .sent_spaces import send_spaces
from .shares import Share, close_shares, load_shares, open_shares, save_shares
from .stepper import Step

__all__ = ["EnvironmentSpec", "PoolMemory", "WorkerService", "WorkerSpec", "pack_step"]

_STEP = struct.Struct("<BBHII")
"""The request for a step: SHORT, the slot and two flags in one byte, the share, the row, ``t``."""
_FINAL, _STICKY = 1 << 6, 1 << 7
assert _STEP.size == HEAD_SIZE


def pack_step(share: int, step: Step) -> bytes:
    """Return the short request that makes a worker process step one of its shares."""
    return _STEP.pack(SHORT, step.slot | step.final * _FINAL | step.sticky * _STICKY, share, step.row, step.t)


class WorkerSpec(NamedTuple):
    """What a worker process is given at its start."""

    number: int
    shares: list[Share]
    entries: Entries
    n_workers: int
    """How many workers the pool has."""
    n_envs: int
    """How many environments all workers keep together."""
    first_env: int
    """The number of the first one of these."""
    set_up: Callable[[], None] | None
    """Called first, for instance to set torch's defaults; None leaves the process as it is, and loads nothing."""


class EnvironmentSpec(NamedTuple):
    """The shape and dtype of observations and actions, and the spaces, of a share's environments."""

    obs: Nested
    act: Nested
    spaces: tuple[object, object]
    """As they are, or as :class:`~rlplay.engine.stepping.sent_spaces.SentSpace` if a worker process sends them."""


class PoolMemory:
    """Memory that the collector's process shares with all worker processes.

    It has the progress of each worker, the length and return of the last episode of each environment, and for each
    entry of the infos whether an environment has told it. A worker writes these before it answers; the collector reads
    them after the answer, except for the progress, which may be read at any time.
    """

    def __init__(self, memory: Array, n_workers: int, n_envs: int, n_entries: int) -> None:
        size, end = n_workers * SharedProgress.SIZE, self.size(n_workers, n_envs, n_entries)
        self._progresses = memory[:size].reshape(n_workers, SharedProgress.SIZE)
        self.length, self.ret = memory[size : end - n_entries].view(np.int64).reshape(2, n_envs)
        self.ret = self.ret.view(np.float64)
        self.told = memory[end - n_entries : end]

    @staticmethod
    def size(n_workers: int, n_envs: int, n_entries: int) -> int:
        """Return the size in bytes."""
        return n_workers * SharedProgress.SIZE + 2 * 8 * n_envs + n_entries

    def progress(self, number: int) -> SharedProgress:
        """Return the progress of a worker: its own process writes it, the collector's process reads it."""
        return SharedProgress(self._progresses[number])

    def note_told(self, entries: Entries) -> None:
        """Note which entries have been told; in a worker's process. Only ones are written, since others write too."""
        for k, entry in enumerate(entries.entries):
            if entry.name not in entries.untold:
                self.told[k] = 1


class WorkerService:
    """Makes and resets the environments of a worker process, and steps them."""

    def __init__(self, server: Server, spec: WorkerSpec) -> None:
        if spec.set_up is not None:
            spec.set_up()
        self._memory = PoolMemory(server.memory, spec.n_workers, spec.n_envs, len(spec.entries.entries))
        self._first_env = spec.first_env
        self._entries, self._n_untold = spec.entries, len(spec.entries.untold)
        self._shares = open_shares(spec.shares, spec.entries, self._memory.progress(spec.number))
        made = [share.environments for share in self._shares]
        self.introduction = [EnvironmentSpec(one.obs, one.act, send_spaces(one.spaces)) for one in made]

    def attach(self, layout: SlotLayout, *fds: int) -> None:
        """Map the slots, which are shared memory, and write the very first row into the first slot."""
        slots = [layout.rows(receive_memory(fd)) for fd in fds]
        for share in self._shares:
            share.attach(slots)

    def run_short(self, head: bytes) -> None:
        """Step one of the shares."""
        _, slot, number, row, t = _STEP.unpack(head)
        step = Step(slot % _FINAL, row, t, final=bool(slot & _FINAL), sticky=bool(slot & _STICKY))
        _, episodes = self._shares[number].step(step)
        for episode in episodes:
            k = episode.env - self._first_env
            self._memory.ret[k], self._memory.length[k] = episode.ret, episode.length
        if len(self._entries.untold) != self._n_untold:
            self._n_untold = len(self._entries.untold)
            self._memory.note_told(self._entries)

    def save_state(self, whole: bool) -> list[list[dict[str, Any]]]:
        """Return for each share the state of each of its environments."""
        return save_shares(self._shares, whole=whole)

    def load_state(self, saved: list[list[dict[str, Any]]]) -> None:
        """Put the environments of each share into states that :meth:`save_state` returned with ``whole``."""
        load_shares(self._shares, saved)

    def close(self) -> list[str]:
        """Close the environments; return what went wrong."""
        return close_shares(self._shares)
