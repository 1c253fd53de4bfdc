"""The APIs ("dialects") of single environments: gym up to 0.25, gym 0.26 and gymnasium.

They differ in what ``reset`` and ``step`` return and in how an environment is seeded. The dialect is recognised by the
values returned and by the parameters of ``reset``, never by the library: neither gym nor gymnasium is imported.
"""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

from ...nested import Nested
from ..concurrency.progress import Progress
from . import spaces
from .identity import check_distinct, wrappers
from .returned.numbers import one_number, to_flag
from .returned.refused import forgotten_info, observation_of, refused_step

__all__ = [
    "check_environments",
    "final_info",
    "has_seed_method",
    "is_factory",
    "is_vector",
    "make_each",
    "make_environment",
    "read_old_step",
    "refuses",
    "seeded_reset",
    "split_reset",
    "takes",
    "takes_any_keyword",
    "warn_of_factory",
    "warn_of_lost_seed",
]


def is_vector(source: Any) -> bool:
    """Whether this is one vector environment rather than a list of environments, or a class of vector environments."""
    names = ("num_envs", "single_observation_space")
    return not isinstance(source, type) and all(hasattr(source, name) for name in names)


def is_factory(source: Any) -> bool:
    """Whether this makes an environment: it is a class, or a callable that is not itself an environment."""
    return callable(source) and (isinstance(source, type) or not hasattr(source, "step"))


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of this name that can be passed by keyword."""
    return any(p.name == name and p.kind is not p.POSITIONAL_ONLY for p in _parameters_of(function) or ())


def takes_any_keyword(function: Callable[..., Any]) -> bool:
    """Whether a callable has a parameter such as ``**kwargs``."""
    return any(p.kind is p.VAR_KEYWORD for p in _parameters_of(function) or ())


def refuses(function: Callable[..., Any], name: str) -> bool:
    """Whether the parameters of a callable are known, and none of them takes this keyword."""
    known = _parameters_of(function) is not None
    return known and not takes(function, name) and not takes_any_keyword(function)


def _parameters_of(function: Callable[..., Any]) -> Collection[inspect.Parameter] | None:
    """Return the parameters of a callable; None if it has no signature, as some that are written in C."""
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):
        return None


def read_old_step(result: Any) -> tuple[Any, Any, bool, bool, Any]:
    """Convert what ``step`` returned in the old API, ``(obs, reward, done, info)``, to the five values of the new one.

    A wrapper ``TimeLimit`` of the old API marks truncation by ``info["TimeLimit.truncated"]``.

    Raises
    ------
    ValueError
        The result is neither of the old nor of the new API: there are not four values, or the last is a flag.
    """
    if not isinstance(result, tuple | list) or len(result) != 4:
        raise refused_step(result)
    obs, reward, done, info = result
    if type(info) is not dict and one_number(info) is not None:
        raise forgotten_info(info)
    done = to_flag(done, "done")
    truncated = done and _is_cut(info)
    return obs, reward, done and not truncated, truncated, info


def _is_cut(info: Any) -> bool:
    """Whether an info dict of the old API says that a time limit has ended the episode.

    An environment that has reset itself has the info of the step that ended the episode in ``info["final_info"]``.
    """
    for told in (info, final_info(info)):
        if isinstance(told, Mapping) and told.get("TimeLimit.truncated") is not None:
            return to_flag(told["TimeLimit.truncated"], "info['TimeLimit.truncated']")
    return False


def final_info(info: Any) -> Any:
    """Return the info of the step that ended an episode, from that of an environment that has reset itself; or None."""
    names = ("final_info", "closing_info", "terminal_info")  # in gym from 0.26 on, in 0.25, in 0.24
    return next((info[name] for name in names if isinstance(info, Mapping) and name in info), None)


def split_reset(description: Nested, result: Any) -> tuple[Nested, bool]:
    """Split what ``reset`` returned: the observation alone (old API), or a pair of observation and info dict.

    An observation may itself be a pair that ends with a dict. Then the observation space decides. So it does whether a
    pair that ends with anything else is an observation.

    Parameters
    ----------
    description : nested Field
        The observation space, by :func:`rlplay.engine.envs.spaces.fields`.
    result
        What ``reset`` returned.

    Returns
    -------
    obs : nested
        The observation.
    has_info : bool
        Whether ``reset`` returns a pair.

    Raises
    ------
    ValueError
        It is None, or a pair of an observation and something else than a dict.
    """
    if not isinstance(result, tuple | list) or len(result) != 2:
        return observation_of(result, has_info=False), False
    obs, info = result
    if info is None or isinstance(info, Mapping):
        # of two misfits, a named tuple is rather an observation
        has_info = _fits(description, obs) or not (hasattr(result, "_fields") or _fits(description, result))
        return (obs, True) if has_info else (result, False)
    if _fits(description, obs) and not _fits(description, result):
        raise ValueError(
            "expected `reset` to return an observation and an info dict (or by the old API an observation alone): the "
            f"observation fits its space, but the info is {info!r}, of type {type(info).__name__}: return a dict."
        )
    return result, False


def _fits(description: Nested, value: Any) -> bool:
    try:
        spaces.cast(description, value)
    except ValueError:
        return False
    return True


def make_environment(factory: Callable[..., Any], seed: int | None) -> Any:
    """Call a factory, with the seed if it has a parameter ``seed`` that is not bound yet and there is a seed.

    Raises
    ------
    TypeError
        There is no seed, and the factory cannot be called without one.
    """
    bound = getattr(factory, "keywords", {})  # of a functools.partial
    if not takes(factory, "seed") or "seed" in bound:
        return factory()
    if seed is not None:
        return factory(seed=seed)
    if any(p.name == "seed" and p.default is p.empty for p in _parameters_of(factory) or ()):
        raise TypeError(
            f"with `reseed=False` factories are given no seed, but {factory!r} has a parameter `seed` without a "
            "default: give it one."
        )
    return factory()


def make_each(
    sources: Sequence[Any], seeds: Sequence[int | None], progress: Progress, first: int, made: list[Any]
) -> list[Any]:
    """Return the environments: instances as they are, and what factories make, which is appended to ``made``, too."""
    envs, progress.doing = list[Any](), "env.make"
    for j, (source, seed) in enumerate(zip(sources, seeds, strict=True)):
        progress.env = first + j
        env = make_environment(source, seed) if is_factory(source) else source
        if env is not source and not any(env is other for other in made):
            made.append(env)
            warn_of_factory(source, env, seed)
        envs.append(env)
    return envs


def seeded_reset(env: Any, seed: int | None) -> Any:
    """Reset an environment with a seed: by ``reset(seed=)``, or in the old API by ``seed`` and ``reset``.

    Without a seed (None), only ``reset()`` is called, so that the environment keeps the random state that it has.
    """
    if seed is None:
        return env.reset()
    if _reset_takes_seed(env):
        return env.reset(seed=seed)
    seeded = next(filter(has_seed_method, wrappers(env)), None)  # a wrapper may lack the method
    if seeded is not None:
        seeded.seed(seed)
    return env.reset()


def _reset_takes_seed(env: Any) -> bool:
    """Whether ``reset(seed=)`` reaches the environment.

    Wrappers of the old API pass ``**kwargs`` on to their attribute ``env``, so that one is inspected instead. What an
    environment holds by another name may be a simulator, to which it passes nothing on.
    """
    while takes_any_keyword(env.reset) and not takes(env.reset, "seed"):
        inner = getattr(env, "env", None)
        if inner is None or inner is env or not hasattr(inner, "reset"):
            break
        env = inner
    if takes(env.reset, "seed"):
        return True
    return not refuses(env.reset, "seed") and not has_seed_method(env)  # environments of the old API have that method


def warn_of_factory(factory: Callable[..., Any], env: Any, seed: int | None) -> None:
    """Warn if a wrapper keeps the seed from an environment that a factory has made, and that takes no seed either."""
    if seed is not None and not takes(factory, "seed"):
        warn_of_lost_seed(env)


def warn_of_lost_seed(env: Any, *, stacklevel: int = 2) -> None:
    """Warn if a seed does not reach an environment, since ``reset`` of a wrapper around it has no parameter ``seed``.

    ``stacklevel`` is that of :func:`warnings.warn`, called from here.
    """
    around = [one for one in wrappers(env) if hasattr(one, "reset") and hasattr(one, "action_space")]
    k = next((k for k, one in enumerate(around) if refuses(one.reset, "seed")), len(around))
    inside = next((one for one in reversed(around[k + 1 :]) if takes(one.reset, "seed")), None)
    if inside is not None and not any(map(has_seed_method, around)):
        name = type(around[k]).__name__
        warnings.warn(
            f"`reset` of {name} has no parameter `seed`, so that the seed does not reach the {type(inside).__name__} "
            f"inside, whose episodes differ in each run: write `def reset(self, *, seed=None, options=None)` in {name} "
            "and pass both on. If you have seeded the environment by yourself, pass `reseed=False`.",
            RuntimeWarning,
            stacklevel=stacklevel,
        )


def has_seed_method(env: Any) -> bool:
    """Whether ``env`` has a method ``seed``, as in the old API, and is an environment, not a simulator inside one."""
    return callable(getattr(env, "seed", None)) and (hasattr(env, "action_space") or is_vector(env))


def check_environments(envs: Sequence[Any], first: int) -> None:
    """Check that these are different environments with equal spaces; ``first`` is the number of the first one.

    Raises
    ------
    TypeError, ValueError
        An environment lacks a method or a space, stands there twice, or has other spaces than the first one; or it is a
        vector environment.
    """
    check_distinct(envs)
    for j, env in enumerate(envs):
        if is_vector(env):
            raise TypeError(
                f"environment {first + j} is a vector environment, where a single one is needed: `same` and `threaded` "
                "without workers take vector environments, and lists of them; `evaluate` takes one."
            )
        for name in ("reset", "step", "observation_space", "action_space"):
            if not hasattr(env, name):
                raise TypeError(f"environment {first + j} is no environment: {env!r} has no `{name}`.")
        for name in ("observation_space", "action_space"):
            one, other = getattr(envs[0], name), getattr(env, name)
            if not spaces.equal_spaces(one, other):
                raise ValueError(
                    f"environments of one feed must have equal spaces: environment {first + j} has "
                    f"the {name} {other}, environment {first} has {one}."
                )
