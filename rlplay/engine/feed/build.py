"""Builds a feed from the arguments of a ``rollout``: environments, behaviour copy, collector and driver.

Everything that can be wrong with the arguments is found here, before the call returns.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import torch

from ..acting.behaviour import Behaviour
from ..acting.group import split
from ..acting.make import make_behaviour
from ..acting.torch_context import TorchContext, TorchDefaults
from ..collector.collector import Collector
from ..collector.messages import Collecting, Plan
from ..collector.saving import resume
from ..concurrency.exceptions import closed_on_error
from ..concurrency.gate import Gate
from ..concurrency.progress import Progress
from ..core import BaseActorModule
from ..envs.dialects import is_vector, warn_of_lost_seed
from ..envs.environment_list import EnvironmentList
from ..envs.make import close_all, list_sources, make_turns, seeds_of
from ..envs.protocol import Environments
from ..envs.vectors.background import needs_thread
from ..memory.cuda import lane_between, parse_device
from ..memory.lane import Lane, Place
from ..remote.collector_process import CollectorSpec
from ..remote.elsewhere import Collectors
from ..remote.joined_collector import JoinedCollector
from ..remote.processes import CollectorProcesses
from ..remote.remote_collector import RemoteCollector
from ..stepping.inline import InlineStepper
from ..stepping.process_pool import ProcessPool
from ..stepping.shares import share_vectors, split_into_shares
from ..stepping.stepper import Stepper
from ..stepping.thread_pool import ThreadPool
from ..tensors.collector import TensorCollector
from ..tensors.environment import TensorEnvironment
from ..tensors.stepper import TensorStepper, in_torch_alone
from .background import Background
from .driver import Driver, Inline
from .feed import Feed
from .options import Options, home_of, plan_for, plan_for_processes
from .saved_stream import SavedStream, with_saved_seed
from .serving import close_older_feeds, register

__all__ = ["open_feed", "open_remote"]


def open_feed(
    envs: Any,
    actor: BaseActorModule,
    options: Options,
    *,
    make_list: Callable[..., Environments] = EnvironmentList,
) -> Feed:
    """Build a feed whose collector runs in this process.

    Checks the arguments, resets each environment once, copies the actor and makes one virtual step with the copy.
    Nothing is collected before the first ``next()``.

    Parameters
    ----------
    envs, actor
        As in :func:`rlplay.engine.rollout.threaded.rollout`.
    options : Options
        ``options.background`` chooses between the caller's thread and a background thread.
    make_list : callable
        Makes the environments of a list, if there are no workers. Takes the first four arguments of
        :class:`~rlplay.engine.envs.environment_list.EnvironmentList` and ``first``, and is called in the collector's
        thread.

    Raises
    ------
    TypeError, ValueError, TimeoutError
        As in :func:`rlplay.engine.rollout.threaded.rollout`.
    """
    sources, options, saved = list_sources(envs), with_saved_seed(options), options.state
    for source in sources if options.reseed else ():
        warn_of_lost_seed(source, stacklevel=4)
    plan = plan_for(options, sources)
    lane = lane_between(options.device, options.actor_device, home_of(actor))
    stream = SavedStream(options, plan, None if lane.shared(Place.ACTOR, Place.HOST) else lane.actor_device)
    with torch.inference_mode(False):  # the tensors made here are written to later
        in_place = not options.background and options.lag == 0 and not lane.asynchronous
        behaviour = make_behaviour(actor, lane, compile=options.compile, snapshot_in_place=in_place)
        close_older_feeds(sources, stacklevel=4)
        torch_context = stream.context(TorchContext.here(lane.actor_device, sets_dtype=not options.background))
        progress, defaults = Progress(), torch_context.defaults

        def make_collector(gate: Gate) -> Collecting:
            with lane.collecting():  # environments are made on the device and the stream that they are stepped on
                with defaults.for_environments():
                    stepper = _make_stepper(sources, options, plan, progress, make_list, gate, defaults)
                kind: Any = TensorCollector if isinstance(stepper, TensorStepper) else Collector
                collector = kind(stepper, behaviour, lane, plan, progress, gate, defaults)
                prepare = collector.prepare if saved is None else partial(resume, collector, saved)
                return _prepare(collector, partial(prepare, torch_context))

        lane.host_wait(lane.record())  # edge: called -> made
        driver = _make_driver(make_collector, progress, options)
    feed = _feed_of(driver, actor, lane, options.lag, progress, stream)
    register(sources, feed)
    return feed


def open_remote(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    options: Options,
    start: Callable[[Sequence[CollectorSpec], Progress, Gate], Collectors[Any]] = CollectorProcesses,
    kind: type[JoinedCollector[Any]] = RemoteCollector,
    *,
    elsewhere: bool = False,
) -> Feed:
    """Build a feed whose collectors run in processes of their own: one process for each group of environments.

    Otherwise like :func:`open_feed`.

    Parameters
    ----------
    start : callable
        Starts the processes.
    kind : type
        The class that presents the processes as one collector.
    elsewhere : bool
        Whether the processes may run on other machines, which may have devices that this one lacks.
    """
    options, saved = with_saved_seed(options), options.state
    plan = plan_for_processes(options, factory)
    device = options.device
    lane = lane_between(device, None if isinstance(device, Lane) else "cpu", home_of(actor))
    named = "cpu" if options.actor_device is None else options.actor_device
    actor_device = parse_device(named, "actor_device", elsewhere=elsewhere)
    stream = SavedStream(options, plan, None if actor_device.type == "cpu" else actor_device)
    with torch.inference_mode(False):  # the tensors made here are written to later
        behaviour = Behaviour(actor, lane)
        progress, torch_context = Progress(), stream.context(TorchContext.here(actor_device, switches=True))
        specs = _collector_specs(factory, behaviour.to_send, actor_device, torch_context.defaults, plan, options)

        def make_collector(gate: Gate) -> Collecting:
            started = start(specs, progress, gate)
            n_taken, n_envs_each = options.n_per_batch, options.n_per_actor
            collector = kind(started, n_taken, n_envs_each, behaviour, lane, plan, progress, gate)
            prepare = collector.prepare if saved is None else partial(collector.resume, saved)
            return _prepare(collector, partial(prepare, torch_context))

        driver = _make_driver(make_collector, progress, options)
    return _feed_of(driver, actor, lane, options.lag, progress, stream)


def _make_stepper(
    sources: Sequence[Any],
    options: Options,
    plan: Plan,
    progress: Progress,
    make_list: Callable[..., Environments],
    gate: Gate,
    defaults: TorchDefaults,
) -> Stepper | TensorStepper:
    """Make and reset the environments, and make the stepper of the kind that the options name.

    Called in the collector's thread, since environments may be bound to the thread that makes them.
    """
    groups, entries = plan.groups, plan.entries
    are_vectors = len(sources) > 1 and all(map(is_vector, sources))
    in_threads = options.background and are_vectors and any(map(needs_thread, sources))
    if in_threads or not options.workers:
        turns = make_turns(
            sources, groups, plan.seed, entries, progress,
            reseed=options.reseed, final=plan.final, sticky=plan.sticky, first_env=plan.first_env,
            sharded=options.shard is not None, autoreset=options.autoreset, make_list=make_list,
            make_tensors=TensorEnvironment,
        )  # fmt: skip
        with closed_on_error(partial(close_all, turns)):
            in_torch = in_torch_alone(turns)
            if in_torch:
                return TensorStepper(in_torch, groups, plan.first_env)
            if in_threads:
                shares = share_vectors(turns, plan.first_env)  # type: ignore[arg-type]  # they are vector environments
                return ThreadPool(shares, entries, groups, progress, gate, defaults.for_environments)
            return InlineStepper(turns, groups, plan.first_env)
    seeds = seeds_of(plan.seed, groups[-1].stop, reseed=options.reseed, first=plan.first_env)
    shares_by_worker = split_into_shares(sources, seeds, groups, options.workers, plan.first_env)
    if options.worker == "thread":
        return ThreadPool(shares_by_worker, entries, groups, progress, gate, defaults.for_environments)
    set_up = None if defaults.are_initial else defaults.set  # else the workers would load torch for nothing
    return ProcessPool(shares_by_worker, entries, groups, progress, gate, set_up)


def _collector_specs(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    actor_device: torch.device,
    defaults: TorchDefaults,
    plan: Plan,
    options: Options,
) -> list[CollectorSpec]:
    """Make the spec of each collector process. Environments and groups are numbered over all processes and shards."""
    n_envs, first = options.n_actors * options.n_per_actor, plan.first_env
    seeds = seeds_of(plan.seed, n_envs, reseed=options.reseed, first=first)
    return [
        CollectorSpec(
            sources=[factory] * options.n_per_actor,
            seeds=seeds[columns],
            columns=slice(first + columns.start, first + columns.stop),
            actor=actor,
            actor_device=str(actor_device),
            defaults=defaults,
            plan=plan._replace(first_group=plan.first_group + number),
            threads=options.threads,
            compile=options.compile,
        )
        for number, columns in enumerate(split(n_envs, options.n_actors))
    ]


def _prepare(collector: Collecting, prepare: Callable[[], None]) -> Collecting:
    """Prepare a collector for its first token, and return it; close it if that fails."""
    with closed_on_error(collector.close):
        prepare()
    return collector


def _make_driver(make_collector: Callable[[Gate], Collecting], progress: Progress, options: Options) -> Driver:
    if options.background:
        return Background(make_collector, progress, timeout=options.timeout, start_timeout=options.start_timeout)
    return Inline(make_collector, progress)


def _feed_of(
    driver: Driver, actor: BaseActorModule, lane: Lane, lag: int, progress: Progress, stream: SavedStream
) -> Feed:
    """Make the feed of a driver, and warn, at the user's line, of what makes the steps of the actor slow.

    If a warning is an error, as the user's filters may have it, the driver is stopped before the error is raised.
    """
    with closed_on_error(driver.stop):
        for warning in driver.collector.warnings:
            warnings.warn(warning, RuntimeWarning, stacklevel=4)
        return Feed(driver, actor, lane, lag, progress, stream)
