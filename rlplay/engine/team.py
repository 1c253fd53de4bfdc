"""Environments in worker threads or worker processes, which step while others are inferred.

A group of environments is a turn of its own. Each worker keeps consecutive environments, and is woken once for a step
(once for each group that it has a share in). Knows threads and processes. Neither torch nor what is collected.
"""

from __future__ import annotations

import os
import pickle
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from itertools import pairwise
from time import monotonic
from typing import Any

import cloudpickle
import numpy as np

from . import space
from .crew import SlotViews, Step
from .environment import is_factory
from .handoff import Channel, Closed, Failure
from .info import Entries
from .process import Child, Gone, map_memory, new_memory, unpacked
from .rows import Array, Episode
from .trace import Progress, note
from .worker import COMMAND, DONE, FAILED, LAST, LENGTH, Board, Errand, Kept, Portrait, Share, serve, views_of

__all__ = ["Team", "shares"]

_PATIENCE = 3.0
"""Seconds for which closing waits for the environments to be closed: fewer than it is waited for itself."""


class Worker(ABC):
    """One worker, seen from the collector: it keeps some shares, and is asked to step them."""

    def __init__(self, number: int, given: Sequence[Share]) -> None:
        self.shares = list(given)
        first, last = given[0].columns.start, given[-1].columns.stop - 1
        which = f"environment {first}" if first == last else f"environments {first} to {last}"
        self.name = f"worker {number} ({which})"

    @property
    @abstractmethod
    def progress(self) -> Progress:
        """Where it stands."""

    @abstractmethod
    def made(self) -> list[Portrait]:
        """Wait until the environments are made and reset, and tell what they look like."""

    @abstractmethod
    def settle_in(self, slots: Sequence[SlotViews], fds: Sequence[int]) -> None:
        """Let it get to know the slots, and write the very first row."""

    @abstractmethod
    def go(self, share: int, step: Step) -> None:
        """Wake it for a step."""

    @abstractmethod
    def wait(self, share: int) -> tuple[list[int], list[Episode]]:
        """Wait until the step is made; return whose episode ended, and these."""

    @abstractmethod
    def kill(self) -> None:
        """Give it up, and wake whoever waits for it. Safe in any thread."""

    @abstractmethod
    def dismiss(self) -> None:
        """Tell it to end."""

    @abstractmethod
    def close(self, deadline: float) -> list[str]:
        """Wait for its end, until a moment of ``monotonic()``; return what went wrong with it."""


class ThreadWorker(Worker):
    """A worker thread. Factories are called in it; instances stay the caller's."""

    def __init__(self, number: int, given: Sequence[Share], entries: Entries) -> None:
        """Start the thread."""
        super().__init__(number, given)
        self._progress = Progress()
        self._inbox: Channel[tuple[int, Callable[[Kept], Any]]] = Channel(reentrant=True)
        self._made: Channel[list[Portrait]] = Channel(reentrant=True)
        self._outbox = [Channel[Any](reentrant=True) for _ in given]
        self._complaints: list[str] = []
        args = self.shares, entries, self._progress, self._inbox, self._made, self._outbox, self._complaints
        self._thread = threading.Thread(target=_work, args=args, name=f"rlplay-worker-{number}", daemon=True)
        self._thread.start()

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self._progress

    def made(self) -> list[Portrait]:
        """Wait until the environments are made and reset, and tell what they look like."""
        return self._made.get()

    def settle_in(self, slots: Sequence[SlotViews], fds: Sequence[int]) -> None:
        """Let it get to know the slots, and write the very first row."""
        for k, outbox in enumerate(self._outbox):
            self._inbox.put((k, lambda kept: kept.settle_in([views_of(slot) for slot in slots])))
            outbox.get()

    def go(self, share: int, step: Step) -> None:
        """Wake it for a step."""
        self._inbox.put((share, lambda kept: kept.step(step)))

    def wait(self, share: int) -> tuple[list[int], list[Episode]]:
        """Wait until the step is made; return whose episode ended, and these."""
        made: tuple[list[int], list[Episode]] = self._outbox[share].get()
        return made

    def kill(self) -> None:
        """Wake whoever waits for it; a thread cannot be killed, and ends by itself once its step returns."""
        self._inbox.close()
        self._made.close()
        for outbox in self._outbox:
            outbox.close()

    def dismiss(self) -> None:
        """Tell it to end."""
        self._inbox.close()

    def close(self, deadline: float) -> list[str]:
        """Wait for its end."""
        self._thread.join(max(0.0, deadline - monotonic()))
        if self._thread.is_alive():
            return [f"{self.name} has not ended, and is left behind: {self._progress}. A thread cannot be killed."]
        complaints, self._complaints = self._complaints, []
        return complaints


