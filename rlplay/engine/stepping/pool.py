"""Environments in workers, which step while others are inferred: what is common to worker threads and processes.

A group of environments is a turn of its own, of which each worker has a share, so that it is woken once for each turn.
Neither torch nor what is collected.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from time import monotonic
from typing import Any, Generic, NamedTuple, TypeVar

from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress
from ..envs.info import Entries
from ..envs.rows import Array, Episode
from ..envs.spaces import equal_spaces
from .stepper import SlotViews, Step
from .worker import EnvironmentSpec, Share

__all__ = ["Made", "WorkerPool", "Worker", "shares"]

_PATIENCE = 3.0
"""Seconds for which closing waits for the environments to be closed: fewer than it is waited for itself."""


class Made(NamedTuple):
    """A step that a worker has made."""

    share: int
    t: int
    ended: list[int]
    """Whose episode ended with it."""
    episodes: list[Episode]


class Worker(ABC):
    """One worker, seen from the collector: it keeps some shares, and answers whatever it is asked."""

    def __init__(self, number: int, given: Sequence[Share], progress: Progress) -> None:
        self.number, self.shares, self.progress = number, list(given), progress
        self.name = f"worker {number} ({_named([share.columns for share in given])})"

    @abstractmethod
    def go(self, share: int, step: Step) -> None:
        """Wake it for a step. Its answer is :class:`Made`."""

    @abstractmethod
    def kill(self) -> None:
        """Give it up, and wake whoever waits for it. Safe in any thread."""

    @abstractmethod
    def dismiss(self) -> None:
        """Tell it to end."""

    @abstractmethod
    def close(self, deadline: float) -> list[str]:
        """Wait for its end, until a moment of ``monotonic()``; return what went wrong with it."""


W = TypeVar("W", bound=Worker)


class WorkerPool(ABC, Generic[W]):
    """A stepper of workers, whoever answers first being heard first.

    Attributes
    ----------
    obs, act, turns
        As those of any :class:`~rlplay.engine.stepping.stepper.Stepper`.
    """

    def __init__(
        self,
        given: Sequence[Sequence[Share]],
        entries: Entries,
        groups: Sequence[slice],
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
        self.n_envs, self._progress = groups[-1].stop, progress
        self.turns = [[g] for g in range(len(groups))]
        self._workers: list[W] = []
        self._episodes: list[tuple[int, Episode]] = []
        hurry.append(self.kill)
        try:
            progress.doing = "starting workers"
            for worker in self._started(given, entries):
                self._workers.append(worker)
            # for each turn, who steps which of his shares in it; and for each worker and share, in which turn that is
            self._ways = [
                [(w, k) for w in self._workers for k, share in enumerate(w.shares) if _inside(share.columns, group)]
                for group in groups
            ]
            self._turn_of = {(w.number, k): turn for turn, way in enumerate(self._ways) for w, k in way}
            self._busy = [0 for _ in groups]
            self._ended: list[list[int]] = [[] for _ in groups]
            self._under_way = dict.fromkeys(self._workers, 0)
            progress.parts = [(worker.name, worker.progress) for worker in self._workers]
            progress.doing = "env.make"
            self._look(self._all_answers())
        except BaseException as error:
            for complaint in self.close():
                add_note(error, complaint)
            raise

    @abstractmethod
    def _started(self, given: Sequence[Sequence[Share]], entries: Entries) -> Iterator[W]:
        """Start the workers, one after another; each answers the specs of its shares."""

    @abstractmethod
    def _ask_in(self, slots: Sequence[SlotViews]) -> None:
        """Ask all workers to get to know the slots, and to write the very first row of the first."""

    @abstractmethod
    def _answers(self) -> Sequence[tuple[W, Any]]:
        """Wait until there are answers, from whomever, and return them; raise what one has failed with.

        Whose failure it is, is told to :meth:`_blame` first.
        """

    def _blame(self, worker: W) -> None:
        self._progress.busy = [(worker.name, worker.progress)]

    def _all_answers(self) -> list[Any]:
        """Wait for one answer of each worker; return them in their order."""
        found: dict[W, Any] = {}
        while len(found) < len(self._workers):
            self._progress.busy = [(w.name, w.progress) for w in self._workers if w not in found]
            found.update(self._answers())
        self._progress.busy = ()
        return [found[worker] for worker in self._workers]

    def _look(self, answers: Sequence[list[EnvironmentSpec]]) -> None:
        specs = [environment_spec for answer in answers for environment_spec in answer]
        self._progress.doing = "checking the spaces"
        one = specs[0]
        for share, other in zip([s for w in self._workers for s in w.shares], specs, strict=True):
            for name, mine, theirs in zip(("observation_space", "action_space"), one.spaces, other.spaces, strict=True):
                if not equal_spaces(mine, theirs):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {share.columns.start} has the "
                        f"{name} {theirs}, environment 0 has {mine}."
                    )
        self.obs, self.act = one.obs, one.act

    def memory(self, size: int) -> Array | None:
        """Leave it to others: any memory will do."""
        return None

    def attach(self, slots: Sequence[SlotViews]) -> None:
        """Get to know the slots, and write the very first row of the first."""
        slots[0].rows[0].begin()
        self._ask_in(slots)
        self._all_answers()

    def release(self) -> None:
        """Do nothing: the first step of a fragment says so."""

    def start_step(self, turn: int, step: Step) -> None:
        """Set out to make a step."""
        for worker, share in self._ways[turn]:
            worker.progress.fragment = self._progress.fragment
            worker.go(share, step)
            self._busy[turn] += 1
            self._under_way[worker] += 1
        self._tell()

    def finish_step(self, turn: int) -> list[int]:
        """Wait until the step is made; return whose episode ended with it."""
        while self._busy[turn]:
            self._hear()
        ended, self._ended[turn] = sorted(self._ended[turn]), []
        return ended

    def finish_all(self) -> None:
        """Wait until all steps are made that anybody has set out to; they still arrive in their turns."""
        while any(self._busy):
            self._hear()

    def _hear(self) -> None:
        for worker, made in self._answers():
            turn = self._turn_of[worker.number, made.share]
            self._busy[turn] -= 1
            self._under_way[worker] -= 1
            self._ended[turn] += made.ended
            self._episodes += [(made.t, episode) for episode in made.episodes]
        self._tell()

    def _tell(self) -> None:
        self._progress.busy = [(w.name, w.progress) for w, n in self._under_way.items() if n]

    def episodes(self) -> list[Episode]:
        """Take the episodes that have ended since somebody last took them away, ordered by time and environment."""
        taken, self._episodes = self._episodes, []
        return [episode for _, episode in sorted(taken, key=lambda one: (one[0], one[1].env))]

    def kill(self) -> None:
        """Give the workers up."""
        for worker in list(self._workers):
            worker.kill()

    def close(self) -> list[str]:
        """Tell the workers to close their environments and to end; kill those that do not."""
        deadline = monotonic() + _PATIENCE
        for worker in self._workers:
            worker.dismiss()
        return [complaint for worker in self._workers for complaint in worker.close(deadline)]


def _inside(part: slice, whole: slice) -> bool:
    return bool(whole.start <= part.start < whole.stop)


def _named(parts: Sequence[slice]) -> str:
    """Name the environments of some parts."""
    spans = [f"{p.start}" if p.stop - p.start == 1 else f"{p.start} to {p.stop - 1}" for p in parts]
    single = len(parts) == 1 and parts[0].stop - parts[0].start == 1
    return f"environment{'' if single else 's'} {', '.join(spans)}"


def shares(sources: Sequence[Any], seeds: Sequence[int], groups: Sequence[slice], n_workers: int) -> list[list[Share]]:
    """Deal the environments out: for each worker its share of each group, so that all step each group together."""
    found: list[list[Share]] = [[] for _ in range(n_workers)]
    load = [0] * n_workers
    for group in groups:
        each, more = divmod(group.stop - group.start, n_workers)
        lightest = sorted(range(n_workers), key=load.__getitem__)[:more]
        start = group.start
        for worker, shares in enumerate(found):
            if n := each + (worker in lightest):
                part = slice(start, start + n)
                shares.append(Share(part, list(sources[part]), list(seeds[part])))
                load[worker], start = load[worker] + n, part.stop
    return found
