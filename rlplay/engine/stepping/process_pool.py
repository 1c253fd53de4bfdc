"""A pool of worker processes, for environments that keep the interpreter lock, where there is one.

Must not import torch.
"""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import numpy as np

from ..concurrency.channel import Failure
from ..concurrency.child import Listener
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..concurrency.sendable import check_sendable
from ..concurrency.service import DONE, PARTIAL, ServiceProcess
from ..concurrency.shared_memory import map_memory, new_memory
from ..envs.info import Entries
from ..envs.rows import Array, Episode, OutcomeRow
from .pool import StepResult, Worker, WorkerPool
from .shares import Share
from .stepper import SlotViews, Step
from .worker import PoolMemory, WorkerService, WorkerSpec, pack_step

__all__ = ["ProcessPool"]


class _ProcessWorker(Worker):
    """The collector's side of a worker process, which makes its environments and writes into the shared slots."""

    def __init__(self, spec: WorkerSpec, memory: PoolMemory, memory_fd: int) -> None:
        """Start the process, and share ``memory`` with it, whose file descriptor is ``memory_fd``."""
        progress = memory.progress(spec.number)
        super().__init__(spec.number, spec.shares, progress)
        self._memory, self._first_env = memory, spec.first_env
        self._outcomes: list[list[list[OutcomeRow]]] = []  # by slot, share and row
        self._requested: deque[tuple[int, Step]] = deque()
        try:
            self.process = ServiceProcess(WorkerService, spec, name=self.name, memory_fd=memory_fd)
        except Exception:
            self._check_factories()
            raise
        self.process.link.on_transfer = progress.note_transfer

    def attach(self, slots: Sequence[SlotViews], fds: Sequence[int]) -> None:
        """Request that the worker maps the slots and writes the very first row."""
        self._outcomes = [
            [slot.turns[share.group].part(share.inside).outcomes for share in self.shares] for slot in slots
        ]
        self.process.request("attach", slots[0].layout, fds=fds)

    def start_step(self, share: int, step: Step) -> None:
        """Request a step of one share."""
        self._requested.append((share, step))
        self.process.request_short(pack_step(share, step))

    def start_save(self, *, whole: bool) -> None:
        """Request the states of all shares."""
        self.process.request("save_state", whole)

    def start_load(self, saved: list[list[dict[str, Any]]]) -> None:
        """Request that all shares are put into states."""
        self.process.request("load_state", saved)

    def receive(self) -> Any:
        """Receive the next answer, a Failure if the request has raised, or ``PARTIAL``.

        Raises RuntimeError if the worker has died.
        """
        try:
            kind, value = self.process.receive()
        except BaseException as error:
            if self.process.has_died:
                raise
            return Failure(error)
        if kind != DONE:
            return PARTIAL if kind == PARTIAL else value
        return self._read_step(*self._requested.popleft()) if self._requested else None

    def _read_step(self, share: int, step: Step) -> StepResult:
        """Read the result of a step from shared memory."""
        columns, _, inside, *_ = self.shares[share]
        outcomes = self._outcomes[step.slot][share]
        outcome = outcomes[(step.row + 1) % len(outcomes)]
        ended = np.flatnonzero((outcome.terminated | outcome.truncated) & outcome.valid).tolist()
        memory, envs = self._memory, [(columns.start + j, columns.start + j - self._first_env) for j in ended]
        episodes = [Episode(j, float(memory.ret[k]), int(memory.length[k])) for j, k in envs]
        return StepResult(share, step.t, [inside.start + j for j in ended], episodes)

    def kill(self) -> None:
        """Kill the process and its process group."""
        self.process.kill()

    def request_end(self) -> None:
        """Request that the worker closes its environments and ends."""
        self.process.request_end()

    def close(self, deadline: float) -> list[str]:
        """Wait for the worker's end; kill it, with what it has started, at the deadline."""
        return self.process.close(deadline, doing=lambda: str(self.progress))

    def _check_factories(self) -> None:
        """Raise TypeError if a factory cannot be pickled, which is then why the process could not be started."""
        remedy = "Let the factory make what it needs when it is called, or use `worker='thread'`."
        for share in self.shares:
            for j, source in enumerate(share.sources, share.columns.start):
                check_sendable(f"the factory of environment {j}", "the factory", source, remedy, "a worker process")


class ProcessPool(WorkerPool[_ProcessWorker]):
    """A stepper that has worker processes step the environments."""

    def __init__(
        self,
        shares_by_worker: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
        progress: Progress,
        gate: Gate,
        set_up: Callable[[], None] | None = None,
    ) -> None:
        """Start the processes, and wait until they have made and reset their environments.

        Parameters
        ----------
        set_up : callable, optional
            Sent to each process, and called there first.

        Raises
        ------
        ValueError
            The environments of different workers have different spaces.
        TypeError
            A factory cannot be sent to a process.
        RuntimeError
            A worker has died (the message names the worker and the signal), or the system is not POSIX.
        """
        self._slot_fds: list[int] = []
        self._set_up = set_up
        self._listener = Listener[_ProcessWorker]()
        self._entries = entries
        self.close_timeout = ServiceProcess.grace
        gate.on_close(self._listener.allow_waking(), self.close_timeout)
        super().__init__(shares_by_worker, entries, groups, progress, gate)

    def _start_workers(self, shares_by_worker: Sequence[Sequence[Share]], entries: Entries) -> Iterator[_ProcessWorker]:
        n_workers, n_envs = len(shares_by_worker), self.groups[-1].stop
        first_env = min(share.columns.start for shares in shares_by_worker for share in shares)
        size = n_workers, n_envs, len(entries.entries)
        fd = new_memory(PoolMemory.size(*size))
        try:
            self._memory = memory = PoolMemory(map_memory(fd), *size)
            for number, shares in enumerate(shares_by_worker):
                spec = WorkerSpec(number, list(shares), entries, n_workers, n_envs, first_env, self._set_up)
                worker = _ProcessWorker(spec, memory, fd)
                self._listener.add(worker.process, worker)
                yield worker
        finally:
            os.close(fd)

    def _request_attach(self, slots: Sequence[SlotViews]) -> None:
        for worker in self._workers:
            worker.attach(slots, self._slot_fds)
        self._close_fds()

    def _receive(self) -> Sequence[tuple[_ProcessWorker, Any]]:
        found = []
        for worker in self._listener.wait():
            try:
                answer = worker.receive()
            except BaseException:
                self._set_failed(worker)
                raise
            if answer is not PARTIAL:
                found.append((worker, answer))
        return found

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call; note which entries of infos have been told until now."""
        if self._entries.untold:
            told = zip(self._entries.entries, self._memory.told.tolist(), strict=True)
            self._entries.keep_untold([entry.name for entry, is_told in told if not is_told])
        return super().episodes()

    def memory(self, size: int) -> Array:
        """Allocate ``size`` bytes for a slot, shared with the processes."""
        self._slot_fds.append(new_memory(size))
        return map_memory(self._slot_fds[-1])

    def close(self) -> list[str]:
        """Close the environments in the workers and end the workers; kill processes that do not end in time."""
        self._close_fds()
        self._listener.close()
        return super().close()

    def _close_fds(self) -> None:
        while self._slot_fds:
            os.close(self._slot_fds.pop())
