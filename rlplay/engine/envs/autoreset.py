"""Environments that reset themselves: when they do it, and where their info has what.

Vector environments have an autoreset mode. What follows from a mode is in
:mod:`rlplay.engine.envs.vector_environment`. Single environments reset themselves if they are in one of two wrappers.
gym's ``AutoResetWrapper`` (also of gymnasium before 1.0; ``gym.make(..., autoreset=True)``) resets in the step that
ends an episode, and tells the last observation and the last info in the info. gymnasium's ``Autoreset`` resets in the
following step.

The libraries (gym, gymnasium, EnvPool, ale-py) are recognised by attributes and by the names of classes, since none of
them is imported.

Imports neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np

from ... import nested
from ...nested import Nested
from .dialects import final_info, is_vector
from .identity import wrappers
from .spaces import equal_spaces
from .vectors.infos import has_last, told_last

__all__ = [
    "AUTORESET_MODES",
    "SelfResetting",
    "check_not_overwritten",
    "check_saved_mode",
    "check_wrappers",
    "class_names",
    "find_self_resetting",
    "read_autoreset_mode",
]

AUTORESET_MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
"""When a vector environment may reset its sub-environments."""

_IGNORE_FINAL_OBS = {"ObservationWrapper", "NormalizeObservation"}
"""gym's wrappers that change the observations of a vector environment, but not the true last ones in its info."""

_CHANGE_OBSERVATIONS = {"ObservationWrapper", "NormalizeObservation", "AtariPreprocessing", "FrameStackObservation"}


