"""A team of worker threads: for environments that let go of the interpreter lock."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, TypeAlias

from ..concurrency.channel import Channel, Closed, Failure
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..envs.dialects import is_factory
from ..envs.info import Entries
from .pool import Made, Worker, WorkerPool
from .stepper import SlotViews, Step
from .worker import Share, ShareStepper, views_of

__all__ = ["ThreadPool"]

Task: TypeAlias = Callable[[list[ShareStepper]], Any]


class _ThreadWorker(Worker):
    """A worker thread. Factories are called in it; instances stay the caller's."""

    def __init__(
        self, number: int, given: Sequence[Share], entries: Entries, answers: Channel[tuple[int, Any]]
    ) -> None:
        """Start the thread."""
        super().__init__(number, given, Progress())
        self._tasks: Channel[Task] = Channel(reentrant=True)
        self._complaints: list[str] = []
        args = number, self.shares, entries, self.progress, self._tasks, answers, self._complaints
        self.thread = threading.Thread(target=_work, args=args, name=f"rlplay-worker-{number}", daemon=True)
        self.thread.start()

    def ask(self, task: Task) -> None:
        """Let it do something with its shares, and answer what comes of it."""
        self._tasks.put(task)

    def go(self, share: int, step: Step) -> None:
        """Wake it for a step."""
        self.ask(lambda kept: Made(share, step.t, *kept[share].step(step)))

    def kill(self) -> None:
        """Leave it alone: a thread cannot be killed, and ends by itself once its step returns."""
        self._tasks.close()

    def dismiss(self) -> None:
        """Tell it to end."""
        self._tasks.close()

    def close(self, deadline: float) -> list[str]:
        """Wait for its end."""
        self.thread.join(max(0.0, deadline - monotonic()))
        if self.thread.is_alive():
            return [f"{self.name} has not ended, and is left behind: {self.progress}. A thread cannot be killed."]
        complaints, self._complaints = self._complaints, []
        return complaints


def _work(
    number: int,
    given: Sequence[Share],
    entries: Entries,
    progress: Progress,
    tasks: Channel[Task],
    answers: Channel[tuple[int, Any]],
    complaints: list[str],
) -> None:
    """Live the whole life of a worker thread."""
    kept: list[ShareStepper] = []

    def make() -> Any:
        kept.extend(ShareStepper(share, entries, progress) for share in given)
        return [one.environment_spec for one in kept]

    try:
        answers.put((number, make()))
        while True:
            answers.put((number, tasks.get()(kept)))
    except Closed:
        pass
    except BaseException as error:  # even SystemExit: it is the consumer who is to hear of it
        answers.put((number, Failure(error)))
    finally:
        complaints += [complaint for one in kept for complaint in one.environments.close()]


class ThreadPool(WorkerPool[_ThreadWorker]):
    """A stepper of worker threads, which share one way for their answers."""

    def __init__(
        self,
        given: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
        progress: Progress,
        gate: Gate,
    ) -> None:
        """Start the threads, and wait until their environments are made and reset.

        Raises
        ------
        ValueError
            The environments of different workers have different spaces, or one of them is there twice.
        """
        sources = [source for part in given for share in part for source in share.sources]
        instances = [id(source) for source in sources if not is_factory(source)]
        if len(set(instances)) < len(instances):
            raise ValueError("the same environment stands twice in `envs`: each column needs an instance of its own.")
        self._answered: Channel[tuple[int, Any]] = Channel(reentrant=True)
        self._gate = gate
        super().__init__(given, entries, groups, progress, gate.hurry)

    def _started(self, given: Sequence[Sequence[Share]], entries: Entries) -> Iterator[_ThreadWorker]:
        for number, part in enumerate(given):
            worker = _ThreadWorker(number, part, entries, self._answered)
            self._gate.insiders.append(worker.thread)
            yield worker

    def _ask_in(self, slots: Sequence[SlotViews]) -> None:
        views = [views_of(slot) for slot in slots]

        def attach(kept: list[ShareStepper]) -> None:
            for one in kept:
                one.attach(views)

        for worker in self._workers:
            worker.ask(attach)

    def _answers(self) -> Sequence[tuple[_ThreadWorker, Any]]:
        number, answer = self._answered.get()
        worker = self._workers[number]
        if isinstance(answer, Failure):
            self._blame(worker)
            try:
                raise answer.error
            finally:
                del answer  # else the traceback would hold this frame, and this frame the traceback
        return [(worker, answer)]

    def kill(self) -> None:
        """Wake whoever waits for the threads; they end by themselves."""
        self._answered.close()
        super().kill()
