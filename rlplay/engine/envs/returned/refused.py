"""Errors for wrong return values of ``reset`` and ``step``. The message says which value was probably forgotten.

Imports nothing about environments, rows or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["five_values", "forgotten_info", "infos_of", "observation_of", "refused_step", "refused_vector_step"]


def refused_step(result: Any) -> ValueError:
    """Return the error to raise where ``step`` of an environment has returned neither four nor five values."""
    return ValueError(
        "expected `step` to return (obs, reward, terminated, truncated, info), or (obs, reward, done, info) by the old "
        f"API, got {_described(result)}"
    )


def forgotten_info(last: Any) -> ValueError:
    """Return the error to raise where ``step`` has returned four values, and the last is a flag.

    By the old API the last is the info; by the new one the info was forgotten.
    """
    return ValueError(
        f"`step` returned 4 values, the last a {type(last).__name__}: the old API is (obs, reward, done, info). Is the "
        "info dict missing? Return (obs, reward, terminated, truncated, {})."
    )


def five_values(result: Any) -> Any:
    """Return what ``step`` of a vector environment has returned; raise ValueError unless these are five values."""
    try:
        obs, reward, terminated, truncated, infos = result
    except (TypeError, ValueError):
        raise refused_vector_step(result, "(obs, reward, terminated, truncated, infos)") from None
    return obs, reward, terminated, truncated, infos_of(infos)


def infos_of(told: Any) -> Mapping[str, Any]:
    """Return the infos that a vector environment has returned, None as an empty dict; raise ValueError if no dict."""
    if isinstance(told, Mapping):
        return told
    if told is None:
        return {}
    raise ValueError(
        f"expected the infos of the vector environment to be a dict, got {type(told).__name__}. Is there a wrapper "
        "that makes a list of them (DictInfoToList, VectorListInfo)? Take it off."
    )


def refused_vector_step(result: Any, expected: str) -> ValueError:
    """Return the error to raise where ``step`` of a vector environment has not returned the expected values.

    Parameters
    ----------
    result
        What it has returned.
    expected : str
        The values that it may return, in words.
    """
    got = _described(result)
    if isinstance(result, tuple | list) and len(result) == 4 and not isinstance(result[3], Mapping):
        got = (
            f"4 values, the last a {type(result[3]).__name__}. Is the dict of infos missing? Return (obs, reward, "
            "terminated, truncated, {})."
        )
    return ValueError(f"expected `step` of the vector environment to return {expected}, got {got}")


def observation_of(result: Any, *, has_info: bool) -> Any:
    """Return the observation out of what ``reset`` has returned.

    Parameters
    ----------
    has_info : bool
        Whether it returns a pair of observation and info.

    Raises
    ------
    ValueError
        It has returned None.
    """
    if result is None:
        raise ValueError("`reset` returned None: is `return observation, info` missing?")
    return result[0] if has_info else result


def _described(result: Any) -> str:
    """Describe what was returned, as the end of a sentence."""
    if result is None:
        return "None: is a `return` missing?"
    return f"{len(result)} values." if isinstance(result, tuple | list) else f"{type(result).__name__}."
