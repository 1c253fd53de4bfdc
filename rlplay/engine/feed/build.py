"""From the arguments of a ``rollout`` to a feed: everything that can be wrong is found here, at the call.

Also keeps the book of which environments serve which feed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import torch

from ..acting.behaviour import Behaviour
from ..acting.group import split
from ..acting.make import make_behaviour
from ..acting.torch_context import TorchContext
from ..collector.collector import Collector
from ..collector.messages import Collecting, Plan
from ..concurrency.exceptions import add_note
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import BaseActorModule
from ..envs.dialects import is_factory, is_vector
from ..envs.environment_list import EnvironmentList
from ..envs.info import Entries
from ..envs.make import list_sources, seeds_of
from ..envs.protocol import Environments
from ..envs.vector_environment import VectorEnvironment
from ..memory.cuda import lane_between, parse_device
from ..memory.lane import Lane
from ..remote.collector_process import CollectorSpec
from ..remote.remote_collector import RemoteCollector
from ..stepping.inline import InlineStepper
from ..stepping.process_pool import ProcessPool
from ..stepping.shares import split_into_shares
from ..stepping.stepper import Stepper
from ..stepping.thread_pool import ThreadPool
from .background import Background
from .driver import Driver, Inline
from .feed import Feed
from .options import Device, Info, at_least, home_of, seed_of

__all__ = ["claim", "open_feed", "open_remote"]

_serving: weakref.WeakValueDictionary[int, Feed] = weakref.WeakValueDictionary()
"""The feed that an environment serves, by the environment's id (which stays its own while the feed holds it)."""


def open_feed(
    envs: Any,
    actor: BaseActorModule,
    *,
    n_steps: int,
    sticky: bool,
    device: Device,
    actor_device: torch.device | str | None,
    lag: int,
    groups: int,
    seed: int | None,
    final: bool,
    info: Info,
    compile: bool,
    workers: int = 0,
    worker: str = "process",
    environments: Callable[..., Environments] = EnvironmentList,
    background: Mapping[str, float] | None,
) -> Feed:
    """Check everything, reset the environments once, copy the actor, let it react once: and nothing more.

    ``environments`` makes those of a list, in the collector's own thread. ``background`` has the timeouts of a thread
    to collect in; None is for collecting in the caller's own.
    """
    at_least("n_steps", n_steps, 1)
    at_least("lag", lag, 0)
    at_least("groups", groups, 1)
    sources = list_sources(envs)
    n_envs = int(envs.num_envs) if is_vector(envs) else len(sources)
    if groups > n_envs:
        raise ValueError(f"`groups` must be at most the number of environments, {n_envs}, got {groups}.")
    _check_workers(workers, worker, envs, sources)
    plan = Plan(n_steps, split(n_envs, groups), seed_of(seed), sticky, final, Entries(info))
    if sticky and is_vector(envs):
        raise ValueError("`sticky=True` needs environments that can stand still: pass a list instead of a vector.")
    lane = lane_between(device, actor_device, home_of(actor))
    with torch.inference_mode(False):  # what is made here will be written to
        behaviour = make_behaviour(
            actor,
            lane,
            compile=compile,
            snapshot_in_place=background is None and lag == 0 and not lane.asynchronous,
        )
        claim(sources, stacklevel=4)
        progress = Progress()
        stage: Callable[[Gate], Stepper]
        if is_vector(envs):
            stage = partial(_alone, partial(VectorEnvironment, envs, final=final), n_envs, plan, progress)
        elif workers:
            stage = partial(_team, sources, workers, worker, plan, progress)
        else:
            stage = partial(_alone, partial(environments, sources), n_envs, plan, progress)
        collector = partial(_collector, stage, behaviour, lane, plan, progress)
        make = partial(_prepared, collector, TorchContext.here(lane.actor_device))
        driver: Driver
        driver = Inline(make, progress) if background is None else Background(make, progress, **background)
    _warn(driver.collector)
    feed = Feed(driver, actor, lane, lag, progress)
    for source in sources:
        if not is_factory(source):
            _serving[id(source)] = feed
    return feed


