"""From the arguments of a ``rollout`` to a feed: everything that can be wrong is found here, at the call.

Also keeps the book of which environments serve which feed.
"""

from __future__ import annotations

import warnings
import weakref
from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, TypeAlias

import numpy as np
import torch

from .ambient import Ambient
from .behaviour import Behaviour
from .collect import Faces
from .core import BaseActorModule
from .driver import Background, Driver, Inline, noting
from .environment import Environments, is_factory, is_vector
from .feed import Feed
from .handoff import Gate
from .info import Entries
from .inspection import SLOW_RESET
from .mend import mend_gym
from .schedule import Collector, Plan
from .trace import Progress, note
from .transfer import Lane, lane_between
from .vector import VectorEnvironment

__all__ = ["Device", "Info", "at_least", "claim", "faces", "home_of", "listed", "open_feed", "seed_of"]

Device: TypeAlias = torch.device | str | Lane | None
Info: TypeAlias = Sequence[str] | Mapping[str, Any]

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
    background: Mapping[str, float] | None,
) -> Feed:
    """Check everything, reset the environments once, copy the actor, let it react once: and nothing more.

    ``background`` has the timeouts of a thread to collect in; None is for collecting in the caller's own.
    """
    at_least("n_steps", n_steps, 1)
    at_least("lag", lag, 0)
    at_least("groups", groups, 1)
    if compile:
        raise NotImplementedError("`compile=True` is not built yet: leave it out.")
    plan = Plan(n_steps, groups, seed_of(seed), sticky, final, Entries(info))
    sources = listed(envs)
    if sticky and is_vector(envs):
        raise ValueError("`sticky=True` needs environments that can stand still: pass a list instead of a vector.")
    lane = lane_between(device, actor_device, home_of(actor))
    with torch.inference_mode(False):  # what is made here will be written to
        behaviour = Behaviour(actor, lane)
        claim(sources, stacklevel=4)
        progress = Progress()
        make = partial(_collector, envs if is_vector(envs) else sources, behaviour, lane, plan, progress)
        driver: Driver
        driver = Inline(make, progress) if background is None else Background(make, progress, **background)
        try:
            with noting(progress):
                driver.collector.prepare(Ambient.here(lane.actor_device))
        except BaseException as error:
            for complaint in driver.stop():
                note(error, complaint)
            raise
    if not behaviour.resets_by_mask:
        warnings.warn(SLOW_RESET, RuntimeWarning, stacklevel=3)
    feed = Feed(driver, actor, lane, lag, progress)
    for source in sources:
        if not is_factory(source):
            _serving[id(source)] = feed
    return feed


def _collector(envs: Any, behaviour: Behaviour, lane: Lane, plan: Plan, progress: Progress, gate: Gate) -> Collector:
    return Collector(
        lambda: faces(envs, plan.seed, plan.entries, progress, final=plan.final), behaviour, lane, plan, progress, gate
    )


def faces(
    envs: Any, seed: int, entries: Entries, progress: Progress, *, final: bool = False, once: bool = False
) -> Faces:
    """Make, reset and check environments: one vector environment, or a list of instances and factories.

    ``final`` says whether the true last observations will be asked for: not every vector environment tells them. With
    ``once`` those of a list are not reset when an episode has ended: its last observation stays.
    """
    if is_vector(envs):
        return VectorEnvironment(envs, seeds_of(seed, int(envs.num_envs)), entries, progress, final=final)
    return Environments(envs, seeds_of(seed, len(envs)), entries, progress, once=once)


def listed(envs: Any) -> list[Any]:
    """List the environments (a vector environment is one), and mend gym for those that are there already.

    Raises
    ------
    TypeError, ValueError
        If there are none, or they are not in a list.
    """
    mend_gym()
    if is_vector(envs):
        return [envs]
    if hasattr(envs, "step") or callable(envs) or not isinstance(envs, Iterable):
        raise TypeError(
            f"`envs` must be a list of environments or of factories, or a vector environment, got {envs!r}; "
            "write `[env]` for a single one. (A vector environment has `num_envs` and `single_observation_space`.)"
        )
    sources = list(envs)
    if not sources:
        raise ValueError("`envs` is empty: at least one environment is needed.")
    for j, source in enumerate(sources):
        if is_vector(source):
            raise TypeError(f"`envs[{j}]` is a vector environment: pass it alone, not in a list.")
        if not is_factory(source) and not hasattr(source, "step"):
            raise TypeError(f"`envs[{j}]` is neither an environment nor a factory: {source!r}.")
    return sources


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


def at_least(name: str, value: Any, least: int) -> None:
    """See that an argument is an integer, and large enough."""
    if isinstance(value, bool) or not isinstance(value, int | np.integer):
        raise TypeError(f"`{name}` must be an integer, got {value!r}.")
    if value < least:
        raise ValueError(f"`{name}` must be at least {least}, got {value}.")


def seed_of(seed: int | None) -> int:
    """Check the seed; ``None`` draws one from torch's global generator, so that ``torch.manual_seed`` repeats runs."""
    if seed is None:
        return int(torch.randint(2**63 - 1, (), device="cpu"))
    at_least("seed", seed, 0)
    return int(seed)


def seeds_of(seed: int, n_envs: int) -> list[int]:
    """Derive each environment's seed from child ``j`` of the seed sequence; of 31 bits, for some simulators' sake."""
    children = np.random.SeedSequence(seed).spawn(n_envs)
    return [int(child.generate_state(1)[0]) >> 1 for child in children]


def home_of(actor: Any) -> torch.device:
    """Tell where an actor is: where its first parameter or buffer is, else the CPU."""
    tensors = [*actor.parameters(), *actor.buffers()] if isinstance(actor, torch.nn.Module) else []
    return tensors[0].device if tensors else torch.device("cpu")
