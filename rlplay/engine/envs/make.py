"""From the ``envs`` argument of a rollout to environments: checked, made, seeded and reset."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from ..concurrency.exceptions import closed_on_error
from ..concurrency.progress import Progress, vector_number
from .autoreset import read_autoreset_mode
from .dialects import check_environments, is_factory, is_vector, make_environment, warn_of_factory
from .environment_list import EnvironmentList
from .gym_on_numpy2 import patch_gym
from .identity import check_distinct
from .info import Entries
from .protocol import Environments
from .vector_environment import VectorEnvironment
from .vectors.closing import close_environments
from .vectors.first_reset import gives_tensors, reset_vector

__all__ = [
    "check_no_actor",
    "check_vectors",
    "close_all",
    "list_sources",
    "make_environments",
    "make_turns",
    "seeds_of",
]


def make_environments(sources: Sequence[Any], seed: int, progress: Progress) -> Environments:
    """Make, reset and check the environments of an evaluation: single ones, or one vector environment.

    Single ones are not reset at the end of their episode.

    Parameters
    ----------
    sources : sequence
        As :func:`list_sources` returns them.
    seed : int
        The seed of the evaluation, from which each environment's seed is derived.
    progress : Progress
        Where the current activity is noted.
    """
    if len(sources) == 1 and is_vector(env := sources[0]):
        return _reset_vector(env, seeds_of(seed, int(env.num_envs)), Entries(()), progress)
    return EnvironmentList(sources, seeds_of(seed, len(sources)), Entries(()), progress, single_episode=True)


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
    autoreset: str | None = None,
    make_list: Callable[..., Environments] = EnvironmentList,
    make_tensors: Callable[..., Any] | None = None,
) -> list[Environments]:
    """Make, reset and check the environments of each turn: single ones, or a vector environment.

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
    autoreset : str, optional
        When vector environments that do not say it reset their parts.
    make_list : callable
        Makes the environments of a group, with the arguments of :class:`EnvironmentList`.
    make_tensors : callable, optional
        Takes a vector environment whose observations are torch tensors, with the arguments of
        :class:`VectorEnvironment`. By default such environments are refused.

    Raises
    ------
    TypeError, ValueError
        As the constructors of :class:`EnvironmentList` and :class:`VectorEnvironment`; a factory has made a vector
        environment although ``sticky`` asks for single ones, or although there are shards; several vector environments
        are to be several groups; or an environment is there twice.
    """
    from_factories = any(map(is_factory, sources))
    turns: list[Environments] = []
    owned: list[Any] = []
    with closed_on_error(partial(close_environments, owned)):
        envs = _make_all(sources, seed, progress, owned, reseed=reseed, first_env=first_env)
        progress.doing, progress.env = "checking the spaces", -1
        check_same_kind(envs)
        if is_vector(envs[0]):
            if from_factories:  # otherwise it is checked already
                check_vectors(len(envs), len(groups), sticky=sticky)
            if sharded and from_factories:
                raise ValueError(
                    "with `shard` the number of environments must be known before they are made: pass the vector "
                    "environments themselves instead of factories."
                )
            check_distinct(envs)
            start = first_env
            for k, env in enumerate(envs):
                seeds = seeds_of(seed, int(env.num_envs), reseed=reseed, first=start)
                number = k if len(envs) > 1 else None
                options = {"final": final, "first": start, "number": number}
                turns.append(_reset_vector(env, seeds, entries, progress, autoreset, make_tensors, **options))
                start += int(env.num_envs)
        else:
            check_environments(envs, first_env)
            seeds = seeds_of(seed, len(envs), reseed=reseed, first=first_env)
            # each group has its own block: its inputs are aligned alike in every engine, and rounding depends on that
            turns += [make_list(envs[x], seeds[x], entries, progress, first=first_env + x.start) for x in groups]
    for turn in turns:
        turn.own([env for env in owned if any(env is one for one in turn.instances)])
    return turns


def _reset_vector(
    env: Any,
    seeds: Sequence[int | None],
    entries: Entries,
    progress: Progress,
    autoreset: str | None = None,
    make_tensors: Callable[..., Any] | None = None,
    number: int | None = None,
    **options: Any,
) -> Environments:
    """Reset a vector environment, and wrap it for a feed: by ``make_tensors`` if its observations are tensors.

    ``number`` and ``options`` are those of :class:`VectorEnvironment`.
    """
    mode = read_autoreset_mode(env, autoreset)
    progress.doing, progress.env = "env.reset", vector_number(number)
    result = reset_vector(env, seeds)
    kind: Any = make_tensors if make_tensors is not None and gives_tensors(result) else VectorEnvironment
    made: Environments = kind(env, result, mode, entries, progress, number=number, **options)
    return made


def _make_all(
    sources: Sequence[Any], seed: int, progress: Progress, owned: list[Any], *, reseed: bool, first_env: int
) -> list[Any]:
    """Call the factories among the sources, and append what they make to ``owned``, each once; return all environments.

    ``owned`` is complete after an error, too, so that the caller can close them.
    """
    envs: list[Any] = []
    progress.doing, start = "env.make", first_env
    for source in sources:
        progress.env, env = start, source
        if is_factory(source):
            seed_of_env = seeds_of(seed, 1, reseed=reseed, first=start)[0]
            env = make_environment(source, seed_of_env)
            if not any(env is other for other in owned):
                owned.append(env)
                warn_of_factory(source, env, seed_of_env)
        envs.append(env)
        start += int(env.num_envs) if is_vector(env) else 1
    return envs


def close_all(turns: Iterable[Environments]) -> list[str]:
    """Close the environments of all turns, also after a KeyboardInterrupt; return what went wrong."""
    complaints, interrupt = [], None
    for turn in turns:
        try:
            complaints += turn.close()
        except KeyboardInterrupt as error:
            interrupt = error
    if interrupt is not None:
        raise interrupt
    return complaints


def check_vectors(n_vectors: int, n_groups: int, *, sticky: bool) -> None:
    """Check the options that are not for vector environments.

    Raises
    ------
    ValueError
        ``sticky`` needs single environments; in a list each vector environment is a group.
    """
    if sticky:
        raise ValueError(
            "sticky fragments (`sticky=True`, and those of `episodic`) need environments that can stand still: pass a "
            "list of single environments instead of a vector environment."
        )
    if n_vectors > 1 and n_groups > 1:
        raise ValueError(
            f"`groups` must be 1 for a list of vector environments, got {n_groups}: each of them is a group. Pass more "
            "of them, with fewer parts each."
        )


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
    check_no_actor("envs", envs)
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
    check_same_kind(sources)
    return sources


def check_no_actor(name: str, given: Any) -> None:
    """Raise TypeError if a module of torch that is no environment is given as environments, or as what makes them."""
    if hasattr(given, "named_parameters") and not (isinstance(given, type) or hasattr(given, "observation_space")):
        raise TypeError(f"`{name}` is an actor, {type(given).__name__}: are the arguments swapped?")


def check_same_kind(envs: Sequence[Any]) -> None:
    """Check that all environments of a list are vector environments, or none; factories are passed over.

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
            f"environment {j} of `envs` is a vector environment, and environment {single[0]} is a single one: pass a "
            "list of vector environments, each of which is a group, or a list of single ones."
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
