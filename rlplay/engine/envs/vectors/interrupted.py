"""Vector environments with processes of their own, ``AsyncVectorEnv`` of gym and gymnasium, after Ctrl-C in a step.

Ctrl-C in a terminal or a notebook ends the processes, too; SIGINT to the program alone leaves them alive. Imports
neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Callable
from contextlib import suppress
from typing import Any

from ..autoreset import class_names
from .background import wait_at_end

__all__ = ["reset_async", "take_results"]


def take_results(env: Any) -> None:
    """Take the results of a step that Ctrl-C has interrupted, so that the environment can be reset.

    The interrupted wait may have taken the results of some parts. These results do not come again, and a second wait
    for them would never end. So no result is taken unless those of all parts come within a few seconds.

    Other vector environments have no such results. No other thread may wait for the environment.
    """
    raw = getattr(env, "unwrapped", env)
    if "AsyncVectorEnv" in class_names(raw):
        with suppress(Exception, KeyboardInterrupt):  # the KeyboardInterrupt of a process is raised here again
            wait_at_end(raw)


def reset_async(env: Any, reset: Callable[[], Any]) -> Any:
    """Call ``reset`` of an ``AsyncVectorEnv``, or of a wrapper around it, and return what it returned.

    Raises
    ------
    RuntimeError
        A process has ended, or the environment is still in an earlier call.
    """
    # a class of the user's own may have the name; a process that has told its error has no pipe any more
    parts = zip(getattr(env, "parent_pipes", ()), getattr(env, "processes", ()), strict=False)
    ended = [k for k, (pipe, process) in enumerate(parts) if pipe is None or process.exitcode is not None]
    if ended and not env.closed:
        raise RuntimeError(
            f"the process of part {ended[0]} of the vector environment {env!r} has ended. Ctrl-C ends the processes, "
            "and so does an error in an environment: make a new vector environment."
        )
    try:
        return reset()
    except Exception as error:
        if type(error).__name__ != "AlreadyPendingCallError":
            raise
        raise RuntimeError(
            f"the vector environment {env!r} is still in an earlier call of `{error.name}`, "  # type: ignore[attr-defined]
            "or Ctrl-C has lost some of its results: make a new vector environment."
        ) from error
