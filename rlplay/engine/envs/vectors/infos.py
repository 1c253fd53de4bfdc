"""Reads the infos of vector environments: the info of one sub-environment, and the true last observations.

Imports neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any, TypeGuard

import numpy as np

from ....nested import Nested
from ..dialects import final_info

__all__ = ["has_last", "info_at_end", "info_of", "last_observation", "told_last"]

_LAST_OBSERVATION = ("final_observation", "final_obs", "closing_observation", "terminal_observation")
"""The names of the last observation in the info: the last two are those of gym 0.25 and 0.24."""


def has_last(info: Any) -> TypeGuard[Mapping[str, Any]]:
    """Return whether the info of an environment that may have reset itself has the true last observation."""
    return isinstance(info, Mapping) and any(name in info for name in _LAST_OBSERVATION)


def told_last(info: Mapping[str, Any]) -> Nested:
    """Return the true last observation of an environment that has reset itself, from its own info."""
    return next(info[name] for name in _LAST_OBSERVATION if name in info)


def info_at_end(single: Mapping[str, Any], names_in_reset_info: Collection[str]) -> dict[str, Any]:
    """Return the info of the step that ended an episode, without the info of the reset (SAME_STEP).

    The sub-environment's own info is in ``final_info``. Wrappers around the vector environment add their entries beside
    those of the reset. An entry counts as one of the reset if the very first reset returned its name. A sub-environment
    may have reset itself as well (gym's AutoResetWrapper): then its own info is inside of ``final_info``.
    """
    added = {name: value for name, value in single.items() if name not in names_in_reset_info}
    told = single.get("final_info") or {}
    return added | dict(final_info(told) or told)


def last_observation(info: Mapping[str, Any], j: int, description: Nested) -> Any:
    """Return the last observation of the episode that sub-environment ``j`` has just ended, from the info.

    A vector environment in the autoreset mode SAME_STEP puts it there. The entry is an array or a list of one
    observation for each sub-environment, or a nest of such.

    Parameters
    ----------
    description : nested Field
        Of one observation: it tells a list of observations from a list of the parts of observations.

    Raises
    ------
    ValueError
        The info has no last observations.
    """
    told = info.get("final_info")
    inner = told[j] if isinstance(told, np.ndarray | list) else None  # sub-environments may reset themselves as well
    if has_last(inner):
        return told_last(inner)
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
