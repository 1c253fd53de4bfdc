"""The reset of a vector environment with processes of its own after Ctrl-C in one of its steps.

Ctrl-C in a terminal or a notebook ends the processes, too; SIGINT to the program alone leaves them alive. Imports
neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import Any

from .background import WAIT_AT_END

__all__ = ["reset_after_interrupt"]


def reset_after_interrupt(env: Any, reset: Callable[[], Any]) -> Any:
    """Call ``reset``; if ``env`` has a call under way, take its results first. Return what ``reset`` returned.

    Parameters
    ----------
    env : AsyncVectorEnv
        Of gym or gymnasium, without wrappers.
    reset : callable
        Resets the environment, and the wrappers around it.

    Raises
    ------
    RuntimeError
        A process has ended, or not all results of the call under way can be had.
    """
    _check_processes(env)
    try:
        return reset()
    except Exception as error:
        if type(error).__name__ != "AlreadyPendingCallError":
            raise
        call: str = error.name  # type: ignore[attr-defined]
    _take_results(env, call)
    return reset()


def _check_processes(env: Any) -> None:
    parts = zip(env.parent_pipes, env.processes, strict=True)  # a process that has told its error has no pipe any more
    ended = [k for k, (pipe, process) in enumerate(parts) if pipe is None or process.exitcode is not None]
    if ended and not env.closed:
        raise RuntimeError(
            f"the process of part {ended[0]} of the vector environment {env!r} has ended. Ctrl-C ends the processes, "
            "and so does an error in an environment: make a new vector environment."
        )


def _take_results(env: Any, call: str) -> None:
    """Wait for the results of a call and take them, unless they do not all come within a few seconds.

    The call's own wait takes the results one after the other. If Ctrl-C has interrupted it after the first one, that
    one does not come again, and a second wait would never end.
    """
    deadline = monotonic() + WAIT_AT_END
    if not all(pipe.poll(max(0.0, deadline - monotonic())) for pipe in env.parent_pipes):
        raise RuntimeError(
            f"an interrupted call of `{call}` of the vector environment {env!r} has not ended within {WAIT_AT_END:g} "
            "s, or some of its results were taken before the interrupt: make a new vector environment."
        )
    try:
        getattr(env, f"{call}_wait")()
    except BaseException:  # the KeyboardInterrupt of a process is raised here again
        _check_processes(env)
        raise
