"""Collecting in many processes, one part of each fragment in each."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_remote
from ..feed.feed import Feed
from ..feed.options import Device, Info

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
    final: bool = False,
    info: Info = (),
    compile: bool = False,
    start_method: str | None = None,
    threads: int = 1,
    timeout: float = 60.0,
    start_timeout: float = 300.0,
) -> Feed:
    """Collect fragments in ``n_actors`` processes, of ``n_per_actor`` environments each; their parts side by side.

    With the same ``lag`` and ``seed`` the fragments are, bit for bit, those of ``same`` with ``groups=n_actors``,
    provided that the number of torch threads is the same.

    Parameters
    ----------
    n_actors, n_per_actor : int
        How many processes, and how many environments in each: ``B = n_actors * n_per_actor``.
    n_per_batch : int, optional
        Make a fragment of so many parts, those that finish first (``B = n_per_batch * n_per_actor``); by default of
        all. With fewer than ``n_actors`` it depends on timing which they are. Each part goes on where it stopped,
        perhaps in a later fragment and in other columns. ``feed.version`` is a tuple then, with the snapshot of each
        part: the weights of one that took as long as ``m`` fragments are at most
        ``lag + m + ceil(n_actors / n_per_batch)`` asks old when it comes.
    factory, actor, n_steps, sticky, device, actor_device, lag, seed, final, info, compile, start_method, threads
        As for :func:`rlplay.engine.rollout.single.rollout`.
    timeout, start_timeout : float
        As for :func:`rlplay.engine.rollout.threaded.rollout`.

    Returns
    -------
    Feed
        See :class:`rlplay.engine.feed.feed.Feed`. A process that dies raises RuntimeError, naming it and the signal.
    """
    return open_remote(
        factory, actor, n_steps=n_steps, n_actors=n_actors, n_per_actor=n_per_actor,
        n_per_batch=n_actors if n_per_batch is None else n_per_batch, sticky=sticky, device=device,
        actor_device=actor_device, lag=lag, seed=seed, final=final, info=info, compile=compile,
        start_method=start_method, threads=threads, background={"timeout": timeout, "start_timeout": start_timeout},
    )  # fmt: skip
