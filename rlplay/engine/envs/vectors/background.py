"""Vector environments that step in the background: by workers of their own, or without the interpreter lock.

The libraries are recognised by the names of classes. Imports neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from time import monotonic
from typing import Any

__all__ = ["WAIT_AT_END", "background_methods", "needs_thread", "wait_at_end"]

WAIT_AT_END = 5.0
"""Seconds in which the processes of an ``AsyncVectorEnv`` may end a step whose result nobody asks for."""

_BACKGROUND_METHODS = {
    "EnvPoolMixin": ("send", "recv"),
    "AtariVectorEnv": ("send", "recv"),
    "AsyncVectorEnv": ("step_async", "step_wait"),  # other classes of gym make the step in `step_wait`
}  # of EnvPool, ale-py, gym and gymnasium; a class of the user's own may have such methods for something else


def background_methods(env: Any) -> tuple[Callable[[Any], Any], Callable[[], Any], Callable[[], Any]] | None:
    """Return the methods of a vector environment that start a step and wait for its result; None if it has none.

    The third one waits for a result that nobody needs: no longer than a few seconds, if the environment can do that.
    They are used only if ``step`` consists of them: a subclass or a wrapper may do more in its ``step``.
    """
    mro = type(env).__mro__
    if "step" in getattr(env, "__dict__", ()):
        return None
    for start, wait in (_BACKGROUND_METHODS[cls.__name__] for cls in mro if cls.__name__ in _BACKGROUND_METHODS):
        owners = [next((k for k, cls in enumerate(mro) if name in vars(cls)), None) for name in (start, wait, "step")]
        if None not in owners and max(owners[:2]) <= owners[2]:  # type: ignore[type-var, operator]
            method = getattr(env, wait)
            return getattr(env, start), method, partial(wait_at_end, env) if wait == "step_wait" else method
    return None


def wait_at_end(env: Any) -> None:
    """Wait for a step of an ``AsyncVectorEnv`` whose result nobody needs; ``env`` must not be a wrapper around it.

    The time limit of its ``step_wait`` is not used: after that limit the environment would take the results of this
    step for those of its next call.

    Raises
    ------
    TimeoutError
        Not all processes have answered within a few seconds: the step is still under way.
    """
    deadline = monotonic() + WAIT_AT_END
    if not all(pipe is not None and pipe.poll(max(0.0, deadline - monotonic())) for pipe in env.parent_pipes):
        raise TimeoutError
    env.step_wait()


def needs_thread(env: Any) -> bool:
    """Whether a vector environment steps in the calling thread, without the interpreter lock.

    ale-py and EnvPool release the lock. Others say so by an attribute ``releases_interpreter_lock``.
    """
    releases = getattr(
        env, "releases_interpreter_lock", type(env).__module__.partition(".")[0] in ("ale_py", "envpool")
    )
    return bool(releases) and background_methods(env) is None
