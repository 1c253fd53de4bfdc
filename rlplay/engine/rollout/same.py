"""Collecting in the caller's own thread: no overlap, and the executable specification of the other engines."""

from __future__ import annotations

from typing import Any

import torch

from ..core import BaseActorModule
from ..feed.build import open_feed
from ..feed.feed import Feed
from ..feed.options import Device, Info

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
    final: bool = False,
    info: Info = (),
    compile: bool = False,
) -> Feed:
    """Collect fragments of ``n_steps`` steps, each when it is asked for.

    See :func:`rlplay.engine.rollout.threaded.rollout` for the parameters: they are the same, but for those of the
    background thread. ``lag`` is 0 by default (strictly on-policy). With any ``lag`` and ``groups`` the fragments are,
    bit for bit, those of ``threaded`` with the same ``seed``.
    """
    return open_feed(
        envs, actor, n_steps=n_steps, sticky=sticky, device=device, actor_device=actor_device, lag=lag, groups=groups,
        seed=seed, final=final, info=info, compile=compile, background=None,
    )  # fmt: skip
