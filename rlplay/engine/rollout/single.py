"""Collecting in one process of its own: on a CPU, the engine that truly overlaps with training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_remote
from ..feed.feed import Feed
from ..feed.options import Device, Info, at_least

__all__ = ["rollout"]


def rollout(
    factory: Callable[..., Any],
    actor: BaseActorModule,
    n_steps: int = 51,
    n_envs: int = 8,
    *,
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
    """Collect fragments of ``n_steps`` steps of ``n_envs`` environments in a process of its own.

    With the same ``lag`` and ``seed`` the fragments are, bit for bit, those of ``same``, provided that the number of
    torch threads is the same. The whole of the collection, the actor's copy included, is in the other process, so that
    it takes no turn of the interpreter lock.

    Parameters
    ----------
    factory : callable, optionally taking ``seed``
        Makes an environment; called ``n_envs`` times, in the process. It travels by value (cloudpickle), so it may be a
        lambda, or use what a notebook has defined.
    actor, n_steps, sticky, device, lag, seed, final, info, compile, timeout, start_timeout
        As for :func:`rlplay.engine.rollout.threaded.rollout`.
    actor_device : torch.device, optional
        Where the behaviour copy runs, in the process; by default the CPU.
    start_method : str, optional
        ``"spawn"`` or None: a fresh interpreter is all there is. The caller's script is not run again in it.
    threads : int
        How many threads torch has in the process.

    Returns
    -------
    Feed
        See :class:`rlplay.engine.feed.feed.Feed`. A process that dies raises RuntimeError, naming it and the signal.
    """
    at_least("n_envs", n_envs, 1)
    return open_remote(
        factory, actor, n_steps=n_steps, n_actors=1, n_per_actor=n_envs, n_per_batch=1, sticky=sticky, device=device,
        actor_device=actor_device, lag=lag, seed=seed, final=final, info=info, compile=compile,
        start_method=start_method, threads=threads, background={"timeout": timeout, "start_timeout": start_timeout},
    )  # fmt: skip
