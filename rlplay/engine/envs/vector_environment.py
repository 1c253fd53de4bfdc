"""One vector environment, made to write into rows: gym 0.26's, gymnasium's, EnvPool's or ale-py's.

The same face as ``EnvironmentList``, a list of them. Neither torch nor threads, and no import of gym.

When the parts are reset
========================

A vector environment is stepped as a whole, so a part whose episode has ended must be reset. There are three modes.

``SAME_STEP`` (gym's only one)
    The step that ends an episode resets the part, and tells the last observation and the last info beside. (ale-py
    tells no info: it is absent there. Observations whose array the reset overwrites are lost to ``final``.)
``DISABLED``
    The part is left as it is, and reset here, in the same step: only it, by a mask.

The rows are those of a list of the same environments (:mod:`rlplay.engine.core` has the table).

``NEXT_STEP`` (gymnasium's and ale-py's default, EnvPool's only one)
    The *following* step resets the part, whatever the action. Row 2 shows the last observation, ``x7``, and row 3
    the first of the next episode, ``y0``, with a step between them that was no transition::

        row                 0       1       2       3       4 = T
        -----------------------------------------------------------------
        state.stepno        5       6       0       0       1
        state.obs           x5      x6      x7      y0      y1
        state.act           a4      a5      a6      a6      b0
        state.rew           r5      r6      r7      0       q1
        state.fin           -       -       True    True    -
        -----------------------------------------------------------------
        transition          0 -> 1  1 -> 2  2 -> 3  3 -> 4
        env.terminated      -       True    True    -
        env.truncated       -       -       -       -
        env.valid           True    True    -       True

    That step is written as the padding of a sticky fragment is, which is the only way for the laws to hold. An episode
    begins at row 3, so ``fin`` is True there, and the recurrent state is reset again, which keeps ``x7`` out of it;
    then by ``fin[t+1] == terminated[t] | truncated[t]`` the step repeats how the old one ended. It carried out no
    action and earned no reward, so ``act`` stays and ``rew`` is 0; its info is absent. All other transitions are those
    of the list, and so are ``final``, where ``x7`` is, too, and ``episodes()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import nested
from ...nested import Nested
from ..concurrency.progress import Progress
from . import autoreset, spaces
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .rows import Array, Episode, OutcomeRow, StateRow

__all__ = ["VectorEnvironment"]


class VectorEnvironment:
    """A vector environment, stepped as a whole. It stays the user's, and is never closed.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        What one observation looks like, in the containers that they come in; what one action looks like.
    episodes : list of Episode
        The episodes that have ended since somebody last took them away.
    """

    def __init__(
        self, env: Any, seeds: Sequence[int], entries: Entries, progress: Progress, *, final: bool = False
    ) -> None:
        """Reset the environment once, with a seed for each of its parts.

        ``SyncVectorEnv`` and ``AsyncVectorEnv`` of gym and gymnasium, and ale-py's, seed each part with its own. Others
        get the first seed. EnvPool is seeded when it is made (``envpool.make(..., seed=)``), and not here.

        Parameters
        ----------
        final : bool
            Whether the true last observations will be asked for.

        Raises
        ------
        TypeError, ValueError
            If it is no vector environment that is known, or does not tell the true last observations although they
            will be asked for, or if spaces cannot be recorded, or an observation does not fit.
        """
        patch_gym()
        self._mode = autoreset.mode_of(env)
        if final and self._mode == "SAME_STEP":
            autoreset.check_sees_last(env)
        self._env, self._entries, self._progress = env, entries, progress
        self.n_envs = int(env.num_envs)
        self._described = spaces.fields(env.single_observation_space)
        self._batch = nested.map(self._batched, self._described)
        self.act: Nested = spaces.fields(env.single_action_space)
        self._act_spec = nested.structure(self.act)
        progress.doing, progress.env = "env.reset", -1
        obs, info = autoreset.first(env, seeds)
        self._first = spaces.cast(self._batch, obs)
        self.obs: Nested = spaces.along(self._described, obs)
        progress.doing = "getting ready"
        # most spaces are a single array, for which taking apart can be left out
        self._plain = self._batch if isinstance(self._batch, spaces.Field) else None
        self._told_by_reset = set(info)
        asked = {"final_info"}.union(*({entry.name, entry.name.partition(".")[0]} for entry in entries.entries))
        self._asked = asked | {f"_{name}" for name in asked}  # with their masks
        self._ret = np.zeros(self.n_envs)
        self._over = np.zeros(self.n_envs, bool)  # NEXT_STEP: whom the next step resets, and how their episodes ended
        self._how = self._over, self._over
        self.episodes: list[Episode] = []

    def _batched(self, field: spaces.Field) -> spaces.Field:
        return spaces.Field((self.n_envs, *field.shape), field.dtype, field.integral)

    def begin(self, row: StateRow) -> None:
        """Write the very first observations: row 0 of the first fragment."""
        row.begin()
        for leaf, part in zip(row.obs, self._first, strict=True):
            leaf[...] = part
        self._first.clear()

    def release(self) -> None:
        """Do nothing: there are no sticky fragments here."""

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then.act``; fill in the rest of ``then`` and of ``outcome``, which come cleared.

        Returns
        -------
        list of int
            The environments whose episode ended with this very transition.
        """
        self._progress.env = -1
        action = self._act_spec.unflatten([leaf.copy() for leaf in then.act])
        obs, reward, terminated, truncated, info = self._env.step(action)
        then.rew[:] = reward
        outcome.terminated[:], outcome.truncated[:] = terminated, truncated
        self._write(then.obs, obs)
        if self._over.any():
            self._begin_anew(now, then, outcome)
        self._ret += np.where(outcome.valid, reward, 0.0)
        np.logical_or(outcome.terminated, outcome.truncated, out=then.fin)
        np.add(now.stepno, 1, out=then.stepno)
        over = then.fin & outcome.valid
        ended: list[int] = np.flatnonzero(over).tolist()
        for j in ended:
            self.episodes.append(Episode(j, float(self._ret[j]), int(then.stepno[j])))
        self._ret[over] = 0.0
        then.stepno[then.fin] = 0
        if self._entries.entries:
            self._record(info, outcome, over)
        if ended and last is not None:
            self._write_last(last.obs, then.obs, info, ended)
        if self._mode == "NEXT_STEP":
            self._over, self._how = over, (outcome.terminated.copy(), outcome.truncated.copy())
        elif self._mode == "DISABLED" and ended:
            self._reset(then.obs, over)
        return ended

    def _write(self, leaves: list[Array], obs: Nested) -> None:
        plain = self._plain
        if plain is not None and type(obs) is np.ndarray and obs.dtype == plain.dtype and obs.shape == plain.shape:
            leaves[0][...] = obs
            return
        for leaf, part in zip(leaves, spaces.cast(self._batch, obs), strict=True):
            leaf[...] = part

    def _begin_anew(self, now: StateRow, then: StateRow, outcome: OutcomeRow) -> None:
        """Make those that were reset by this very step rows that no transition leads to."""
        over = self._over
        outcome.valid[over] = False
        for mark, how in zip((outcome.terminated, outcome.truncated), self._how, strict=True):
            mark[over] = how[over]
        then.rew[over] = 0.0
        for source, target in zip(now.act, then.act, strict=True):
            target[over] = source[over]

    def _write_last(
        self, leaves: list[Array], shown: list[Array], info: Mapping[str, Any], ended: Sequence[int]
    ) -> None:
        """Write the true last observations, which SAME_STEP tells beside, and the others show for once."""
        if self._mode == "SAME_STEP":
            for j in ended:
                parts = spaces.cast(self._described, autoreset.last_obs(info, j), f"final_obs[{j}]")
                for leaf, part in zip(leaves, parts, strict=True):
                    leaf[j] = part
        else:
            for leaf, part in zip(leaves, shown, strict=True):
                leaf[ended] = part[ended]

    def _reset(self, leaves: list[Array], over: Array) -> None:
        """Begin the next episodes of some parts, and leave the others alone."""
        self._progress.doing = "env.reset"
        obs, _ = self._env.reset(options={"reset_mask": over.copy()})
        self._progress.doing = "env.step"
        for leaf, part in zip(leaves, spaces.cast(self._batch, obs), strict=True):
            leaf[over] = part[over]

    def _record(self, info: Mapping[str, Any], outcome: OutcomeRow, over: Array) -> None:
        same_step = self._mode == "SAME_STEP"
        info = {name: values for name, values in info.items() if name in self._asked}
        for j in np.flatnonzero(outcome.valid).tolist():
            self._progress.env = j
            told = autoreset.part(info, j, self.n_envs)
            if same_step and over[j]:
                told = self._at_end(told)
            self._entries.record(told, outcome.info, j)
        self._progress.env = -1

    def _at_end(self, told: Mapping[str, Any]) -> dict[str, Any]:
        """Find out what was told of the step that ended an episode, beside what was told of the reset.

        The part's own info is in ``final_info``. Wrappers around the vector environment put theirs where that of the
        reset is: it is told by the names that the first reset used.
        """
        beside = {name: value for name, value in told.items() if name not in self._told_by_reset}
        return beside | dict(told.get("final_info") or {})

    def render(self) -> None:
        """Let the environment show itself."""
        self._env.render()

    def close(self) -> list[str]:
        """Do nothing: the vector environment stays the user's."""
        return []
