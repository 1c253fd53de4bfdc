"""Collects on a Ray cluster: in several Ray actors, each of which contributes one part of every fragment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch

from ..cluster.cluster_collector import ClusterCollector
from ..cluster.connection import connect
from ..cluster.ray_collectors import RayCollectors
from ..core import BaseActorModule
from ..feed.build import open_remote
from ..feed.feed import Feed
from ..feed.options import Device, Info, Options, check_flags

__all__ = ["rollout"]


def rollout(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    n_steps: int = 51,
    n_actors: int = 8,
    n_per_actor: int = 2,
    *,
    restart: bool = False,
    ray_options: Mapping[str, Any] | None = None,
    n_per_batch: int | None = None,
    sticky: bool = False,
    device: Device = None,
    actor_device: torch.device | str | None = None,
    lag: int = 1,
    seed: int | None = None,
    reseed: bool = True,
    shard: tuple[int, int] | None = None,
    state: Mapping[str, Any] | None = None,
    final: bool = False,
    info: Info = (),
    compile: bool = False,
    threads: int = 1,
    timeout: float = 60.0,
    start_timeout: float = 300.0,
) -> Feed:
    """Collect fragments in ``n_actors`` Ray actors of ``n_per_actor`` environments each: ``multi`` on a cluster.

    With equal ``lag``, ``seed`` and number of torch threads the fragments are, bit for bit, those of ``multi``, and of
    ``same`` with ``groups=n_actors``. The weights of a snapshot are put into Ray's object store once, for all Ray
    actors; the parts of a fragment come back through the store, and are copied once, into the fragment.

    Ray (``pip install "rlplay[ray]"``) is imported by the call. It connects to the cluster that the program has called
    ``ray.init(address=...)`` for. Without such a call it does what ``ray.init()`` does: it connects to the cluster that
    ``RAY_ADDRESS`` names, or starts one on this machine. rlplay, and what factory and actor import, must be installed
    on each node, or be sent there by Ray's ``runtime_env``.

    Parameters
    ----------
    n_actors, n_per_actor : int
        The number of Ray actors, and the number of environments in each: ``B = n_actors * n_per_actor``.
    restart : bool
        What happens if a Ray actor or its node dies. False: ``next()`` raises a RuntimeError. True: the same collector
        is made in another Ray actor, and collects its part again, from the state that came back with its last one; so
        the fragments are those of a run in which nothing has died, and a RuntimeWarning tells of the death. The state
        of all environments then travels with each fragment. If three Ray actors in a row die of the same fragment,
        ``next()`` raises as without ``restart``; so it does if there is no place for the new Ray actor for ``timeout``
        seconds. Restarting does not bring back the learner's process.
    ray_options : mapping, optional
        The options of each Ray actor, which are handed to Ray's ``.options()`` as they are: placement and resources,
        such as ``{"num_cpus": 1, "scheduling_strategy": "SPREAD"}``, or ``{"num_gpus": 0.25}`` for an ``actor_device``.
        By default Ray places a Ray actor on a node with processors, and reserves none of them. Leave ``max_restarts``
        out: Ray would restart an actor without its environments.
    actor_device : torch.device, optional
        The device of the behaviour copies, on the nodes of the Ray actors; by default the CPU.
    factory, actor, n_steps, n_per_batch, sticky, device, lag, seed, reseed, shard, state, final, info, compile, threads
        As for :func:`rlplay.engine.rollout.multi.rollout`.
    timeout : float
        As for :func:`rlplay.engine.rollout.multi.rollout`; the collectors report their progress to the learner.
    start_timeout : float
        Seconds that Ray may take to find a place for the Ray actors and to start them, and that the environments may
        take to be made.

    Returns
    -------
    Feed
        See :class:`rlplay.engine.feed.feed.Feed`. Its ``trace`` has no tracks for the Ray actors, whose clocks are
        those of other machines. When it ends, the Ray actors end; Ray goes on.

    Raises
    ------
    ImportError
        Ray is not installed.
    TypeError
        ``restart`` is True and an environment cannot be saved; the message has the path to what cannot.
    """
    check_flags(restart=restart)
    options = Options(
        n_steps=n_steps, n_actors=n_actors, n_per_actor=n_per_actor,
        n_per_batch=n_actors if n_per_batch is None else n_per_batch, sticky=sticky, device=device,
        actor_device=actor_device, lag=lag, seed=seed, reseed=reseed, shard=shard, state=state, final=final, info=info,
        compile=compile, threads=threads, background=True, timeout=timeout, start_timeout=start_timeout,
    )  # fmt: skip
    start = partial(RayCollectors, ray=connect(), ray_options=dict(ray_options or {}), restart=restart)
    feed = open_remote(factory, actor, options, start, ClusterCollector, elsewhere=True)
    feed.close_first_at_exit()  # before Ray, which would kill the Ray actors
    return feed
