"""Collects in one process of its own. On a CPU, collection then overlaps fully with training."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_remote
from ..feed.feed import Feed
from ..feed.options import Device, Info, Options, at_least

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
    """Collect fragments of ``n_steps`` steps of ``n_envs`` environments in a process of its own.

    With equal ``lag``, ``seed`` and number of torch threads the fragments are, bit for bit, those of ``same``.
    Environments and behaviour copy are both in the other process, so that collection never holds the interpreter lock
    of the learner's process (a free-threaded Python has none). That process is a fresh interpreter, in which the
    caller's script is not run again.

    Parameters
    ----------
    factory : callable, optionally taking ``seed``
        Makes an environment; called ``n_envs`` times, in the other process. It is sent by value (cloudpickle), so it
        may be a lambda, or use names defined in a notebook.
    actor, n_steps, sticky, device, lag, seed, reseed, shard, state, final, info, compile, timeout, start_timeout
        As for :func:`rlplay.engine.rollout.threaded.rollout`.
    actor_device : torch.device, optional
        The device of the behaviour copy in the other process; by default the CPU.
    threads : int
        The number of threads that torch uses in the process.

    Returns
    -------
    Feed
        See :class:`rlplay.engine.feed.feed.Feed`. If the process dies, ``next()`` raises a RuntimeError that names the
        process and the signal.
    """
    at_least("n_envs", n_envs, 1)
    options = Options(
        n_steps=n_steps, n_per_actor=n_envs, sticky=sticky, device=device, actor_device=actor_device, lag=lag,
        seed=seed, reseed=reseed, shard=shard, state=state, final=final, info=info, compile=compile, threads=threads,
        background=True, timeout=timeout, start_timeout=start_timeout,
    )  # fmt: skip
    return open_remote(factory, actor, options)
