"""What a worker does: it keeps some of the environments, and steps a part of them when it is told to.

Runs in a worker's process or thread. Neither torch nor threads here, so that a process need not load torch.
"""

from __future__ import annotations

import os
import struct
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, NamedTuple

import cloudpickle
import numpy as np

from ...nested import Nested
from ..concurrency.exceptions import pack
from ..concurrency.link import Gone, Link
from ..concurrency.progress import Progress, SharedProgress
from ..concurrency.shared_memory import map_memory
from ..envs.environment_list import EnvironmentList
from ..envs.info import Entries
from ..envs.rows import Array, Episode, OutcomeRow, SlabLayout, StateRow, view_rows
from .stepper import SlotViews, Step

__all__ = [
    "COMMAND",
    "DONE",
    "FAILED",
    "LAST",
    "LENGTH",
    "TOLD",
    "PoolMemory",
    "WorkerSpec",
    "ShareStepper",
    "EnvironmentSpec",
    "Share",
    "serve",
]

COMMAND = struct.Struct("<HHBBxxI")
"""The step to be made: for which of the worker's shares, the slot, ``final``, ``sticky``, ``t``."""
DONE, TOLD, FAILED, LAST = b"\0", b"\1", b"\2", b"\3"
"""How answers begin. All but the first go on with the length of a pickle, and the pickle: what was asked for, what was
raised, and in the end what went wrong with closing."""
LENGTH = struct.Struct("<Q")


class Share(NamedTuple):
    """Environments that step together: consecutive ones, of one group and one worker."""

    columns: slice
    sources: Sequence[Any]
    seeds: Sequence[int]


class WorkerSpec(NamedTuple):
    """What a worker process is told at first."""

    number: int
    shares: list[Share]
    entries: Entries
    n_workers: int
    n_envs: int


class EnvironmentSpec(NamedTuple):
    """What the environments of a share look like."""

    obs: Nested
    act: Nested
    spaces: tuple[Any, Any]


class ShareStepper:
    """The environments of a share, where they are kept."""

    def __init__(self, share: Share, entries: Entries, progress: Progress) -> None:
        """Make and reset them, in the worker."""
        self._columns = share.columns
        self.environments = EnvironmentList(share.sources, share.seeds, entries, progress, first=share.columns.start)
        self.environment_spec = EnvironmentSpec(self.environments.obs, self.environments.act, self.environments.spaces)
        self._progress = progress
        self._slots: list[tuple[list[StateRow], list[OutcomeRow], StateRow]] = []

    def attach(self, slots: Sequence[tuple[list[StateRow], list[OutcomeRow], StateRow]]) -> None:
        """Get to know the slots, and write this share of the very first row of the first."""
        part = self._columns
        for rows, outcomes, last in slots:
            views = [row.part(part) for row in rows], [outcome.part(part) for outcome in outcomes], last.part(part)
            self._slots.append(views)
        self.environments.begin(self._slots[0][0][0])

    def step(self, step: Step) -> tuple[list[int], list[Episode]]:
        """Make a step; return whose episode ended with it, and these."""
        rows, outcomes, last = self._slots[step.slot]
        if not step.t:
            self.environments.release()
        self._progress.row = step.t
        self._progress.begin("env.step")
        now, then = rows[step.t : step.t + 2]
        ended = self.environments.step(now, then, outcomes[step.t], last if step.final else None, sticky=step.sticky)
        episodes, self.environments.episodes = self.environments.episodes, []
        self._progress.begin("waiting for the next step")
        return [self._columns.start + j for j in ended], episodes


class PoolMemory:
    """Shared memory of all worker processes: where each one stands, and what the last episode of each environment was.

    A worker writes, and has written before its answer is read; only where it stands is looked at in between.
    """

    def __init__(self, memory: Array, n_workers: int, n_envs: int) -> None:
        """Lay it out."""
        posted = n_workers * SharedProgress.SIZE
        self._posted = memory[:posted].reshape(n_workers, SharedProgress.SIZE)
        self.length, self.ret = memory[posted : self.size(n_workers, n_envs)].view(np.int64).reshape(2, n_envs)
        self.ret = self.ret.view(np.float64)

    @staticmethod
    def size(n_workers: int, n_envs: int) -> int:
        """How many bytes it takes."""
        return n_workers * SharedProgress.SIZE + 2 * 8 * n_envs

    def progress(self, number: int) -> SharedProgress:
        """Return a worker's progress: written in its process, read on the other side."""
        return SharedProgress(self._posted[number])


def serve(link: Link, spec: WorkerSpec) -> None:
    """Live the whole life of a worker process: make the environments, step them when told, close them."""
    _, (fd,) = link.receive()
    board = PoolMemory(_mapped(fd), spec.n_workers, spec.n_envs)
    progress = board.progress(spec.number)
    shares: list[ShareStepper] = []

    def make() -> bytes:
        shares.extend(ShareStepper(share, spec.entries, progress) for share in spec.shares)
        told: bytes = cloudpickle.dumps([kept.environment_spec for kept in shares])
        return told

    def step(number: int, step: Step) -> None:
        for episode in shares[number].step(step)[1]:
            board.ret[episode.env], board.length[episode.env] = episode.ret, episode.length

    with suppress(Gone):  # there is nothing more to be done
        if _answered(link, make):
            _attach(shares, *link.receive())
            link.write(DONE)
            while True:
                number, slot, final, sticky, t = COMMAND.unpack(link.read(COMMAND.size))
                _answered(link, partial(step, number, Step(slot, t, bool(final), bool(sticky))))
    complaints = [complaint for kept in shares for complaint in kept.environments.close()]
    sys.stdout.flush()  # for once that this has been read, the process may be ended at any moment
    _answer(link, LAST, cloudpickle.dumps(complaints))


def _answered(link: Link, work: Callable[[], bytes | None]) -> bool:
    """Do some work, and answer that it is done, with what there is to be told, or what it raised."""
    try:
        told = work()
    except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
        _answer(link, FAILED, pack(error))
        return False
    if told is None:
        link.write(DONE)
    else:
        _answer(link, TOLD, told)
    return True


def _answer(link: Link, how: bytes, data: bytes) -> None:
    link.write(how + LENGTH.pack(len(data)) + data)


def _attach(shares: Sequence[ShareStepper], slab_layout: SlabLayout, fds: Sequence[int]) -> None:
    slots = [view_rows(_mapped(fd), slab_layout) for fd in fds]
    for kept in shares:
        kept.attach(slots)


def _mapped(fd: int) -> Array:
    memory = map_memory(fd)
    os.close(fd)
    return memory


def views_of(slot: SlotViews) -> tuple[list[StateRow], list[OutcomeRow], StateRow]:
    """Take the rows of a slot as :func:`~rlplay.engine.envs.rows.view_rows` would give them."""
    return slot.rows, slot.outcomes, slot.last_row
