"""Words for what ``reset`` and ``step`` have returned and ought not to have: usually something was forgotten.

Imports nothing about environments, rows or torch.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

__all__ = ["check_info_of_four", "described", "observation_of", "refused_vector_step"]


def described(result: Any) -> str:
    """Describe what ``step`` has returned in the place of several values."""
    if result is None:
        return "None: is a `return` missing?"
    return f"{len(result)} values" if isinstance(result, tuple | list) else type(result).__name__


def check_info_of_four(info: Any) -> None:
    """Check that the last of the four values of a step by the old API is an info, or None.

    Four values of the new API, whose info was forgotten, would pass for four of the old one.

    Raises
    ------
    ValueError
        It is neither.
    """
    if info is not None and not isinstance(info, Mapping):
        raise ValueError(
            f"`step` returned 4 values, the last a {type(info).__name__}: the old API is (obs, reward, done, info). Is "
            "the info dict missing? Return (obs, reward, terminated, truncated, {})."
        )


def refused_vector_step(result: Any, expected: str) -> ValueError:
    """Return the error for what ``step`` of a vector environment has returned.

    Parameters
    ----------
    result
        What it has returned.
    expected : str
        The values that it may return, in words.
    """
    missing = ""
    if isinstance(result, tuple | list) and len(result) == 4 and not isinstance(result[3], Mapping):
        missing = (
            f", the last a {type(result[3]).__name__}. Is the dict of infos missing? Return (obs, reward, terminated, "
            "truncated, {})"
        )
    got = described(result)
    stop = "" if got.endswith("?") else "."
    return ValueError(f"expected `step` of the vector environment to return {expected}, got {got}{missing}{stop}")


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