def open_remote(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    *,
    n_steps: int,
    n_actors: int,
    n_per_actor: int,
    n_per_batch: int,
    sticky: bool,
    device: Device,
    actor_device: torch.device | str | None,
    lag: int,
    seed: int | None,
    final: bool,
    info: Info,
    compile: bool,
    start_method: str | None,
    threads: int,
    background: Mapping[str, float],
) -> Feed:
    """Do what :func:`open_feed` does, for collectors in processes of their own, one for each group."""
    for name, value, least in (
        ("n_steps", n_steps, 1),
        ("n_actors", n_actors, 1),
        ("n_per_actor", n_per_actor, 1),
        ("n_per_batch", n_per_batch, 1),
        ("lag", lag, 0),
        ("threads", threads, 1),
    ):
        at_least(name, value, least)
    if n_per_batch > n_actors:
        raise ValueError(f"`n_per_batch` must be at most `n_actors`, {n_actors}, got {n_per_batch}.")
    if start_method not in (None, "spawn"):
        raise ValueError(
            f"`start_method` must be 'spawn' or None, got {start_method!r}: processes are fresh interpreters, since a "
            f"fork would copy threads, locks and CUDA halfway. (The caller's script is not run again in them.)"
        )
    if not is_factory(factory):
        raise TypeError(f"`factory` must be a callable that makes an environment, got {factory!r}.")
    seed, entries = seed_of(seed), Entries(info)
    lane = lane_between(device, None if isinstance(device, Lane) else "cpu", home_of(actor))
    there = parse_device("cpu" if actor_device is None else actor_device, "actor_device")
    with torch.inference_mode(False):  # what is made here will be written to
        behaviour = Behaviour(actor, lane)
        seeds = seeds_of(seed, n_actors * n_per_actor)
        specs = []
        for number, columns in enumerate(split(n_actors * n_per_actor, n_actors)):
            plan = Plan(n_steps, [slice(0, n_per_actor)], seed, sticky, final, entries, first=number)
            sources = [factory] * n_per_actor
            specs.append(
                CollectorSpec(sources, seeds[columns], columns, behaviour.module, str(there), plan, threads, compile)
            )
        progress = Progress()
        collector = partial(RemoteCollector, specs, n_per_batch, behaviour, lane, plan, progress)
        driver = Background(partial(_prepared, collector, TorchContext.here(there)), progress, **background)
    _warn(driver.collector)
    return Feed(driver, actor, lane, lag, progress)


def _warn(collector: Collecting) -> None:
    """Say at the user's line what the actor makes slower than it need be."""
    for warning in collector.warnings:
        warnings.warn(warning, RuntimeWarning, stacklevel=4)


def _check_workers(workers: int, worker: str, envs: Any, sources: Sequence[Any]) -> None:
    """See that there can be so many workers of this kind.

    Raises
    ------
    TypeError, ValueError
        If not.
    """
    at_least("workers", workers, 0)
    if worker not in ("process", "thread"):
        raise ValueError(f"`worker` must be 'process' or 'thread', got {worker!r}.")
    if workers and is_vector(envs):
        raise ValueError("`workers` are for a list of environments: a vector environment steps its parts by itself.")
    if workers > len(sources):
        raise ValueError(f"`workers` must be at most the number of environments, {len(sources)}, got {workers}.")
    instances = [j for j, source in enumerate(sources) if not is_factory(source)]
    if workers and worker == "process" and instances:
        raise TypeError(
            f"worker processes make their own environments: `envs[{instances[0]}]` is an instance; pass factories "
            "instead, such as `[lambda: gym.make(name)] * n`, or use `worker='thread'`."
        )


def _prepared(make: Callable[[Gate], Collecting], torch_context: TorchContext, gate: Gate) -> Collecting:
    collector = make(gate)
    try:
        collector.prepare(torch_context)
    except BaseException as error:
        for complaint in collector.close():
            add_note(error, complaint)
        raise
    return collector


def _collector(
    stage: Callable[[Gate], Stepper], behaviour: Behaviour, lane: Lane, plan: Plan, progress: Progress, gate: Gate
) -> Collector:
    return Collector(partial(stage, gate), behaviour, lane, plan, progress, gate)


def _alone(make: Callable[..., Environments], n_envs: int, plan: Plan, progress: Progress, gate: Gate) -> Stepper:
    return InlineStepper(make(seeds_of(plan.seed, n_envs), plan.entries, progress), plan.groups)


def _team(sources: Sequence[Any], workers: int, worker: str, plan: Plan, progress: Progress, gate: Gate) -> Stepper:
    dealt = split_into_shares(sources, seeds_of(plan.seed, len(sources)), plan.groups, workers)
    if worker == "thread":
        return ThreadPool(dealt, plan.entries, plan.groups, progress, gate)
    return ProcessPool(dealt, plan.entries, plan.groups, progress, gate)


def claim(sources: Iterable[Any], *, stacklevel: int) -> None:
    """Close, with a warning at the user's line, the open feeds that any of these environments still serve."""
    for j, source in enumerate(sources):
        older = _serving.pop(id(source), None)
        if older is not None and older.open:
            older.close()
            warnings.warn(
                f"environment {j} still served an open feed, which is closed now: an environment serves one feed.",
                RuntimeWarning,
                stacklevel=stacklevel,
            )