def read_autoreset_mode(env: Any, otherwise: str | None) -> str:
    """Return when a vector environment resets its sub-environments: ``"NEXT_STEP"``, ``"SAME_STEP"`` or ``"DISABLED"``.

    Parameters
    ----------
    otherwise : str, optional
        The mode of an environment that does not say it.

    Raises
    ------
    TypeError
        It lacks an attribute that every vector environment has.
    ValueError
        It has no known autoreset mode, it says another one than ``otherwise``, or it returns the results of some
        sub-environments at a time.
    """
    for needed in ("num_envs", "single_observation_space", "single_action_space", "reset", "step"):
        if not hasattr(env, needed):
            raise TypeError(
                f"{env!r} looks like a vector environment, but has no `{needed}`: expected one of gym 0.26, gymnasium "
                "or ale-py, or EnvPool's with `env_type='gymnasium'`; else pass a list of single environments."
            )
    raw = getattr(env, "unwrapped", env)
    if _answers_for_some(raw):
        raise ValueError(
            f"{env!r} answers for some of its {env.num_envs} parts at a time: make it with a `batch_size` of "
            f"{env.num_envs}, or without one."
        )
    # the attribute takes precedence: the metadata of ale-py's environments are shared by all instances
    mode = getattr(raw, "autoreset_mode", None) or (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    name = getattr(mode, "name", mode)
    of_gym = {cls.__name__ for cls in type(raw).__mro__ if cls.__module__.startswith("gym.vector.")}
    if name is None and of_gym and (otherwise is None or of_gym & {"SyncVectorEnv", "AsyncVectorEnv"}):
        name = "SAME_STEP"
    if name is None and otherwise is not None:
        return otherwise
    if name in AUTORESET_MODES and otherwise not in (None, name):
        raise ValueError(
            f"`autoreset` is {otherwise!r}, but the vector environment {env!r} says that it resets its "
            f"sub-environments by {name!r}: leave `autoreset` out."
        )
    if name not in AUTORESET_MODES:
        raise ValueError(
            f"cannot tell when the vector environment {env!r} resets its sub-environments: expected `autoreset_mode`, "
            f"as an attribute or in its `metadata`, to be one of gymnasium's AutoresetMode "
            f"({', '.join(AUTORESET_MODES)}), got {mode!r}. gymnasium has it from 1.1 on; else say it "
            "by `rollout(..., autoreset=...)`, or pass a list of single environments."
        )
    return str(name)


def _answers_for_some(raw: Any) -> bool:
    """Whether this is an environment of EnvPool or ale-py that answers for only some of its parts at each step."""
    names = class_names(raw)
    if "AtariVectorEnv" in names:
        return bool(raw.batch_size != raw.num_envs)
    return "EnvPoolMixin" in names and bool(raw.is_async)


def check_saved_mode(saved: str, now: str) -> None:
    """Raise ValueError if a vector environment has another autoreset mode than the one that was saved."""
    if saved != now:
        raise ValueError(
            f"`state` does not fit this feed: the vector environment had the autoreset mode {saved}, and has {now}. "
            "Pass one that resets itself in the same way."
        )


def check_wrappers(env: Any) -> None:
    """Refuse wrappers that change all observations except the true last ones.

    Raises
    ------
    ValueError
        There is such a wrapper.
    """
    for wrapper in wrappers(env):
        if is_vector(wrapper) and class_names(wrapper) & _IGNORE_FINAL_OBS:
            raise ValueError(
                f"`final=True` needs the true last observations, but {type(wrapper).__name__} around a vector "
                "environment leaves those in its info as they were: wrap its single environments instead, or do "
                "without `final`."
            )


class SelfResetting:
    """How one environment resets itself.

    Attributes
    ----------
    mode : {"SAME_STEP", "NEXT_STEP"}
        As of vector environments.
    """

    def __init__(self, mode: str, wrapper: Any, *, outermost: bool) -> None:
        self.mode, self._wrapper, self._outermost = mode, wrapper, outermost
        self._names_in_reset_info: set[str] = set()

    def note_reset_info(self, names: Iterable[str]) -> None:
        """Note the names in the info of the first reset."""
        self._names_in_reset_info = set(names)

    def has_reset(self, info: Any) -> bool:
        """Whether a step that ended an episode has reset the environment as well (SAME_STEP), by its info.

        If a wrapper outside has ended the episode, as a time limit does, the environment has not been reset.
        """
        return self.mode == "SAME_STEP" and has_last(info)

    def resets_next(self) -> bool:
        """Whether, after a step that ended an episode, the next step resets the environment (NEXT_STEP)."""
        return self.mode == "NEXT_STEP" and bool(getattr(self._wrapper, "autoreset", True))

    def last_observation(self, info: Mapping[str, Any]) -> Nested:
        """Return the true last observation, from the info of a step that has reset the environment."""
        return told_last(info)

    def last_info(self, info: Mapping[str, Any]) -> dict[str, Any]:
        """Return the info of the step without that of the reset, from the info of a step that did both.

        Wrappers outside add their entries beside those of the reset. An entry counts as one of the reset if the very
        first reset returned its name.
        """
        told = dict(final_info(info) or {})
        if self._outermost:
            return told
        return {name: value for name, value in info.items() if name not in self._names_in_reset_info} | told


def find_self_resetting(env: Any, number: int) -> SelfResetting | None:
    """Return how an environment resets itself; None if it does not.

    Parameters
    ----------
    number : int
        The number of the environment in the feed, for messages.

    Raises
    ------
    ValueError
        Its last observations would not be those that it shows: a wrapper outside changes all others.
    """
    outside: list[Any] = []
    for wrapper in wrappers(env):
        names = class_names(wrapper)
        if "Autoreset" in names:
            return SelfResetting("NEXT_STEP", wrapper, outermost=not outside)
        if "AutoResetWrapper" in names:
            _check_outside(outside, wrapper, number)
            return SelfResetting("SAME_STEP", wrapper, outermost=not outside)
        outside.append(wrapper)
    return None


def check_not_overwritten(last: Nested, first: Nested) -> None:
    """Check that the true last observation shares no memory with the first one of the next episode.

    Raises
    ------
    ValueError
        It does: the environment returns the same array each time, and its reset has overwritten the last observation.
    """
    for one in nested.leaves(last):
        for other in nested.leaves(first):
            if isinstance(one, np.ndarray) and isinstance(other, np.ndarray) and np.shares_memory(one, other):
                raise ValueError(
                    "the environment resets itself (AutoResetWrapper), and returns the same array each time, so that "
                    "the true last observation of the episode is overwritten: take the wrapper off, since rlplay "
                    "resets environments by itself."
                )


def _check_outside(outside: list[Any], wrapper: Any, number: int) -> None:
    for other in outside:
        names = class_names(other)
        changes = names & _CHANGE_OBSERVATIONS or hasattr(type(other), "observation")
        if changes or not equal_spaces(other.observation_space, wrapper.observation_space):
            raise ValueError(
                f"environment {number} resets itself ({type(wrapper).__name__}), and {type(other).__name__} around it "
                "changes its observations, but not the last ones of episodes, which are in the info: take "
                f"{type(wrapper).__name__} off (`autoreset=False`), since rlplay resets environments by itself."
            )


def class_names(env: Any) -> set[str]:
    """Return the names of an environment's class and of its bases."""
    return {cls.__name__ for cls in type(env).__mro__}
