"""What pools of worker threads and pools of worker processes have in common.

Each group is a turn of its own. Every worker has a share of each group, so that all workers step each group together.
Must not import torch.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from itertools import islice
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from ..concurrency.channel import Failure
from ..concurrency.exceptions import closed_on_error
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..envs.info import Entries
from ..envs.rows import Array, Episode
from .shares import Share, check_equal_spaces, name_environments
from .stepper import SlotViews, Step, check_number, in_order
from .worker import EnvironmentSpec

__all__ = ["StepResult", "Worker", "WorkerPool"]


class StepResult(NamedTuple):
    """The result of one worker's step."""

    share: int
    """The number of the share among those of its worker."""
    t: int
    ended: list[int]
    """Which environments of the group have ended their episode."""
    episodes: list[Episode]


class Worker(ABC):
    """The collector's side of one worker, which keeps some shares and answers requests in their order."""

    def __init__(self, number: int, shares: Sequence[Share], progress: Progress) -> None:
        self.number, self.shares, self.progress = number, list(shares), progress
        self.name = f"worker {number} ({name_environments([share.columns for share in shares])})"

    @abstractmethod
    def start_step(self, share: int, step: Step) -> None:
        """Request a step of one share. The answer is a :class:`StepResult`."""

    @abstractmethod
    def start_save(self, *, whole: bool) -> None:
        """Request the states of all shares. The answer is that of :func:`~.shares.save_shares`.

        If it raises, the answer is a :class:`~rlplay.engine.concurrency.channel.Failure`, and the worker goes on.
        """

    @abstractmethod
    def start_load(self, saved: list[list[dict[str, Any]]]) -> None:
        """Request that all shares are put into states; the answer is None, or as in :meth:`start_save`."""

    @abstractmethod
    def kill(self) -> None:
        """Abandon the worker, and wake the threads that wait for it. May be called in any thread."""

    @abstractmethod
    def request_end(self) -> None:
        """Request that the worker closes its environments and ends."""

    @abstractmethod
    def close(self, deadline: float) -> list[str]:
        """Wait for the worker's end until ``monotonic()`` reaches the deadline; return what went wrong."""


W = TypeVar("W", bound=Worker)


