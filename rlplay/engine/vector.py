"""One vector environment that resets its parts within the step (gymnasium's SAME_STEP mode), made to write into rows.

The same face as :class:`~rlplay.engine.environment.Environments`. Neither torch nor threads, and no import of gym.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from .. import nested
from ..nested import Nested
from . import space
from .info import Entries
from .mend import mend_gym
from .rows import Array, Episode, Marks, Row
from .trace import Progress

__all__ = ["VectorEnvironment"]


class VectorEnvironment:
    """A vector environment, stepped as a whole."""

    def __init__(self, env: Any, seeds: Sequence[int], entries: Entries, progress: Progress) -> None:
        """Reset the environment once, with a seed for each of its parts.

        Raises
        ------
        ValueError
            If it resets its parts in another mode, or an observation does not fit its space.
        """
        mode = getattr(env, "metadata", {}).get("autoreset_mode")
        if getattr(mode, "name", mode) != "SAME_STEP":
            raise ValueError(
                f"vector environments must be gymnasium's, and reset their parts within the step, got {env!r} with "
                f"autoreset mode {mode}: make it with `vector_kwargs={{'autoreset_mode': "
                "gymnasium.vector.AutoresetMode.SAME_STEP}`, or pass a list of single environments (the other modes, "
                "and gym's own vector environments, are not supported yet)."
            )
        mend_gym()
        self._env, self._entries, self._progress = env, entries, progress
        self.n_envs = int(env.num_envs)
        self._described = space.fields(env.single_observation_space)
        self._batch = nested.map(self._batched, self._described)
        self.act: Nested = space.fields(env.single_action_space)
        self._act_spec = nested.structure(self.act)
        progress.doing, progress.env = "env.reset", -1
        obs, _ = env.reset(seed=list(seeds))
        self._first = [np.array(part) for part in space.cast(self._batch, obs)]
        self.obs: Nested = space.along(self._described, obs)
        progress.doing = "getting ready"
        self._ret = np.zeros(self.n_envs)
        self.episodes: list[Episode] = []

    def _batched(self, field: space.Field) -> space.Field:
        return space.Field((self.n_envs, *field.shape), field.dtype, field.integral)

    def begin(self, row: Row) -> None:
        """Write the very first observations: row 0 of the first fragment."""
        row.begin()
        for leaf, part in zip(row.obs, self._first, strict=True):
            leaf[...] = part
        self._first.clear()

    def release(self) -> None:
        """Do nothing: there are no sticky fragments here."""

    def step(self, now: Row, then: Row, marks: Marks, last: Row | None, *, sticky: bool) -> list[int]:
        """Carry out the actions in ``then.act``; fill in the rest of ``then`` and of ``marks``.

        Returns
        -------
        list of int
            The environments whose episode ended with this very transition.
        """
        self._progress.env = -1
        action = self._act_spec.unflatten([leaf.copy() for leaf in then.act])
        obs, reward, terminated, truncated, info = self._env.step(action)
        then.rew[:] = reward
        self._ret += reward
        marks.terminated[:], marks.truncated[:] = terminated, truncated
        np.logical_or(marks.terminated, marks.truncated, out=then.fin)
        np.add(now.stepno, 1, out=then.stepno)
        self._write(then.obs, obs)
        ended = [int(j) for j in np.flatnonzero(then.fin)]
        for j in ended:
            self.episodes.append(Episode(j, float(self._ret[j]), int(then.stepno[j])))
            if last is not None:
                for leaf, part in zip(last.obs, space.cast(self._described, _final_obs(info, j)), strict=True):
                    leaf[j] = part
        self._record(info, marks.info, ended)
        self._ret[ended] = 0.0
        then.stepno[ended] = 0
        return ended

    def _write(self, leaves: list[Array], obs: Nested) -> None:
        for leaf, part in zip(leaves, space.cast(self._batch, obs), strict=True):
            leaf[...] = part

    def _record(self, info: Mapping[str, Any], into: list[Array], ended: Sequence[int]) -> None:
        if not self._entries.entries:
            return
        for j in range(self.n_envs):
            source = info.get("final_info", {}) if j in ended else info
            self._entries.record(_one(source, j), into, j)

    def render(self) -> None:
        """Let the environment show itself."""
        self._env.render()

    def close(self) -> list[str]:
        """Do nothing: the vector environment stays the user's."""
        return []


def _final_obs(info: Mapping[str, Any], j: int) -> Any:
    """Find the true last observation of part ``j``: an array of objects, or containers of batches."""
    final = info.get("final_obs")
    if final is None:
        raise ValueError(
            "`final=True` needs the true last observations, but the vector environment's info has no 'final_obs'."
        )
    if isinstance(final, np.ndarray):
        return final[j]
    return nested.map(lambda batch: batch[j], final)


def _one(info: Mapping[str, Any], j: int) -> dict[str, Any]:
    """Pick the info of part ``j`` out of a dict of arrays, where ``_name`` tells for whom ``name`` is there."""
    single: dict[str, Any] = {}
    for name, values in info.items():
        there = info.get(f"_{name}")
        if there is not None and there[j]:
            single[name] = _one(values, j) if isinstance(values, Mapping) else values[j]
    return single
