"""The cases of the benchmark that run an engine: its feed, and a learner that makes one A2C update per fragment."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, nullcontext
from functools import partial
from statistics import median
from time import perf_counter
from typing import Any, NamedTuple

import torch

from ..algo import a2c
from ..contexts import contextmanager
from ..engine import Fragment
from ..engine.acting.group import split
from ..engine.feed.feed import Feed
from ..engine.memory.lane import Lane
from ..engine.rollout import multi, same, single, threaded
from ..zoo.actors import ActorCritic
from .measure import Measurement, fragments_per_window
from .spec import Engine
from .works import Work

__all__ = ["EngineRun", "Learner", "Settings", "make_actor", "open_feed"]

_N_TRIALS = 15
"""Number of trials whose median gives the time of a matrix product."""

_PRODUCTS_PER_TRIAL = 16

_NO_PROFILER = nullcontext()


class Settings(NamedTuple):
    """Settings that hold for all windows of one run of the benchmark."""

    lane: Lane
    """The actor and the learner are on the lane's device."""
    threads: int
    """Number of torch threads in each process."""
    window_seconds: float
    """Approximate duration of one window."""
    learner_cost: float | str | None
    """Seconds of additional work in each update. ``equal``: as many seconds as make training take as long as
    collection. None: there is no learner."""


class Learner:
    """A learner that does all the work of A2C, but does not change the actor, since the learning rate is 0.

    Parameters
    ----------
    actor : ActorCritic
        The actor, on the lane's device.
    lane : Lane
        Used to wait for the device.
    """

    def __init__(self, actor: ActorCritic, lane: Lane) -> None:
        self._actor, self._lane = actor, lane
        self._optim = torch.optim.RMSprop(actor.parameters(), lr=0.0)
        # a product of this size releases the interpreter lock, and takes a considerable part of a millisecond
        size = 256 if lane.device.type == "cpu" else 2048
        self._matrix = torch.eye(size, device=lane.device)
        self._product = torch.empty_like(self._matrix)
        self._n_products = 0

    def learn(self, fragment: Fragment) -> None:
        """Make one update and the additional work. On CUDA the kernels are launched, and the host does not wait."""
        loss, _ = a2c.loss(fragment, self._actor, gamma=0.99, C=0.95)
        self._optim.zero_grad()
        loss.backward()
        self._optim.step()
        self._multiply(self._n_products)

    def set_extra_cost(self, seconds: float) -> None:
        """Set the additional work of each later update, so that it takes ``seconds`` on an idle machine.

        The work is a number of matrix products, which is found by trials and then fixed. So on a busy machine the same
        work takes longer.
        """
        trials = []
        for _ in range(_N_TRIALS):
            started = perf_counter()
            self._multiply(_PRODUCTS_PER_TRIAL)
            self._lane.host_wait(self._lane.record())
            trials.append(perf_counter() - started)
        self._n_products = round(seconds * _PRODUCTS_PER_TRIAL / median(trials))

    def _multiply(self, n_products: int) -> None:
        for _ in range(n_products):
            torch.mm(self._matrix, self._matrix, out=self._product)


