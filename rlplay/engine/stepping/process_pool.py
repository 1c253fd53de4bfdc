"""A pool of worker processes, for environments that keep the interpreter lock. Must not import torch."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import cloudpickle
import numpy as np

from ..concurrency.child import Listener
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..concurrency.service import DONE, ServiceProcess
from ..concurrency.shared_memory import map_memory, new_memory
from ..envs.info import Entries
from ..envs.rows import Array, Episode
from .pool import StepResult, Worker, WorkerPool
from .shares import Share
from .stepper import SlotViews, Step
from .worker import PoolMemory, WorkerService, WorkerSpec, pack_step

__all__ = ["ProcessPool"]


class _ProcessWorker(Worker):
    """The collector's side of a worker process, which makes its environments and writes into the shared slots."""

    def __init__(
        self,
        number: int,
        shares: Sequence[Share],
        entries: Entries,
        n_workers: int,
        n_envs: int,
        memory: PoolMemory,
        memory_fd: int,
        set_up: Callable[[], None] | None,
    ) -> None:
        """Start the process, and share ``memory`` with it, whose file descriptor is ``memory_fd``."""
        super().__init__(number, shares, memory.progress(number))
        self._memory = memory
        self._slots: list[SlotViews] = []
        self._requested: deque[tuple[int, Step]] = deque()
        spec = WorkerSpec(number, self.shares, entries, n_workers, n_envs, set_up)
        try:
            self.process = ServiceProcess(WorkerService, spec, name=self.name, memory_fd=memory_fd)
        except Exception as error:
            self._check_factories(error)
            raise

    def attach(self, slots: Sequence[SlotViews], fds: Sequence[int]) -> None:
        """Request that the worker maps the slots and writes the very first row."""
        self._slots = list(slots)
        self.process.request("attach", slots[0].slab_layout, fds=fds)

    def start_step(self, share: int, step: Step) -> None:
        """Request a step of one share."""
        self._requested.append((share, step))
        self.process.request_short(pack_step(share, step))

    def receive(self) -> Any:
        """Wait for the next answer; raise what the worker raised, or RuntimeError if it has died."""
        kind, value = self.process.receive()
        if kind != DONE:
            return value
        return self._read_step(*self._requested.popleft()) if self._requested else None

    def _read_step(self, share: int, step: Step) -> StepResult:
        """Read the result of a step from shared memory."""
        part, outcome, memory = self.shares[share].columns, self._slots[step.slot].outcomes[step.t], self._memory
        over = (outcome.terminated[part] | outcome.truncated[part]) & outcome.valid[part]
        ended = [part.start + int(j) for j in np.flatnonzero(over)]
        episodes = [Episode(j, float(memory.ret[j]), int(memory.length[j])) for j in ended]
        return StepResult(share, step.t, ended, episodes)

    def kill(self) -> None:
        """Kill the process."""
        self.process.kill()

    def request_end(self) -> None:
        """Request that the worker closes its environments and ends."""
        self.process.end_service()

    def close(self, deadline: float) -> list[str]:
        """Wait for the worker's end; kill it at the deadline."""
        complaints = self.process.receive_complaints(deadline)
        if complaints is None:
            self.process.kill()
            complaints = [f"{self.name} has not closed its environments in time, and was killed."]
        self.process.close()
        return complaints

    def _check_factories(self, error: Exception) -> None:
        """Raise TypeError if a factory cannot be pickled, which is then why the process could not be started."""
        for share in self.shares:
            for j, source in enumerate(share.sources, share.columns.start):
                try:
                    cloudpickle.dumps(source)
                except Exception:
                    raise TypeError(
                        f"the factory of environment {j} cannot be sent to a worker process ({error}): let it make "
                        "what it needs when it is called, or use `worker='thread'`."
                    ) from error


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
        super().__init__(shares_by_worker, entries, groups, progress, gate)

    def _start_workers(self, shares_by_worker: Sequence[Sequence[Share]], entries: Entries) -> Iterator[_ProcessWorker]:
        n_workers, n_envs = len(shares_by_worker), self.n_envs
        fd = new_memory(PoolMemory.size(n_workers, n_envs))
        try:
            memory = PoolMemory(map_memory(fd), n_workers, n_envs)
            for number, shares in enumerate(shares_by_worker):
                worker = _ProcessWorker(number, shares, entries, n_workers, n_envs, memory, fd, self._set_up)
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
                found.append((worker, worker.receive()))
            except BaseException:
                self._set_failed(worker)
                raise
        return found

    def memory(self, size: int) -> Array:
        """Allocate ``size`` bytes for a slot, shared with the processes."""
        self._slot_fds.append(new_memory(size))
        return map_memory(self._slot_fds[-1])

    def close(self) -> list[str]:
        """Close the environments in the workers and end the workers; kill processes that do not end in time."""
        self._close_fds()
        return super().close()

    def _close_fds(self) -> None:
        while self._slot_fds:
            os.close(self._slot_fds.pop())
