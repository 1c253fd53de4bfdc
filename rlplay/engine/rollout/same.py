"""Collects in the caller's own thread, without overlap: the executable specification of the other engines."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_feed
from ..feed.feed import Feed
from ..feed.options import Device, Info, Options

__all__ = ["rollout"]


def rollout(
    envs: Any,
    actor: BaseActorModule,
    n_steps: int = 51,
    *,
    sticky: bool = False,
    device: Device = None,
    actor_device: torch.device | str | None = None,
    lag: int = 0,
    groups: int = 1,
    seed: int | None = None,
    reseed: bool = True,
    shard: tuple[int, int] | None = None,
    state: Mapping[str, Any] | None = None,
    final: bool = False,
    info: Info = (),
    compile: bool = False,
    autoreset: str | None = None,
) -> Feed:
    """Collect fragments of ``n_steps`` steps, each when it is asked for.

    The parameters are those of :func:`rlplay.engine.rollout.threaded.rollout`, without ``workers``, ``worker`` and the
    timeouts. ``lag`` is 0 by default (strictly on-policy). With equal ``lag``, ``groups`` and ``seed`` the fragments
    are, bit for bit, those of ``threaded``.
    """
    options = Options(
        n_steps=n_steps, sticky=sticky, device=device, actor_device=actor_device, lag=lag, groups=groups, seed=seed,
        reseed=reseed, shard=shard, state=state, final=final, info=info, compile=compile, autoreset=autoreset,
    )  # fmt: skip
    return open_feed(envs, actor, options)