class WorkerPool(ABC, Generic[W]):
    """A stepper that has workers step the environments, and handles their answers in the order of arrival.

    Attributes
    ----------
    obs, act, groups, turns
        As those of any :class:`~rlplay.engine.stepping.stepper.Stepper`.
    """

    steps_in_background = True
    environments_are = "list"

    close_timeout = 3.0
    """Seconds in which the workers have to close their environments and end."""

    def __init__(
        self,
        shares_by_worker: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
        progress: Progress,
        gate: Gate,
    ) -> None:
        """Start all workers at once, and wait until they have made and reset their environments.

        Raises
        ------
        ValueError
            The environments of different workers have different spaces.
        """
        self.groups, self._progress = list(groups), progress
        self.turns = [[g] for g in range(len(groups))]
        self._workers: list[W] = []
        self._episodes: list[tuple[int, Episode]] = []
        gate.on_give_up(self.kill)
        with closed_on_error(self.close):
            progress.doing = "starting workers"
            for worker in self._start_workers(shares_by_worker, entries):
                self._workers.append(worker)
            # for each group: the workers that step it, each with the number of its share of that group
            self._members: list[list[tuple[W, int]]] = [[] for _ in groups]
            for w in self._workers:
                for k, share in enumerate(w.shares):
                    self._members[share.group].append((w, k))
            self._n_unfinished = [0 for _ in groups]
            self._ended: list[list[int]] = [[] for _ in groups]
            self._n_requests = dict.fromkeys(self._workers, 0)
            # all shares in the order of their environments: the worker, and the number of the share there
            shares = [(w, k) for w in self._workers for k in range(len(w.shares))]
            self._in_order = sorted(shares, key=lambda one: one[0].shares[one[1]].columns.start)
            progress.set_parts(self._workers)
            progress.doing = "env.make"
            specs: list[EnvironmentSpec] = [spec for answer in self._receive_one_each() for spec in answer]
            progress.doing = "checking the spaces"
            firsts = [share.columns.start for worker in self._workers for share in worker.shares]
            check_equal_spaces(firsts, [spec.spaces for spec in specs])
            self.obs, self.act = specs[0].obs, specs[0].act

    @abstractmethod
    def _start_workers(self, shares_by_worker: Sequence[Sequence[Share]], entries: Entries) -> Iterator[W]:
        """Start the workers, one after another. The first answer of each is a list of EnvironmentSpec, one a share."""

    @abstractmethod
    def _request_attach(self, slots: Sequence[SlotViews]) -> None:
        """Request that all workers register the slots and write the very first row."""

    @abstractmethod
    def _receive(self) -> Sequence[tuple[W, Any]]:
        """Wait until some workers have answered; return these workers and their answers.

        The answer to a request that has raised is a :class:`Failure`. If a worker has died, call :meth:`_set_failed`
        with it, and raise an error that says so.
        """

    def _set_failed(self, worker: W) -> None:
        self._progress.set_awaited([worker])

    def _receive_results(self) -> Sequence[tuple[W, Any]]:
        """Do as :meth:`_receive`, but raise the exception of the first request that has raised one."""
        answers = self._receive()
        for worker, answer in answers:
            if isinstance(answer, Failure):
                self._set_failed(worker)
                try:
                    raise answer.error
                finally:
                    del answer, answers  # breaks the reference cycle between this frame and the traceback
        return answers

    def _receive_one_each(self) -> list[Any]:
        """Wait for one answer of each worker; return the answers in the order of the workers."""
        found = self._collect(self._receive_results)
        return [found[worker] for worker in self._workers]

    def _collect(self, receive: Callable[[], Sequence[tuple[W, Any]]]) -> dict[W, Any]:
        """Receive until each worker has answered; return the answers."""
        found: dict[W, Any] = {}
        while len(found) < len(self._workers):
            self._progress.set_awaited(w for w in self._workers if w not in found)
            found.update(receive())
        self._progress.set_awaited(())
        return found

    def memory(self, size: int) -> Array | None:
        """Return None: any memory can be used."""
        return None

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Register the slots, and write the very first row into the first slot."""
        for rows in slots[0].turns:
            rows.rows[0].begin()
        self._request_attach(slots)
        self._receive_one_each()

    def release(self) -> None:
        """Do nothing: a worker begins a fragment with its step 0."""

    def step(self, turn: int, step: Step) -> list[int]:
        """Make a step of one turn; return which of its environments have ended their episode with it."""
        self.start_step(turn, step)
        return self.finish_step(turn)

    def start_step(self, turn: int, step: Step) -> None:
        """Start a step of one turn. Row ``t`` must be complete, and the actions must be in row ``t + 1``."""
        for worker, share in self._members[turn]:
            worker.progress.fragment = self._progress.fragment
            worker.start_step(share, step)
            self._n_unfinished[turn] += 1
            self._n_requests[worker] += 1
        self._progress.set_awaited(w for w, n in self._n_requests.items() if n)

    def finish_step(self, turn: int) -> list[int]:
        """Wait for the step of one turn; return which of its environments have ended their episode with it."""
        while self._n_unfinished[turn]:
            self._receive_steps()
        ended, self._ended[turn] = sorted(self._ended[turn]), []
        return ended

    def finish_all(self) -> None:
        """Wait for every step that has been started. :meth:`finish_step` is still to be called for each of them."""
        while any(self._n_unfinished):
            self._receive_steps()

    def _receive_steps(self) -> None:
        for worker, result in self._receive_results():
            group = worker.shares[result.share].group
            self._n_unfinished[group] -= 1
            self._n_requests[worker] -= 1
            self._ended[group] += result.ended
            self._episodes += [(result.t, episode) for episode in result.episodes]
        self._progress.set_awaited(w for w, n in self._n_requests.items() if n)

    def episodes(self) -> list[Episode]:
        """Return the episodes that ended since the last call, ordered by time and environment."""
        taken, self._episodes = self._episodes, []
        return in_order(taken)

    def save_state(self, *, whole: bool) -> list[dict[str, Any]]:
        """Return the state of each environment, or vector environment, and of its episodes, in order."""
        for worker in self._workers:
            worker.start_save(whole=whole)
        answers = self._receive_all()
        return [one for worker, k in self._in_order for one in answers[worker][k]]

    def load_state(self, saved: Sequence[dict[str, Any]]) -> None:
        """Put the environments and their episodes into states that :meth:`save_state` returned with ``whole``."""
        check_number(saved, sum(len(worker.shares[k].sources) for worker, k in self._in_order))
        left = iter(saved)
        parts: dict[W, list[list[dict[str, Any]]]] = {worker: [[] for _ in worker.shares] for worker in self._workers}
        for worker, k in self._in_order:
            parts[worker][k] = list(islice(left, len(worker.shares[k].sources)))
        for worker, part in parts.items():
            worker.start_load(part)
        self._receive_all()

    def _receive_all(self) -> dict[W, Any]:
        """Wait until each worker has answered one request; return their answers.

        If some requests have raised exceptions, raise that of the foremost environment, once all have been answered, so
        that the workers can go on.
        """
        found = self._collect(self._receive)
        failed = [worker for worker, answer in found.items() if isinstance(answer, Failure)]
        if failed:
            try:
                raise found[min(failed, key=lambda worker: worker.progress.env)].error
            finally:
                del found  # breaks the reference cycle between this frame and the traceback
        return found

    def kill(self) -> None:
        """Abandon the workers."""
        for worker in list(self._workers):
            worker.kill()

    def close(self) -> list[str]:
        """Close the environments in the workers and end the workers; kill processes that do not end in time."""
        deadline = monotonic() + self.close_timeout
        for worker in self._workers:
            worker.request_end()
        return [complaint for worker in self._workers for complaint in worker.close(deadline)]
