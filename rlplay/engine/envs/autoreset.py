"""Reads a vector environment: when it resets its sub-environments, how it is seeded, and where its info has what.

The libraries (gym 0.26, gymnasium, EnvPool, ale-py) are recognised by attributes and by the names of classes, since
none of them is imported. What follows from an autoreset mode is in :mod:`rlplay.engine.envs.vector_environment`.

Imports neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ... import nested

__all__ = ["check_wrappers", "info_of", "last_observation", "read_autoreset_mode", "seeded_reset"]

_MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")

_IGNORE_FINAL_OBS = {"ObservationWrapper", "NormalizeObservation"}
"""gym's wrappers that change the observations of a vector environment, but not the true last ones in its info."""


def read_autoreset_mode(env: Any) -> str:
    """Return when a vector environment resets its sub-environments: ``"NEXT_STEP"``, ``"SAME_STEP"`` or ``"DISABLED"``.

    Raises
    ------
    TypeError
        It lacks an attribute that every vector environment has.
    ValueError
        It has no known autoreset mode, or it returns the results of some sub-environments at a time.
    """
    for needed in ("num_envs", "single_observation_space", "single_action_space", "reset", "step"):
        if not hasattr(env, needed):
            raise TypeError(
                f"{env!r} looks like a vector environment, but has no `{needed}`: expected one of gym 0.26, gymnasium "
                "or ale-py, or EnvPool's with `env_type='gymnasium'`; else pass a list of single environments."
            )
    raw = getattr(env, "unwrapped", env)
    if getattr(raw, "is_async", False) or getattr(raw, "batch_size", env.num_envs) != env.num_envs:
        raise ValueError(
            f"{env!r} answers for some of its {env.num_envs} parts at a time: make it with a `batch_size` of "
            f"{env.num_envs}, or without one."
        )
    # the attribute takes precedence: the metadata of ale-py's environments are shared by all instances
    mode = getattr(raw, "autoreset_mode", None) or (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    name = getattr(mode, "name", mode)
    if name is None and any(cls.__module__.partition(".")[0] == "gym" for cls in type(raw).__mro__):
        return "SAME_STEP"
    if name not in _MODES:
        raise ValueError(
            f"cannot tell when the vector environment {env!r} resets its sub-environments: expected `autoreset_mode`, "
            f"as an attribute or in its `metadata`, to be one of gymnasium's AutoresetMode ({', '.join(_MODES)}), got "
            f"{mode!r}. gymnasium has it from 1.1 on; else pass a list of single environments."
        )
    return str(name)


def check_wrappers(env: Any) -> None:
    """Refuse wrappers that change all observations except the true last ones.

    Raises
    ------
    ValueError
        There is such a wrapper.
    """
    for wrapper in _wrappers(env):
        if _class_names(wrapper) & _IGNORE_FINAL_OBS:
            raise ValueError(
                f"`final=True` needs the true last observations, but {type(wrapper).__name__} around a vector "
                "environment leaves those in its info as they were: wrap its single environments instead, or do "
                "without `final`."
            )


def seeded_reset(env: Any, seeds: Sequence[int]) -> tuple[Any, Mapping[str, Any]]:
    """Reset a vector environment with the seeds in the form that its library takes; return observations and info.

    ``SyncVectorEnv``, ``AsyncVectorEnv`` and ale-py's take one seed for each sub-environment, others the first seed
    only. EnvPool takes no seed here: it is seeded where it is made.

    Raises
    ------
    ValueError
        ``reset`` did not return a pair of observations and info.
    """
    names = _class_names(getattr(env, "unwrapped", env))
    seed: Any = seeds[0]
    if names & {"SyncVectorEnv", "AsyncVectorEnv"}:
        seed = list(seeds)
    elif "AtariVectorEnv" in names:
        seed = np.array(seeds)
    result = env.reset() if "EnvPoolMixin" in names else env.reset(seed=seed)
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)):
        raise ValueError(
            f"expected `reset` of the vector environment {env!r} to return observations and a dict of infos, got "
            f"{type(result).__name__} (those of gym up to 0.25 are not supported): pass a list of single environments "
            "instead."
        )
    return result


def last_observation(info: Mapping[str, Any], j: int) -> Any:
    """Return the true last observation of sub-environment ``j``, which SAME_STEP puts into the info.

    The entry is an array of one observation for each sub-environment, or a nest of such arrays.

    Raises
    ------
    ValueError
        The info has no last observations.
    """
    batch = info.get("final_obs", info.get("final_observation"))  # the latter in gym
    if batch is None:
        raise ValueError(
            "`final=True` needs the true last observations, but the vector environment's info has neither 'final_obs' "
            f"nor 'final_observation', only {sorted(info)}: make it in another autoreset mode, or do without `final`."
        )
    return nested.map(lambda x: x[j], batch)


def info_of(info: Mapping[str, Any], j: int, n: int) -> dict[str, Any]:
    """Return the info of sub-environment ``j`` of ``n``, from an info whose entries are arrays of ``n`` elements.

    A bool array ``_name`` says which sub-environments have the entry ``name``. An entry that is not an array of ``n``
    elements is that of all sub-environments.
    """
    single: dict[str, Any] = {}
    for name, values in info.items():
        mask = info.get(f"_{name}")
        if mask is not None and not mask[j]:
            continue
        if isinstance(values, Mapping):
            single[name] = info_of(values, j, n)
        else:
            single[name] = values[j] if getattr(values, "shape", ())[:1] == (n,) else values
    return single


def _wrappers(env: Any) -> Iterator[Any]:
    """Yield the wrappers around an environment from the outside in, then the environment itself."""
    while env is not None:
        yield env
        env = getattr(env, "env", None) if env is not getattr(env, "unwrapped", env) else None


def _class_names(env: Any) -> set[str]:
    return {cls.__name__ for cls in type(env).__mro__}
