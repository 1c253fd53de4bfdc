"""From the ``envs`` argument of a rollout to environments: checked, made, seeded and reset."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ..concurrency.progress import Progress
from .dialects import is_factory, is_vector
from .environment_list import EnvironmentList
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .protocol import Environments
from .vector_environment import VectorEnvironment

__all__ = ["list_sources", "make_environments", "seeds_of"]


def make_environments(
    envs: Any, seed: int, entries: Entries, progress: Progress, *, final: bool = False, single_episode: bool = False
) -> Environments:
    """Make, reset and check environments: one vector environment, or a list of instances and factories.

    Parameters
    ----------
    envs : vector environment, or sequence
        As :func:`list_sources` accepts it.
    seed : int
        The seed of the feed, from which each environment's seed is derived.
    entries : Entries
        The info entries to record.
    progress : Progress
        Where the current activity is noted.
    final : bool
        Whether the true last observations will be needed. Not every vector environment has them.
    single_episode : bool
        Whether the environments of a list are not reset at the end of their episode. Ignored for a vector environment.
    """
    if is_vector(envs):
        return VectorEnvironment(envs, seeds_of(seed, int(envs.num_envs)), entries, progress, final=final)
    return EnvironmentList(envs, seeds_of(seed, len(envs)), entries, progress, single_episode=single_episode)


def list_sources(envs: Any) -> list[Any]:
    """Return ``envs`` as a list, a vector environment as a list of one; patch gym where it has been imported.

    Raises
    ------
    TypeError, ValueError
        There are no environments, they are not in a list, or an item is neither an environment nor a factory.
    """
    patch_gym()
    if is_vector(envs):
        return [envs]
    if isinstance(envs, str):
        raise TypeError(
            f"`envs` must be a list of environments or of factories, or a vector environment, got the name {envs!r}: "
            f"{_how_to_make(envs)}."
        )
    if hasattr(envs, "step") or callable(envs) or isinstance(envs, Mapping) or not isinstance(envs, Iterable):
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
            remedy = f"; for its name, {_how_to_make(source)}" if isinstance(source, str) else ""
            raise TypeError(f"`envs[{j}]` is neither an environment nor a factory: {source!r}{remedy}.")
    return sources


def _how_to_make(name: str) -> str:
    return f"write `[gym.make({name!r}) for _ in range(8)]`, or `[lambda: gym.make({name!r})] * 8` for factories"


def seeds_of(seed: int, n_envs: int, *, reseed: bool = True) -> list[int | None]:
    """Derive the seed of each environment ``j`` from child ``j`` of the seed sequence; None without ``reseed``.

    Seeds have 31 bits, since some simulators take no larger ones.
    """
    if not reseed:
        return [None] * n_envs
    children = np.random.SeedSequence(seed).spawn(n_envs)
    return [int(child.generate_state(1)[0]) >> 1 for child in children]
