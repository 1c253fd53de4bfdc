"""How vector environments of several makers reset their parts, are seeded, and tell what they have to tell.

They are told apart by attributes and by the names of their classes, as nothing of theirs is imported. Knows neither
rows nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from ... import nested

__all__ = ["check_sees_last", "first", "last_obs", "mode_of", "part"]

_MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")

_BLIND = {"ObservationWrapper", "NormalizeObservation"}
"""gym's wrappers that change the observations of a vector environment, but not the last ones in its info."""


def mode_of(env: Any) -> str:
    """Tell when a vector environment resets its parts: ``"NEXT_STEP"``, ``"SAME_STEP"`` or ``"DISABLED"``.

    Raises
    ------
    TypeError
        If it lacks what every vector environment has.
    ValueError
        If it does not tell, or gives answers of some parts only.
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
    # the environment's own comes first: ale-py's keep theirs in metadata that all of them share
    mode = getattr(raw, "autoreset_mode", None) or (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    name = getattr(mode, "name", mode)
    if name is None and any(cls.__module__.partition(".")[0] == "gym" for cls in type(raw).__mro__):
        return "SAME_STEP"
    if name not in _MODES:
        raise ValueError(
            f"cannot tell when the vector environment {env!r} resets its parts: expected `autoreset_mode`, as an "
            f"attribute or in its `metadata`, to be one of gymnasium's AutoresetMode ({', '.join(_MODES)}), got "
            f"{mode!r}. gymnasium has it from 1.1 on; else pass a list of single environments."
        )
    return str(name)


def check_sees_last(env: Any) -> None:
    """Refuse wrappers that would have the last observations differ from all others.

    Raises
    ------
    ValueError
        If there is one.
    """
    for wrapper in _layers(env):
        if _kinds(wrapper) & _BLIND:
            raise ValueError(
                f"`final=True` needs the true last observations, but {type(wrapper).__name__} around a vector "
                "environment leaves those in its info as they were: wrap its single environments instead, or do "
                "without `final`."
            )


def first(env: Any, seeds: Sequence[int]) -> tuple[Any, Mapping[str, Any]]:
    """Reset for the first time, seeding in the way that the environment understands; return observations and info.

    Raises
    ------
    ValueError
        If it returns something else.
    """
    kinds = _kinds(getattr(env, "unwrapped", env))
    seed: Any = seeds[0]  # one generator for all parts
    if kinds & {"SyncVectorEnv", "AsyncVectorEnv"}:
        seed = list(seeds)
    elif "AtariVectorEnv" in kinds:
        seed = np.array(seeds)
    answer = env.reset() if "EnvPoolMixin" in kinds else env.reset(seed=seed)
    if not (isinstance(answer, tuple) and len(answer) == 2 and isinstance(answer[1], Mapping)):
        raise ValueError(
            f"expected `reset` of the vector environment {env!r} to return observations and a dict of infos, got "
            f"{type(answer).__name__} (those of gym up to 0.25 are not supported): pass a list of single environments "
            "instead."
        )
    return answer


def last_obs(info: Mapping[str, Any], j: int) -> Any:
    """Find the true last observation of part ``j`` in the info: an array with one for each, or nested batches.

    Raises
    ------
    ValueError
        If there is none.
    """
    batch = info.get("final_obs", info.get("final_observation"))  # gym: the latter
    if batch is None:
        raise ValueError(
            "`final=True` needs the true last observations, but the vector environment's info has neither 'final_obs' "
            f"nor 'final_observation', only {sorted(info)}: make it in another autoreset mode, or do without `final`."
        )
    return nested.map(lambda x: x[j], batch)


def part(info: Mapping[str, Any], j: int, n: int) -> dict[str, Any]:
    """Pick the info of part ``j`` of ``n`` out of batches.

    Where there is a mask ``_name``, it tells for whom ``name`` is there. What is no batch is told of all parts.
    """
    single: dict[str, Any] = {}
    for name, values in info.items():
        mask = info.get(f"_{name}")
        if mask is not None and not mask[j]:
            continue
        if isinstance(values, Mapping):
            single[name] = part(values, j, n)
        else:
            single[name] = values[j] if getattr(values, "shape", ())[:1] == (n,) else values
    return single


def _layers(env: Any) -> Iterator[Any]:
    """Yield the wrappers around an environment, and the environment itself."""
    while env is not None:
        yield env
        env = getattr(env, "env", None) if env is not getattr(env, "unwrapped", env) else None


def _kinds(env: Any) -> set[str]:
    return {cls.__name__ for cls in type(env).__mro__}
