"""Closes an environment, also a vector environment whose step has been interrupted.

Imports neither rows nor torch.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

from ..identity import environments_in

__all__ = ["LIMIT", "close_environment", "is_stuck"]

LIMIT = 5.0
"""Seconds in which the processes of an ``AsyncVectorEnv`` may end a step whose result nobody asks for."""


def is_stuck(wait: Callable[[], Any]) -> bool:
    """Wait for a step whose result nobody asks for; return whether it has not ended within the limit of ``wait``."""
    try:
        wait()
    except Exception as error:  # nobody asks for the error of the step either
        return type(error).__name__ == "TimeoutError"  # that of multiprocessing is not Python's own
    return False


def close_environment(env: Any, *, stuck: bool = False) -> None:
    """Call ``close`` of an environment, if it has this method.

    ``AsyncVectorEnv`` of gym and gymnasium first waits for a step under way. If Ctrl-C has interrupted an earlier wait
    for that step, some of its results have been taken, and the second wait would never end. So it gets a limit, after
    which the environment kills its processes. It kills them at once if it is ``stuck``.
    """
    inside = environments_in(env)
    in_processes = any(cls.__name__ == "AsyncVectorEnv" for cls in type(inside[-1]).__mro__)
    if in_processes and all(map(_passes_on, inside)):
        env.close(timeout=LIMIT, terminate=stuck)
    else:
        getattr(env, "close", bool)()


def _passes_on(env: Any) -> bool:
    """Whether ``close`` takes any keyword: then a wrapper passes it on to the ``close`` of what is inside."""
    close = getattr(type(env), "close", None)
    return inspect.isfunction(close) and any(
        p.kind is p.VAR_KEYWORD for p in inspect.signature(close).parameters.values()
    )