class EngineRun:
    """A case of the benchmark: the feed of one engine, and a learner. Between windows the feed is paused.

    There are three windows: collection alone, training alone, and both.

    Attributes
    ----------
    collection, training, both : list of Measurement
        One for each call of :meth:`measure`. Without a learner ``training`` and ``both`` stay empty.
    latest : Fragment or None
        The last fragment received in a window; None before the first window.
    """

    def __init__(self, engine: Engine, work: Work, n_envs: int, n_steps: int, settings: Settings) -> None:
        """Open the feed.

        Raises
        ------
        NotImplementedError
            The engine does not support one of its options.
        """
        self._settings, self._lane = settings, settings.lane
        torch.manual_seed(0)
        actor = make_actor(work).to(self._lane.device)
        self._learner = None if settings.learner_cost is None else Learner(actor, self._lane)
        self.feed = open_feed(engine, work, actor, n_envs, n_steps, settings)
        self._pause = ExitStack()
        self._n_fragments = dict.fromkeys(("collection", "training", "both"), 2)
        self.collection, self.training, self.both = [list[Measurement]() for _ in range(3)]
        self.latest: Fragment | None = None

    def warm_up(self) -> None:
        """Run each window, and choose the number of fragments in each window and the learner's additional work."""
        n_fragments, window_seconds = self._n_fragments, self._settings.window_seconds
        self.measure_collection()
        collection = self.measure_collection()
        collection_seconds = collection.seconds / collection.fragments
        n_fragments["collection"] = fragments_per_window(window_seconds, collection_seconds)
        learner = self._learner
        if learner is None:
            return
        self._measure_training(learner)
        training = self._measure_training(learner)
        update_seconds = training.seconds / training.fragments
        cost = self._settings.learner_cost
        extra_seconds = max(0.0, collection_seconds - update_seconds) if cost == "equal" else float(cost or 0.0)
        learner.set_extra_cost(extra_seconds)
        training_seconds = update_seconds + extra_seconds
        n_fragments["training"] = fragments_per_window(window_seconds, training_seconds)
        n_fragments["both"] = fragments_per_window(window_seconds, collection_seconds + training_seconds)
        self.measure_both()

    def measure(self) -> None:
        """Run each window once, and store its measurement."""
        self.collection.append(self.measure_collection())
        if self._learner is not None:
            self.training.append(self._measure_training(self._learner))
            self.both.append(self.measure_both())

    def measure_collection(self, profiler: AbstractContextManager[Any] = _NO_PROFILER) -> Measurement:
        """Run the window of collection alone, inside ``with profiler``."""
        return self._measure_window(self._n_fragments["collection"], None, profiler)

    def measure_both(self, profiler: AbstractContextManager[Any] = _NO_PROFILER) -> Measurement:
        """Run the window of collection and training, inside ``with profiler``.

        The learner trains on each fragment before the next fragment is requested.
        """
        return self._measure_window(self._n_fragments["both"], self._learner, profiler)

    def _measure_window(
        self, n_fragments: int, learner: Learner | None, profiler: AbstractContextManager[Any]
    ) -> Measurement:
        """Resume the feed, and run a window that collects."""
        with self._resumed():
            fragment = next(self.feed)  # not measured, since the pause interrupted the collection of this fragment
            self._synchronize()
            with profiler:
                return self._receive(fragment, n_fragments, learner)

    def _receive(self, fragment: Fragment, n_fragments: int, learner: Learner | None) -> Measurement:
        """Receive ``n_fragments`` fragments, and train on each if there is a learner; return the measurement."""
        time_before, steps_before, started = self.feed.stats.collector, self.feed.steps, perf_counter()
        for _ in range(n_fragments):
            if learner is not None:
                learner.learn(fragment)
            fragment = next(self.feed)
        self._synchronize()
        seconds = perf_counter() - started
        time_after = self.feed.stats.collector
        self.latest = fragment
        activities = zip(time_after._fields, time_before, time_after, strict=True)
        collector_seconds = {activity: end - start for activity, start, end in activities}
        return Measurement(n_fragments, self.feed.steps - steps_before, seconds, collector_seconds)

    def _measure_training(self, learner: Learner) -> Measurement:
        """Run the window of training alone, on the latest fragment, while the feed is paused."""
        fragment, n_fragments = self.latest, self._n_fragments["training"]
        if fragment is None:
            raise RuntimeError("training alone needs a fragment: measure collection first.")
        self._synchronize()
        started = perf_counter()
        for _ in range(n_fragments):
            learner.learn(fragment)
        self._synchronize()
        return Measurement(n_fragments, 0, perf_counter() - started, {})

    def _synchronize(self) -> None:
        """Wait until the consumer's stream has finished all its work."""
        self._lane.host_wait(self._lane.record())

    @contextmanager
    def _resumed(self) -> Iterator[None]:
        """Resume the feed inside the ``with`` block, and pause it at the end of the block."""
        self._pause.close()
        try:
            yield
        finally:
            self._pause.enter_context(self.feed.pause())

    def close(self) -> None:
        """Close the feed."""
        self._pause.close()
        self.feed.close()


def make_actor(work: Work) -> ActorCritic:
    """Make the actor of a work, with as many actions as the work's environments have."""
    env = work.make_env(1) if work.vector else work.make_env()
    actor = work.make_actor(int((env.single_action_space if work.vector else env.action_space).n))
    env.close()
    return actor


def open_feed(engine: Engine, work: Work, actor: ActorCritic, n_envs: int, n_steps: int, settings: Settings) -> Feed:
    """Open the feed of an engine with its options.

    Raises
    ------
    NotImplementedError
        The engine does not support one of its options.
    """
    common: dict[str, Any] = {"device": settings.lane.device, "seed": 0, "compile": engine.compile}
    factories = [work.make_env] * n_envs
    if work.vector:
        widths = [part.stop - part.start for part in split(n_envs, engine.groups)]
        factories, engine = [partial(work.make_env, width) for width in widths], engine._replace(groups=1)
    if engine.name == "same":
        return same.rollout(factories, actor, n_steps, groups=engine.groups, **common)
    if engine.name == "threaded":
        workers, kind = (engine.threads, "thread") if engine.threads else (engine.workers, "process")
        return threaded.rollout(factories, actor, n_steps, groups=engine.groups, workers=workers, worker=kind, **common)
    common |= {"actor_device": settings.lane.device, "threads": settings.threads}
    if engine.name == "single":
        return single.rollout(work.make_env, actor, n_steps, n_envs, **common)
    return multi.rollout(work.make_env, actor, n_steps, engine.workers, n_envs // engine.workers, **common)
