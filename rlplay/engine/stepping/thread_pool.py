"""A pool of worker threads, for environments that release the interpreter lock, or where it is off.

Must not import torch.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from time import monotonic
from typing import Any, TypeAlias

from ..concurrency.channel import Channel, Closed, Failure
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..envs.dialects import is_vector
from ..envs.info import Entries
from .pool import StepResult, Worker, WorkerPool
from .shares import Share, ShareStepper, close_shares, load_shares, open_shares, save_shares
from .stepper import SlotViews, Step
from .worker import EnvironmentSpec

__all__ = ["ThreadPool"]

Surroundings: TypeAlias = Callable[[], AbstractContextManager[None]]
Task: TypeAlias = Callable[[list[ShareStepper]], Any]


class _ThreadWorker(Worker):
    """The collector's side of a worker thread. The thread calls factories; instances stay the caller's."""

    def __init__(
        self,
        number: int,
        shares: Sequence[Share],
        entries: Entries,
        answers: Channel[tuple[int, Any]],
        surroundings: Surroundings,
    ) -> None:
        """Start the thread. It sends its answers, each with its number, to ``answers``."""
        super().__init__(number, shares, Progress())
        self._tasks: Channel[Task] = Channel(reentrant=True)
        self._complaints: list[str] = []
        args = number, self.shares, entries, self.progress, self._tasks, answers, self._complaints, surroundings
        self.thread = threading.Thread(target=_work, args=args, name=f"rlplay-worker-{number}", daemon=True)
        self.thread.start()

    def request(self, task: Task) -> None:
        """Have the thread call ``task`` with its shares, and send what the task returns."""
        self._tasks.put(task)

    def start_step(self, share: int, step: Step) -> None:
        """Request a step of one share."""
        self._tasks.put(lambda shares: StepResult(share, step.t, *shares[share].step(step)))

    def start_save(self, *, whole: bool) -> None:
        """Request the states of all shares."""
        self._tasks.put(partial(_attempt, partial(save_shares, whole=whole)))

    def start_load(self, saved: list[list[dict[str, Any]]]) -> None:
        """Request that all shares are put into states."""
        self._tasks.put(partial(_attempt, partial(load_shares, saved=saved)))

    def kill(self) -> None:
        """Have the thread end once its step returns: a thread cannot be killed."""
        self._tasks.close()

    def request_end(self) -> None:
        """Request that the thread closes its environments and ends."""
        self._tasks.close()

    def close(self, deadline: float) -> list[str]:
        """Wait for the thread's end until the deadline; return what went wrong."""
        self.thread.join(max(0.0, deadline - monotonic()))
        if self.thread.is_alive():
            return [f"{self.name} has not ended, and is left behind: {self.progress}. A thread cannot be killed."]
        complaints, self._complaints = self._complaints, []
        return complaints


def _attempt(task: Task, steppers: list[ShareStepper]) -> Any:
    """Carry out a task; return what it raises as a :class:`Failure`, after which the thread goes on."""
    try:
        return task(steppers)
    except BaseException as error:  # SystemExit too: the consumer has to receive it
        return Failure(error)


def _work(
    number: int,
    shares: Sequence[Share],
    entries: Entries,
    progress: Progress,
    tasks: Channel[Task],
    answers: Channel[tuple[int, Any]],
    complaints: list[str],
    surroundings: Surroundings,
) -> None:
    """Run a worker thread: make the environments, carry out tasks until closed, close the environments."""
    with surroundings():
        steppers: list[ShareStepper] = []
        try:
            steppers += open_shares(shares, entries, progress)
            made = [stepper.environments for stepper in steppers]
            answers.put((number, [EnvironmentSpec(one.obs, one.act, one.spaces) for one in made]))
            while True:
                answers.put((number, tasks.get()(steppers)))
        except Closed:
            pass
        except BaseException as error:  # SystemExit too: the consumer has to receive it
            answers.put((number, Failure(error)))
        finally:
            complaints += close_shares(steppers)


class ThreadPool(WorkerPool[_ThreadWorker]):
    """A stepper that has worker threads step the environments; one channel brings the answers of all of them."""

    def __init__(
        self,
        shares_by_worker: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
        progress: Progress,
        gate: Gate,
        surroundings: Surroundings = nullcontext,
    ) -> None:
        """Start the threads, and wait until they have made and reset their environments.

        Parameters
        ----------
        surroundings : callable
            Returns a context manager; each thread does all its work inside such a ``with`` block.

        Raises
        ------
        ValueError
            The environments of different workers have different spaces.
        """
        sources = [source for shares in shares_by_worker for share in shares for source in share.sources]
        self.environments_are = "vector" if any(map(is_vector, sources)) else "list"
        self._answers: Channel[tuple[int, Any]] = Channel(reentrant=True)
        self._gate, self._surroundings = gate, surroundings
        super().__init__(shares_by_worker, entries, groups, progress, gate)

    def _start_workers(self, shares_by_worker: Sequence[Sequence[Share]], entries: Entries) -> Iterator[_ThreadWorker]:
        for number, shares in enumerate(shares_by_worker):
            worker = _ThreadWorker(number, shares, entries, self._answers, self._surroundings)
            self._gate.add_thread(worker.thread)
            yield worker

    def _request_attach(self, slots: Sequence[SlotViews]) -> None:
        views = [slot.turns for slot in slots]

        def attach(steppers: list[ShareStepper]) -> None:
            for stepper in steppers:
                stepper.attach(views)

        for worker in self._workers:
            worker.request(attach)

    def _receive(self) -> Sequence[tuple[_ThreadWorker, Any]]:
        number, answer = self._answers.get()
        return [(self._workers[number], answer)]

    def kill(self) -> None:
        """Wake the thread that waits for the workers; the workers end by themselves."""
        self._answers.close()
        super().kill()
