"""Collects in several processes, each of which contributes one part of every fragment."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_remote
from ..feed.feed import Feed
from ..feed.options import Device, Info, Options

__all__ = ["rollout"]


def rollout(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    n_steps: int = 51,
    n_actors: int = 8,
    n_per_actor: int = 2,
    *,
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
    """Collect fragments in ``n_actors`` processes of ``n_per_actor`` environments each.

    The parts of a fragment that the processes collect lie side by side, along the batch dimension. With equal ``lag``,
    ``seed`` and number of torch threads the fragments are, bit for bit, those of ``same`` with ``groups=n_actors``,
    unless the actor's step changes its own buffers or attributes (a counter, running statistics): each process has a
    copy of the actor, while the groups of ``same`` share one.

    Parameters
    ----------
    n_actors, n_per_actor : int
        The number of processes, and the number of environments in each: ``B = n_actors * n_per_actor``.
    n_per_batch : int, optional
        The number of parts that make up a fragment: the parts that finish first, so ``B = n_per_batch * n_per_actor``.
        By default all ``n_actors``. With fewer, the choice depends on timing, and ``seed`` does not determine the
        fragments. Each process continues its environments where its last part ended; the next part may come in a later
        fragment, and in other columns. ``feed.version`` is then a tuple, with the number of the snapshot of each part.
        The weights of a part that took as long as ``m`` fragments are at most
        ``lag + m + ceil(n_actors / n_per_batch)`` asks old at its delivery.
    factory, actor, n_steps, sticky, device, actor_device, lag, seed, reseed, shard, final, info, compile, threads
        As for :func:`rlplay.engine.rollout.single.rollout`.
    state : dict, optional
        As for :func:`rlplay.engine.rollout.threaded.rollout`. A state of another engine with ``groups=n_actors`` fits
        as well. With ``n_per_batch < n_actors`` only a state of ``multi`` or ``cluster`` with the same ``n_per_batch``
        fits. Then each process goes on where it was, but which parts make up a fragment still depends on timing.
    timeout, start_timeout : float
        As for :func:`rlplay.engine.rollout.threaded.rollout`.

    Returns
    -------
    Feed
        See :class:`rlplay.engine.feed.feed.Feed`. If a process dies, ``next()`` raises a RuntimeError that names the
        process and the signal.
    """
    options = Options(
        n_steps=n_steps, n_actors=n_actors, n_per_actor=n_per_actor,
        n_per_batch=n_actors if n_per_batch is None else n_per_batch, sticky=sticky, device=device,
        actor_device=actor_device, lag=lag, seed=seed, reseed=reseed, shard=shard, state=state, final=final, info=info,
        compile=compile, threads=threads, background=True, timeout=timeout, start_timeout=start_timeout,
    )  # fmt: skip
    return open_remote(factory, actor, options)