def _work(
    given: Sequence[Share],
    entries: Entries,
    progress: Progress,
    inbox: Channel[tuple[int, Callable[[Kept], Any]]],
    made: Channel[list[Portrait]],
    outbox: Sequence[Channel[Any]],
    complaints: list[str],
) -> None:
    """Live the whole life of a worker thread."""
    kept: list[Kept] = []
    try:
        kept.extend(Kept(share, entries, progress) for share in given)
        made.put([one.portrait for one in kept])
        while True:
            k, work = inbox.get()
            try:
                outbox[k].put(work(kept[k]))
            except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
                outbox[k].put(Failure(error))
    except Closed:
        pass
    except BaseException as error:
        made.put(Failure(error))
    finally:
        complaints += [complaint for one in kept for complaint in one.faces.close()]


class ProcessWorker(Worker):
    """A worker process. Factories are called in it; it writes into the slots, which it shares."""

    def __init__(self, number: int, given: Sequence[Share], entries: Entries, n_workers: int, n_envs: int) -> None:
        """Start the process."""
        super().__init__(number, given)
        self._number = number
        try:
            self._child = Child(serve, Errand(number, self.shares, entries, n_workers, n_envs), name=self.name)
        except Exception as error:
            self._blame_factories(error)
            raise
        self._slots: list[SlotViews] = []
        self._steps: dict[int, Step] = {}

    def take_board(self, board: Board, fd: int) -> None:
        """Share the board."""
        self._board, self._progress = board, board.progress(self._number)
        with self._blamed():
            self._child.link.send(None, fd)

    @property
    def progress(self) -> Progress:
        """Where it stands."""
        return self._progress

    def made(self) -> list[Portrait]:
        """Wait until the environments are made and reset, and tell what they look like."""
        portraits: list[Portrait] = pickle.loads(self._answer())
        return portraits

    def settle_in(self, slots: Sequence[SlotViews], fds: Sequence[int]) -> None:
        """Let it get to know the slots, and write the very first row."""
        self._slots = list(slots)
        with self._blamed():
            self._child.link.send(slots[0].cuts, *fds)
        self._answer()

    def go(self, share: int, step: Step) -> None:
        """Wake it for a step."""
        self._steps[share] = step
        with self._blamed():
            self._child.link.write(COMMAND.pack(share, step.slot, step.final, step.sticky, step.t))

    def wait(self, share: int) -> tuple[list[int], list[Episode]]:
        """Wait until the step is made; return whose episode ended, and these."""
        self._answer()
        step, part = self._steps[share], self.shares[share].columns
        marks = self._slots[step.slot].marks[step.t]
        over = (marks.terminated[part] | marks.truncated[part]) & marks.valid[part]
        ended = [part.start + int(j) for j in np.flatnonzero(over)]
        board = self._board
        return ended, [Episode(j, float(board.ret[j]), int(board.length[j])) for j in ended]

    def kill(self) -> None:
        """Kill it."""
        self._child.kill()

    def dismiss(self) -> None:
        """Tell it to end."""
        self._child.link.finish()

    def close(self, deadline: float) -> list[str]:
        """Wait for its end; kill it if that takes too long."""
        complaints = self._last_words(deadline)
        self._child.close()
        return complaints

    def _last_words(self, deadline: float) -> list[str]:
        """Wait for what it has to say in the end, behind answers that nobody has waited for."""
        with suppress(Gone):
            while self._child.link.ready(deadline - monotonic()):
                how, data = self._hear()
                if how == LAST:
                    words: list[str] = pickle.loads(data)
                    return words
            self._child.kill()
            return [f"{self.name} has not closed its environments in time, and was killed."]
        return []

    def _hear(self) -> tuple[bytes, bytes]:
        """Wait for its next answer."""
        link = self._child.link
        how = link.read(1)
        return how, b"" if how == DONE else link.read(*LENGTH.unpack(link.read(LENGTH.size)))

    def _answer(self) -> bytes:
        """Wait until it has done what it was told to; return what it has to tell, or raise what that has raised."""
        with self._blamed():
            how, data = self._hear()
        if how == FAILED:
            raise unpacked(data)
        return data

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
            raise RuntimeError(f"{self._child.epitaph()}.") from None


