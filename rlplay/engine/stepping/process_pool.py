"""A team of worker processes: for environments that keep the interpreter lock."""

from __future__ import annotations

import os
import pickle
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from time import monotonic
from typing import Any

import cloudpickle
import numpy as np

from ..concurrency.child import Child, Listener
from ..concurrency.exceptions import unpack
from ..concurrency.link import Gone
from ..concurrency.progress import Progress
from ..concurrency.shared_memory import map_memory, new_memory
from ..envs.info import Entries
from ..envs.rows import Array, Episode
from .pool import Made, Worker, WorkerPool
from .stepper import SlotViews, Step
from .worker import COMMAND, DONE, FAILED, LAST, LENGTH, PoolMemory, Share, WorkerSpec, serve

__all__ = ["ProcessPool"]


class _ProcessWorker(Worker):
    """A worker process. Factories are called in it; it writes into the slots, which it shares."""

    def __init__(
        self,
        number: int,
        given: Sequence[Share],
        entries: Entries,
        n_workers: int,
        n_envs: int,
        board: PoolMemory,
        fd: int,
    ) -> None:
        """Start the process, and share the board, which is the memory behind ``fd``."""
        super().__init__(number, given, board.progress(number))
        self._board = board
        self._slots: list[SlotViews] = []
        self._under_way: deque[tuple[int, Step]] = deque()
        try:
            self.child = Child(serve, WorkerSpec(number, self.shares, entries, n_workers, n_envs), name=self.name)
        except Exception as error:
            self._blame_factories(error)
            raise
        with self._blamed():
            self.child.link.send(None, fd)

    def attach(self, slots: Sequence[SlotViews], fds: Sequence[int]) -> None:
        """Let it get to know the slots, and write the very first row."""
        self._slots = list(slots)
        with self._blamed():
            self.child.link.send(slots[0].slab_layout, *fds)

    def go(self, share: int, step: Step) -> None:
        """Wake it for a step."""
        self._under_way.append((share, step))
        with self._blamed():
            self.child.link.write(COMMAND.pack(share, step.slot, step.final, step.sticky, step.t))

    def answer(self) -> Any:
        """Wait for its next answer; raise what it has raised, or RuntimeError if it has died."""
        with self._blamed():
            how, data = self._hear()
        if how == FAILED:
            raise unpack(data)
        if how != DONE:
            return pickle.loads(data)
        return self._made(*self._under_way.popleft()) if self._under_way else None

    def _made(self, share: int, step: Step) -> Made:
        part, outcome, board = self.shares[share].columns, self._slots[step.slot].outcomes[step.t], self._board
        over = (outcome.terminated[part] | outcome.truncated[part]) & outcome.valid[part]
        ended = [part.start + int(j) for j in np.flatnonzero(over)]
        return Made(share, step.t, ended, [Episode(j, float(board.ret[j]), int(board.length[j])) for j in ended])

    def _hear(self) -> tuple[bytes, bytes]:
        link = self.child.link
        how = link.read(1)
        return how, b"" if how == DONE else link.read(*LENGTH.unpack(link.read(LENGTH.size)))

    def kill(self) -> None:
        """Kill it."""
        self.child.kill()

    def dismiss(self) -> None:
        """Tell it to end."""
        self.child.link.finish()

    def close(self, deadline: float) -> list[str]:
        """Wait for its end; kill it if that takes too long."""
        complaints = self._last_words(deadline)
        self.child.close()
        return complaints

    def _last_words(self, deadline: float) -> list[str]:
        """Wait for what it has to say in the end, behind answers that nobody has waited for."""
        with suppress(Gone):
            while self.child.speaks(deadline - monotonic()):
                how, data = self._hear()
                if how == LAST:
                    words: list[str] = pickle.loads(data)
                    return words
            self.child.kill()
            return [f"{self.name} has not closed its environments in time, and was killed."]
        return []

    def _blame_factories(self, error: Exception) -> None:
        """If a factory is why the worker could not be told what to do, say which one."""
        for share in self.shares:
            for j, source in enumerate(share.sources, share.columns.start):
                try:
                    cloudpickle.dumps(source)
                except Exception:
                    raise TypeError(
                        f"the factory of environment {j} cannot be sent to a worker process ({error}): let it make "
                        "what it needs when it is called, or use `worker='thread'`."
                    ) from error

    @contextmanager
    def _blamed(self) -> Iterator[None]:
        try:
            yield
        except Gone:
            raise RuntimeError(f"{self.child.epitaph()}.") from None


class ProcessPool(WorkerPool[_ProcessWorker]):
    """A stepper of worker processes."""

    def __init__(
        self,
        given: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
        progress: Progress,
        hurry: list[Callable[[], None]],
    ) -> None:
        """Start the processes, and wait until their environments are made and reset.

        Raises
        ------
        ValueError
            The environments of different workers have different spaces.
        TypeError
            A factory cannot be sent to a process.
        RuntimeError
            A worker has died; the message names it, and the signal.
        """
        self._fds: list[int] = []
        self._by_child: dict[Child, _ProcessWorker] = {}
        self._listener = Listener()
        super().__init__(given, entries, groups, progress, hurry)

    def _started(self, given: Sequence[Sequence[Share]], entries: Entries) -> Iterator[_ProcessWorker]:
        n_envs = self.n_envs
        fd = new_memory(PoolMemory.size(len(given), n_envs))
        try:
            board = PoolMemory(map_memory(fd), len(given), n_envs)
            for number, part in enumerate(given):
                worker = _ProcessWorker(number, part, entries, len(given), n_envs, board, fd)
                self._by_child[worker.child] = worker
                self._listener.add(worker.child)
                yield worker
        finally:
            os.close(fd)

    def _ask_in(self, slots: Sequence[SlotViews]) -> None:
        for worker in self._workers:
            worker.attach(slots, self._fds)
        self._forget_fds()

    def _answers(self) -> Sequence[tuple[_ProcessWorker, Any]]:
        found = []
        for child in self._listener.heard():
            worker = self._by_child[child]
            try:
                found.append((worker, worker.answer()))
            except BaseException:
                self._blame(worker)
                raise
        return found

    def memory(self, size: int) -> Array:
        """Make memory for a slot that the processes can share."""
        self._fds.append(new_memory(size))
        return map_memory(self._fds[-1])

    def close(self) -> list[str]:
        """Tell the workers to close their environments and to end; kill those that do not."""
        self._forget_fds()
        return super().close()

    def _forget_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())
