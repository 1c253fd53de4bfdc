"""From the ``envs`` argument of a rollout to environments: checked, made, seeded and reset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress, vector_number
from .dialects import check_distinct, close_environments, is_factory, is_vector, make_environment
from .environment_list import EnvironmentList
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .protocol import Environments
from .vector_environment import VectorEnvironment

__all__ = ["list_sources", "make_environments", "make_turns", "seeds_of"]


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


def make_turns(
    sources: Sequence[Any],
    groups: Sequence[slice],
    seed: int,
    entries: Entries,
    progress: Progress,
    *,
    reseed: bool,
    final: bool,
    sticky: bool,
    first_env: int = 0,
    sharded: bool = False,
    make_list: Callable[..., Environments] = EnvironmentList,
) -> list[Environments]:
    """Make, reset and check the environments of each turn: those of a group, or a vector environment.

    Parameters
    ----------
    sources : sequence
        As :func:`list_sources` returns them.
    groups : sequence of slice
        The environments of each group, where these are single ones.
    seed : int
        The seed of the feed, from which each environment's seed is derived.
    reseed : bool
        Whether the environments are reset with seeds.
    final, sticky : bool
        As in ``rollout``.
    first_env : int
        The number of the first environment, among those of all shards.
    sharded : bool
        Whether there are several shards.
    make_list : callable
        Makes the environments of a group, with the arguments of :class:`EnvironmentList`.

    Raises
    ------
    TypeError, ValueError
        As the constructors of :class:`EnvironmentList` and :class:`VectorEnvironment`; a factory has made a vector
        environment although ``sticky`` asks for single ones, or although there are shards; several vector environments
        are to be several groups; or an environment is there twice.
    """
    made: list[Environments] = []
    sources, from_factories = list(sources), any(map(is_factory, sources))
    progress.doing, progress.env = "env.make", 0
    if is_factory(sources[0]):  # what it makes tells which kind of environments this feed has
        first = make_environment(sources[0], seeds_of(seed, 1, reseed=reseed, first=first_env)[0])
        sources[0] = partial(_same, first)
    else:
        first = sources[0]
    try:
        if is_vector(first):
            if from_factories:  # otherwise it is checked already
                check_vectors(len(sources), len(groups), sticky=sticky)
            if sharded and from_factories:
                raise ValueError(
                    "with `shard` the number of environments must be known before they are made: pass the vector "
                    "environments themselves instead of factories."
                )
            start = first_env
            for k, source in enumerate(sources):
                number = k if len(sources) > 1 else None
                made.append(make_vector(source, seed, entries, progress, start, number, reseed=reseed, final=final))
                start += made[-1].n_envs
        else:
            seeds = seeds_of(seed, len(sources), reseed=reseed, first=first_env)
            for group in groups:
                start = first_env + group.start
                made.append(make_list(sources[group], seeds[group], entries, progress, first=start))
        check_distinct([env for environments in made for env in environments.instances])
    except BaseException as error:
        for complaint in [complaint for environments in made for complaint in environments.close()]:
            add_note(error, complaint)
        raise
    return made


def make_vector(
    source: Any,
    seed: int,
    entries: Entries,
    progress: Progress,
    first: int,
    number: int | None,
    *,
    reseed: bool = True,
    final: bool = False,
) -> VectorEnvironment:
    """Reset a vector environment, after making it if ``source`` is a factory.

    Parameters
    ----------
    first : int
        The number of its first sub-environment in the feed.
    number : int or None
        Its place in a list of vector environments; None if it is not in a list.

    Raises
    ------
    TypeError, ValueError
        As the constructor of :class:`VectorEnvironment`; or the factory has made something else.
    """
    owned = is_factory(source)
    progress.doing, progress.env = "env.make", vector_number(number)
    env = make_environment(source, seeds_of(seed, 1, reseed=reseed, first=first)[0]) if owned else source
    try:
        if not is_vector(env):
            raise TypeError(f"`envs[{number}]` has made a single environment, and another one a vector environment.")
        seeds = seeds_of(seed, int(env.num_envs), reseed=reseed, first=first)
        return VectorEnvironment(env, seeds, entries, progress, final=final, first=first, number=number, owned=owned)
    except BaseException as error:
        for complaint in close_environments([env] if owned else []):
            add_note(error, complaint)
        raise


def check_vectors(n_vectors: int, n_groups: int, *, sticky: bool) -> None:
    """Check the options that are not for vector environments.

    Raises
    ------
    ValueError
        ``sticky`` needs single environments; in a list each vector environment is a group.
    """
    if sticky:
        raise ValueError("`sticky=True` needs environments that can stand still: pass a list instead of a vector.")
    if n_vectors > 1 and n_groups > 1:
        raise ValueError(
            f"`groups` must be 1 for a list of vector environments, got {n_groups}: each of them is a group. Pass more "
            "of them, with fewer parts each."
        )


def _same(env: Any) -> Any:
    return env


def list_sources(envs: Any) -> list[Any]:
    """Return ``envs`` as a list, a vector environment as a list of one; patch gym where it has been imported.

    Raises
    ------
    TypeError, ValueError
        There are no environments, they are not in a list, an item is neither an environment nor a factory, an instance
        is there twice, or there are single environments beside vector environments.
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
        if not is_factory(source) and not hasattr(source, "step"):
            remedy = f"; for its name, {_how_to_make(source)}" if isinstance(source, str) else ""
            raise TypeError(f"`envs[{j}]` is neither an environment nor a factory: {source!r}{remedy}.")
    check_distinct([source for source in sources if not is_factory(source)])
    check_all_vectors(sources)
    return sources


def check_all_vectors(envs: Sequence[Any]) -> None:
    """Check that all instances in a list are vector environments, or none; factories are passed over.

    Raises
    ------
    TypeError
        Some are, and some are not.
    """
    vector = [(j, is_vector(env)) for j, env in enumerate(envs) if not is_factory(env)]
    single = [j for j, is_one in vector if not is_one]
    if single and len(single) < len(vector):
        j = next(j for j, is_one in vector if is_one)
        raise TypeError(
            f"`envs[{j}]` is a vector environment and `envs[{single[0]}]` is a single one: pass a list of vector "
            "environments, each of which is a group, or a list of single ones."
        )


def _how_to_make(name: str) -> str:
    return f"write `[gym.make({name!r}) for _ in range(8)]`, or `[lambda: gym.make({name!r})] * 8` for factories"


def seeds_of(seed: int, n_envs: int, *, reseed: bool = True, first: int = 0) -> list[int | None]:
    """Derive the seed of each environment ``j`` from child ``j`` of the seed sequence; None without ``reseed``.

    The environments are those from number ``first`` on.

    Seeds have 31 bits, since some simulators take no larger ones.
    """
    if not reseed:
        return [None] * n_envs
    children = np.random.SeedSequence(seed).spawn(first + n_envs)[first:]
    return [int(child.generate_state(1)[0]) >> 1 for child in children]
