"""Closes environments, also vector environments whose step has been interrupted.

Imports neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from ...concurrency.exceptions import repr_of
from ..dialects import takes_any_keyword
from ..identity import environments_in
from .background import WAIT_AT_END

__all__ = ["close_environments", "is_stuck"]


def is_stuck(wait: Callable[[], Any]) -> bool:
    """Wait for a step whose result nobody asks for; return whether it has not ended within the limit of ``wait``."""
    try:
        wait()
    except Exception as error:  # nobody asks for the error of the step either
        return type(error).__name__ == "TimeoutError"  # multiprocessing has a class of its own with this name
    return False


def close_environments(envs: list[Any], *, stuck: bool = False) -> list[str]:
    """Close environments, which may be stuck, each once; empty the list; return one sentence for each that failed."""
    complaints, interrupt = [], None
    while envs:
        env = envs.pop()
        try:
            _close(env, stuck=stuck)
        except KeyboardInterrupt as error:
            interrupt = error
        except BaseException as error:  # the others must be closed all the same
            complaints.append(f"closing {repr_of(env)} failed: {repr_of(error)}.")
    if interrupt is not None:
        raise interrupt
    return complaints


def _close(env: Any, *, stuck: bool) -> None:
    """Call ``close`` of an environment, if it has this method.

    ``AsyncVectorEnv`` of gym and gymnasium first waits for a step under way. If Ctrl-C has interrupted an earlier wait
    for that step, some of its results have been taken, and the second wait would never end. So it gets a limit, after
    which the environment kills its processes. It kills them at once if it is ``stuck``.
    """
    inside = environments_in(env)
    in_processes = any(cls.__name__ == "AsyncVectorEnv" for cls in type(inside[-1]).__mro__)
    # a wrapper whose `close` takes any keyword passes it on to the `close` of the environment inside
    if in_processes and all(takes_any_keyword(getattr(type(one), "close", bool)) for one in inside):
        env.close(timeout=WAIT_AT_END, terminate=stuck)
    else:
        getattr(env, "close", bool)()