class Team:
    """A crew of workers.

    Attributes
    ----------
    obs, act, turns
        As those of any :class:`~rlplay.engine.crew.Crew`.
    """

    def __init__(
        self,
        given: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
        kind: str,
        progress: Progress,
        hurry: list[Callable[[], None]],
    ) -> None:
        """Start the workers, all at once, and wait until their environments are made and reset.

        ``hurry`` is given what gives the workers up, as soon as there are any.

        Raises
        ------
        ValueError
            The environments of different workers have different spaces.
        """
        self.n_envs, self._progress, self._kind = groups[-1].stop, progress, kind
        self.turns = [[g] for g in range(len(groups))]
        self._workers: list[Worker] = []
        self._fds: list[int] = []
        self._episodes: list[Episode] = []
        hurry.append(self.kill)
        try:
            progress.doing = "starting workers"
            self._start(given, entries)
            self._ways = [
                [(w, k) for w in self._workers for k, share in enumerate(w.shares) if _inside(share.columns, group)]
                for group in groups
            ]
            self._busy: list[list[tuple[Worker, int]]] = [[] for _ in groups]
            progress.parts = [(worker.name, worker.progress) for worker in self._workers]
            self._look()
        except BaseException as error:
            for complaint in self.close():
                note(error, complaint)
            raise

    def _start(self, given: Sequence[Sequence[Share]], entries: Entries) -> None:
        if self._kind == "thread":
            sources = [source for shares in given for share in shares for source in share.sources]
            instances = [id(source) for source in sources if not is_factory(source)]
            if len(set(instances)) < len(instances):
                raise ValueError(
                    "the same environment stands twice in `envs`: each column needs an instance of its own."
                )
            self._workers.extend(ThreadWorker(n, shares, entries) for n, shares in enumerate(given))
            return
        fd = new_memory(Board.size(len(given), self.n_envs))
        try:
            board = Board(map_memory(fd), len(given), self.n_envs)
            for n, shares in enumerate(given):
                worker = ProcessWorker(n, shares, entries, len(given), self.n_envs)
                self._workers.append(worker)
                worker.take_board(board, fd)
        finally:
            os.close(fd)

    def _look(self) -> None:
        portraits: list[Portrait] = []
        self._progress.doing = "env.make"
        for worker in self._workers:
            self._progress.busy = [(worker.name, worker.progress)]
            portraits += worker.made()
        self._progress.busy, self._progress.doing = [], "checking the spaces"
        one = portraits[0]
        for share, other in zip([s for w in self._workers for s in w.shares], portraits, strict=True):
            for name, mine, theirs in zip(("observation_space", "action_space"), one.spaces, other.spaces, strict=True):
                if not space.same(mine, theirs):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {share.columns.start} has the "
                        f"{name} {theirs}, environment 0 has {mine}."
                    )
        self.obs, self.act = one.obs, one.act

    def memory(self, size: int) -> Array | None:
        """Make memory for a slot that worker processes can share."""
        if self._kind == "thread":
            return None
        self._fds.append(new_memory(size))
        return map_memory(self._fds[-1])

    def settle_in(self, slots: Sequence[SlotViews]) -> None:
        """Get to know the slots, and write the very first row of the first."""
        slots[0].rows[0].begin()
        for worker in self._workers:
            worker.settle_in(slots, self._fds)
        self._forget_fds()

    def release(self) -> None:
        """Do nothing: the first step of a fragment says so."""

    def depart(self, turn: int, step: Step) -> None:
        """Set out to make a step."""
        for worker, share in self._ways[turn]:
            worker.progress.fragment = self._progress.fragment
            worker.go(share, step)
            self._busy[turn].append((worker, share))
        self._tell()

    def arrive(self, turn: int) -> list[int]:
        """Wait until the step is made; return whose episode ended with it."""
        ended: list[int] = []
        busy = self._busy[turn]
        while busy:
            worker, share = busy[0]
            try:
                over, episodes = worker.wait(share)
            except BaseException:
                self._progress.busy = [(worker.name, worker.progress)]  # who is to blame
                raise
            del busy[0]
            ended += over
            self._episodes += episodes
        self._tell()
        return ended

    def _tell(self) -> None:
        busy = dict.fromkeys(worker for busy in self._busy for worker, _ in busy)
        self._progress.busy = [(worker.name, worker.progress) for worker in busy]

    def episodes(self) -> list[Episode]:
        """Take the episodes that have ended since somebody last took them away."""
        taken, self._episodes = self._episodes, []
        return taken

    def kill(self) -> None:
        """Give the workers up."""
        for worker in list(self._workers):
            worker.kill()

    def close(self) -> list[str]:
        """Tell the workers to close their environments and to end; kill those that do not."""
        self._forget_fds()
        deadline = monotonic() + _PATIENCE
        for worker in self._workers:
            worker.dismiss()
        return [complaint for worker in self._workers for complaint in worker.close(deadline)]

    def _forget_fds(self) -> None:
        while self._fds:
            os.close(self._fds.pop())


def _inside(part: slice, whole: slice) -> bool:
    return bool(whole.start <= part.start < whole.stop)


def shares(
    sources: Sequence[Any], seeds: Sequence[int], groups: Sequence[slice], workers: Sequence[slice]
) -> list[list[Share]]:
    """Deal the environments out: for each worker, its share of each group."""
    found = []
    for worker in workers:
        inside = {worker.start, worker.stop, *(g.start for g in groups if worker.start < g.start < worker.stop)}
        parts = [slice(start, stop) for start, stop in pairwise(sorted(inside))]
        found.append([Share(part, list(sources[part]), list(seeds[part])) for part in parts])
    return found
