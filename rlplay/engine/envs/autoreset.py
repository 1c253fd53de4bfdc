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

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import numpy as np

from ... import nested
from ...nested import Nested
from .dialects import final_info
from .spaces import equal_spaces

__all__ = [
    "AUTORESET_MODES",
    "SelfResetting",
    "check_not_overwritten",
    "check_saved_mode",
    "check_wrappers",
    "class_names",
    "find_self_resetting",
    "info_of",
    "last_observation",
    "read_autoreset_mode",
]

AUTORESET_MODES = ("NEXT_STEP", "SAME_STEP", "DISABLED")
"""When a vector environment may reset its sub-environments."""

_IGNORE_FINAL_OBS = {"ObservationWrapper", "NormalizeObservation"}
"""gym's wrappers that change the observations of a vector environment, but not the true last ones in its info."""

_LAST_OBSERVATION = ("final_observation", "final_obs", "closing_observation", "terminal_observation")
"""The names of the last observation in the info: the last two are those of gym 0.25 and 0.24."""

_CHANGE_OBSERVATIONS = {"ObservationWrapper", "NormalizeObservation", "AtariPreprocessing", "FrameStackObservation"}


def read_autoreset_mode(env: Any, otherwise: str | None = None) -> str:
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
    if getattr(raw, "is_async", False) or getattr(raw, "batch_size", env.num_envs) != env.num_envs:
        raise ValueError(
            f"{env!r} answers for some of its {env.num_envs} parts at a time: make it with a `batch_size` of "
            f"{env.num_envs}, or without one."
        )
    # the attribute takes precedence: the metadata of ale-py's environments are shared by all instances
    mode = getattr(raw, "autoreset_mode", None) or (getattr(env, "metadata", None) or {}).get("autoreset_mode")
    name = getattr(mode, "name", mode)
    if name is None and any(cls.__module__.partition(".")[0] == "gym" for cls in type(raw).__mro__):
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
    for wrapper in _wrappers(env):
        if class_names(wrapper) & _IGNORE_FINAL_OBS:
            raise ValueError(
                f"`final=True` needs the true last observations, but {type(wrapper).__name__} around a vector "
                "environment leaves those in its info as they were: wrap its single environments instead, or do "
                "without `final`."
            )


def last_observation(info: Mapping[str, Any], j: int, description: Nested) -> Any:
    """Return the true last observation of sub-environment ``j``, which SAME_STEP puts into the info.

    The entry is an array or a list of one observation for each sub-environment, or a nest of such.

    Parameters
    ----------
    description : nested Field
        Of one observation: it tells a list of observations from a list of the parts of observations.

    Raises
    ------
    ValueError
        The info has no last observations.
    """
    batch = info.get("final_obs", info.get("final_observation"))  # the latter in gym
    if batch is None:
        raise ValueError(
            "`final=True` needs the true last observations, but the vector environment's info has neither 'final_obs' "
            f"nor 'final_observation', only {sorted(info)}: make it in another autoreset mode, or do without `final`."
        )
    return _of_part(batch, j, description)


def _of_part(batch: Any, j: int, description: Nested) -> Any:
    if isinstance(description, dict) and isinstance(batch, Mapping):
        return {key: _of_part(part, j, description.get(key)) for key, part in batch.items()}
    if not isinstance(description, tuple) or not isinstance(batch, list | tuple) or len(batch) != len(description):
        return batch[j]
    if isinstance(batch, list) and all(one is None or isinstance(one, list | tuple) for one in batch):
        return batch[j]
    return tuple(_of_part(part, j, inner) for part, inner in zip(batch, description, strict=True))


def info_of(info: Mapping[str, Any], j: int, n: int) -> dict[str, Any]:
    """Return the info of sub-environment ``j`` of ``n``, from an info whose entries are arrays of ``n`` elements.

    A bool array ``_name`` says which sub-environments have the entry ``name``. An entry that is not an array of ``n``
    elements is that of all sub-environments. The same holds inside of dicts, lists, tuples and named tuples.
    """
    single: dict[str, Any] = {}
    for name, values in info.items():
        mask = info.get(f"_{name}")
        if mask is None or mask[j]:
            single[name] = _part_of(values, j, n)
    return single


def _part_of(values: Any, j: int, n: int) -> Any:
    if isinstance(values, Mapping):
        return info_of(values, j, n)
    if isinstance(values, list | tuple):
        parts = [_part_of(inner, j, n) for inner in values]
        return type(values)(*parts) if hasattr(values, "_fields") else tuple(parts)
    return values[j] if getattr(values, "shape", ())[:1] == (n,) else values


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
        same_step = self.mode == "SAME_STEP" and isinstance(info, Mapping)
        return same_step and any(name in info for name in _LAST_OBSERVATION)

    def resets_next(self) -> bool:
        """Whether, after a step that ended an episode, the next step resets the environment (NEXT_STEP)."""
        return self.mode == "NEXT_STEP" and bool(getattr(self._wrapper, "autoreset", True))

    def last_observation(self, info: Mapping[str, Any]) -> Nested:
        """Return the true last observation, from the info of a step that has reset the environment."""
        return next(info[name] for name in _LAST_OBSERVATION if name in info)

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
    for wrapper in _wrappers(env):
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


def _wrappers(env: Any) -> Iterator[Any]:
    """Yield the wrappers around an environment from the outside in, then the environment itself, each once."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen and len(seen) < 100:
        seen.add(id(env))
        yield env
        env = getattr(env, "env", None)


def class_names(env: Any) -> set[str]:
    """Return the names of an environment's class and of its bases."""
    return {cls.__name__ for cls in type(env).__mro__}
