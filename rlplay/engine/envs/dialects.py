"""The APIs ("dialects") of single environments: gym up to 0.25, gym 0.26 and gymnasium.

They differ in what ``reset`` and ``step`` return and in how an environment is seeded. The dialect is recognised by the
values returned and by the parameters of ``reset``, never by the library: neither gym nor gymnasium is imported.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...nested import Nested
from . import spaces

__all__ = ["is_factory", "is_vector", "read_old_step", "reward_to_float", "seeded_reset", "split_reset", "takes"]


def is_vector(source: Any) -> bool:
    """Whether this is one vector environment rather than a list of environments."""
    return hasattr(source, "num_envs") and hasattr(source, "single_observation_space")


def is_factory(source: Any) -> bool:
    """Whether this makes an environment: it is a class, or a callable that is not itself an environment."""
    return callable(source) and (isinstance(source, type) or not hasattr(source, "step"))


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of this name that can be passed by keyword."""
    return any(p.name == name and p.kind is not p.POSITIONAL_ONLY for p in _parameters(function))


def _parameters(function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins may have no signature
        return ()


def read_old_step(result: Any) -> tuple[Any, Any, bool, bool, Any]:
    """Convert what ``step`` returned in the old API, ``(obs, reward, done, info)``, to the five values of the new one.

    A wrapper ``TimeLimit`` of the old API marks truncation by ``info["TimeLimit.truncated"]``.

    Raises
    ------
    ValueError
        The result is neither of the old nor of the new API.
    """
    if not isinstance(result, tuple | list) or len(result) != 4:
        got = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise ValueError(
            "expected `step` to return (obs, reward, terminated, truncated, info), or (obs, reward, done, info) by "
            f"the old API, got {got}."
        )
    obs, reward, done, info = result
    truncated = bool(done) and bool((info or {}).get("TimeLimit.truncated", False))
    return obs, reward, bool(done) and not truncated, truncated, info


def reward_to_float(reward: Any) -> float:
    """Convert a reward, a number or an array of one number, to a float.

    Raises
    ------
    ValueError
        It is no number.
    """
    if isinstance(reward, float | int):
        return float(reward)
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"expected the reward to be a number, got {reward!r}.")
    return float(array.item())


def split_reset(description: Nested, result: Any) -> tuple[Nested, bool]:
    """Split what ``reset`` returned: the observation alone (old API), or a pair of observation and info dict.

    An observation may itself be a pair that ends with a dict. Then the observation space decides.

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
    """
    pair = isinstance(result, tuple) and len(result) == 2 and (result[1] is None or isinstance(result[1], Mapping))
    if pair and (_fits(description, result[0]) or not _fits(description, result)):
        return result[0], True
    return result, False


def _fits(description: Nested, value: Any) -> bool:
    try:
        spaces.cast(description, value)
    except ValueError:
        return False
    return True


def seeded_reset(env: Any, seed: int) -> Any:
    """Reset an environment with a seed: by ``reset(seed=)``, or in the old API by ``seed`` and ``reset``."""
    if _reset_takes_seed(env):
        return env.reset(seed=seed)
    if hasattr(env, "seed"):
        env.seed(seed)
    return env.reset()


def _reset_takes_seed(env: Any) -> bool:
    """Whether ``reset(seed=)`` reaches the environment.

    Wrappers of the old API pass ``**kwargs`` on to the environment inside, so that one is inspected instead.
    """
    while True:
        if takes(env.reset, "seed"):
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in _parameters(env.reset)):
            return False
        inner = getattr(env, "env", None)
        if inner is None or inner is env or not hasattr(inner, "reset"):
            return not hasattr(env, "seed")  # environments of the new API have no method `seed`
        env = inner
