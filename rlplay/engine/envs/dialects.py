"""The dialects of environments: gym up to 0.25, gym 0.26 and gymnasium, told apart by what they return."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import numpy as np

from ...nested import Nested
from . import spaces

__all__ = ["is_factory", "is_vector", "takes"]


def is_vector(source: Any) -> bool:
    """Whether this is one vector environment rather than a list of environments."""
    return hasattr(source, "num_envs") and hasattr(source, "single_observation_space")


def is_factory(source: Any) -> bool:
    """Whether this is something that makes an environment: a class, or any callable that is no environment itself."""
    return callable(source) and (isinstance(source, type) or not hasattr(source, "step"))


def takes(function: Callable[..., Any], name: str) -> bool:
    """Whether a callable has a parameter of this name."""
    return any(p.name == name and p.kind is not p.POSITIONAL_ONLY for p in _parameters(function))


def _parameters(function: Callable[..., Any]) -> Iterable[inspect.Parameter]:
    try:
        return inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # builtins may have no signature
        return ()


def _old(result: Any) -> tuple[Any, Any, bool, bool, Any]:
    """Read what ``step`` returned in the old dialect, if it is that."""
    if not isinstance(result, tuple | list) or len(result) != 4:
        got = f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__
        raise ValueError(
            "expected `step` to return (obs, reward, terminated, truncated, info), or (obs, reward, done, info) by "
            f"the old API, got {got}."
        )
    obs, reward, done, info = result
    truncated = bool(done) and bool((info or {}).get("TimeLimit.truncated", False))
    return obs, reward, bool(done) and not truncated, truncated, info


def _scalar(reward: Any) -> float:
    if isinstance(reward, float | int):
        return float(reward)
    array = np.asarray(reward)
    if array.size != 1 or array.dtype.kind not in "biuf":
        raise ValueError(f"expected the reward to be a number, got {reward!r}.")
    return float(array.item())


def _told(described: Nested, result: Any) -> tuple[Nested, bool]:
    """Tell by the space whether ``reset`` returned an observation, or a pair of it and an info dict."""
    pair = isinstance(result, tuple) and len(result) == 2 and (result[1] is None or isinstance(result[1], Mapping))
    if pair and (_fits(described, result[0]) or not _fits(described, result)):
        return result[0], True
    return result, False


def _fits(described: Nested, value: Any) -> bool:
    try:
        spaces.cast(described, value)
    except ValueError:
        return False
    return True


def _seeded_reset(env: Any, seed: int) -> Any:
    """Reset for the first time, seeding in the way that the environment understands."""
    if _reset_takes_seed(env):
        return env.reset(seed=seed)
    if hasattr(env, "seed"):
        env.seed(seed)
    return env.reset()


def _reset_takes_seed(env: Any) -> bool:
    """Whether ``reset(seed=)`` gets through: wrappers of old pass on ``**kwargs``, so ask what they pass them to."""
    while True:
        if takes(env.reset, "seed"):
            return True
        if not any(p.kind is p.VAR_KEYWORD for p in _parameters(env.reset)):
            return False
        inner = getattr(env, "env", None)
        if inner is None or inner is env or not hasattr(inner, "reset"):
            return not hasattr(env, "seed")  # the old API's way, which nobody would have who knows the new one
        env = inner
