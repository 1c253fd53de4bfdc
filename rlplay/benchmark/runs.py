"""The learner that is measured: one A2C update per fragment, and as much work beside as it is to cost."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager, nullcontext
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from ..algo import a2c
from ..engine import Fragment
from ..engine.feed.feed import Feed
from ..engine.memory.lane import Lane
from ..engine.rollout import multi, same, single, threaded
from ..zoo.actors import ActorCritic
from .measure import Turn, count_for
from .spec import Engine
from .works import Work

__all__ = ["Learner", "Run", "Settings", "open_feed"]

_TRIALS, _PRODUCTS = 15, 16
"""How often it is tried how long so many matrix products last."""


class Learner:
    """Learns nothing, and takes its time for it.

    Parameters
    ----------
    actor : ActorCritic
        On the lane's device. It is never changed: the learning rate is 0.
    lane : Lane
        To wait for the device with.
    """

    def __init__(self, actor: ActorCritic, lane: Lane) -> None:
        self._actor, self._lane = actor, lane
        self._optim = torch.optim.RMSprop(actor.parameters(), lr=0.0)
        # a matrix product lets go of the interpreter lock, and takes a good part of a millisecond
        size = 256 if lane.device.type == "cpu" else 2048
        self._matrix = torch.eye(size, device=lane.device)
        self._product = torch.empty_like(self._matrix)
        self._products = 0

    def learn(self, fragment: Fragment) -> None:
        """Make one update, and do the work beside. On CUDA it is asked for, not waited for."""
        loss, _ = a2c.loss(fragment, self._actor, gamma=0.99, C=0.95)
        self._optim.zero_grad()
        loss.backward()
        self._optim.step()
        self._work(self._products)

    def burden(self, seconds: float) -> None:
        """Do work beside each update from now on, that lasts so long if nothing disturbs it.

        It is a fixed number of matrix products, found by trials: contention makes them last longer, not fewer.
        """
        trials = []
        for _ in range(_TRIALS):
            started = perf_counter()
            self._work(_PRODUCTS)
            self._lane.host_wait(self._lane.record())
            trials.append(perf_counter() - started)
        self._products = round(seconds * _PRODUCTS / median(trials))

    def _work(self, products: int) -> None:
        for _ in range(products):
            torch.mm(self._matrix, self._matrix, out=self._product)


_UNWATCHED = nullcontext()


class Settings(NamedTuple):
    """What holds for all that is measured in one run."""

    lane: Lane
    """Whose device is that of actor and learner."""
    threads: int
    """How many threads torch has in each process."""
    seconds: float
    """How long one window is to last, about."""
    learner_cost: float | str | None
    """Seconds beside the update; ``equal``: as many as collection takes longer than the update; None: no learner."""


class Run:
    """An engine, as one who takes turns with the others. Its feed is paused unless it is its turn.

    Attributes
    ----------
    collecting, training, both : list of Turn
        What has been measured; the latter two only with a learner.
    """

    def __init__(self, engine: Engine, work: Work, n_envs: int, n_steps: int, settings: Settings) -> None:
        """Open the feed.

        Raises
        ------
        NotImplementedError
            The engine lacks what is asked of it.
        """
        self._settings, self._lane = settings, settings.lane
        torch.manual_seed(0)
        actor = make_actor(work).to(self._lane.device)
        self._learner = None if settings.learner_cost is None else Learner(actor, self._lane)
        self.feed = open_feed(engine, work, actor, n_envs, n_steps, settings)
        self._stillness = ExitStack()
        self._counts = dict.fromkeys(("collecting", "training", "both"), 2)
        self.collecting, self.training, self.both = [list[Turn]() for _ in range(3)]
        self.latest: Fragment

    def warm_up(self) -> None:
        """Go through all windows, and settle how many fragments they have, and how much work the learner does."""
        counts, seconds = self._counts, self._settings.seconds
        self.collect()
        collection = self.collect()
        each = collection.seconds / collection.fragments
        counts["collecting"] = count_for(seconds, each)
        learner = self._learner
        if learner is None:
            return
        self._train(learner)
        training = self._train(learner)
        update = training.seconds / training.fragments
        cost = self._settings.learner_cost
        beside = max(0.0, each - update) if cost == "equal" else float(cost or 0.0)
        learner.burden(beside)
        counts["training"] = count_for(seconds, update + beside)
        counts["both"] = count_for(seconds, each + update + beside)
        self.collect_and_train()

    def turn(self) -> None:
        """Measure each window once."""
        self.collecting.append(self.collect())
        if self._learner is not None:
            self.training.append(self._train(self._learner))
            self.both.append(self.collect_and_train())

    def collect(self, watch: AbstractContextManager[Any] = _UNWATCHED) -> Turn:
        """Measure collection alone, inside ``with watch``."""
        return self._window(self._counts["collecting"], None, watch)

    def collect_and_train(self, watch: AbstractContextManager[Any] = _UNWATCHED) -> Turn:
        """Measure both, inside ``with watch``: each fragment is trained on, then the next one is asked for."""
        return self._window(self._counts["both"], self._learner, watch)

    def _window(self, count: int, learner: Learner | None, watch: AbstractContextManager[Any]) -> Turn:
        with self._awake():
            fragment = next(self.feed)  # the one that the pause has cut in two
            self._settle()
            with watch:
                return self._measure(fragment, count, learner)

    def _measure(self, fragment: Fragment, count: int, learner: Learner | None) -> Turn:
        before, steps, started = self.feed.stats.collector, self.feed.steps, perf_counter()
        for _ in range(count):
            if learner is not None:
                learner.learn(fragment)
            fragment = next(self.feed)
        self._settle()
        seconds = perf_counter() - started
        after = self.feed.stats.collector
        self.latest = fragment
        places = {place: now - then for place, then, now in zip(after._fields, before, after, strict=True)}
        return Turn(count, self.feed.steps - steps, seconds, places)

    def _train(self, learner: Learner) -> Turn:
        """Measure training alone, on the latest fragment, while the collector stands still."""
        count = self._counts["training"]
        self._settle()
        started = perf_counter()
        for _ in range(count):
            learner.learn(self.latest)
        self._settle()
        return Turn(count, 0, perf_counter() - started, {})

    def _settle(self) -> None:
        """Wait until the consumer's stream has done all that it was asked for."""
        self._lane.host_wait(self._lane.record())

    @contextmanager
    def _awake(self) -> Iterator[None]:
        """Let the collector go on inside the ``with`` block; after it, it stands still."""
        self._stillness.close()
        try:
            yield
        finally:
            self._stillness.enter_context(self.feed.pause())

    def close(self) -> None:
        """Close the feed."""
        self._stillness.close()
        self.feed.close()


def make_actor(work: Work) -> ActorCritic:
    """Make the actor of a work, for as many actions as its environments have."""
    env = work.make_env()
    actor = work.make_actor(int(env.action_space.n))
    env.close()
    return actor


def open_feed(engine: Engine, work: Work, actor: ActorCritic, n_envs: int, n_steps: int, settings: Settings) -> Feed:
    """Open the feed of an engine with its options.

    Raises
    ------
    NotImplementedError
        The engine lacks what is asked of it.
    """
    common: dict[str, Any] = {"device": settings.lane.device, "seed": 0, "compile": engine.compile}
    factories = [work.make_env] * n_envs
    if engine.name == "same":
        return same.rollout(factories, actor, n_steps, groups=engine.groups, **common)
    if engine.name == "threaded":
        workers, kind = (engine.threads, "thread") if engine.threads else (engine.workers, "process")
        return threaded.rollout(factories, actor, n_steps, groups=engine.groups, workers=workers, worker=kind, **common)
    common |= {"actor_device": settings.lane.device, "threads": settings.threads}
    if engine.name == "single":
        return single.rollout(work.make_env, actor, n_steps, n_envs, **common)
    return multi.rollout(work.make_env, actor, n_steps, engine.workers, n_envs // engine.workers, **common)
