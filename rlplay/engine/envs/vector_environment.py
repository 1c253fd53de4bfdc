"""One vector environment that writes into rows: gym 0.26's, gymnasium's, EnvPool's or ale-py's.

Implements the protocol of ``envs/protocol.py``. Imports neither torch, threads, gym nor gymnasium.

Autoreset modes
===============

A vector environment is stepped as a whole, so a sub-environment whose episode has ended must be reset at some point.
``envs/autoreset.py`` finds out which of three modes it has.

``SAME_STEP`` (gym's only one)
    The step that ends an episode also resets the sub-environment. It returns the first observation of the next episode;
    the true last observation and the last info are in the info. (ale-py puts no last info there, so that info entries
    are absent. A last observation whose array the reset overwrites is lost to ``final``.)
``DISABLED``
    The step does not reset the sub-environment. ``VectorEnvironment.step`` resets those that ended, by a mask.

In both modes the rows are those of a list of the same environments (:mod:`rlplay.engine.core` has the table).

``NEXT_STEP`` (gymnasium's and ale-py's default, EnvPool's only one)
    The *following* step resets the sub-environment, whatever the action. Row 2 shows the last observation, ``x7``, and
    row 3 the first of the next episode, ``y0``; the step between them is no transition::

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

    The step 2 -> 3 is written as the padding of a sticky fragment is; no other way satisfies the laws of the rows. The
    episode begins at row 3, so ``fin`` is True there, and the recurrent state is reset once more, which removes ``x7``
    from it. By ``fin[t+1] == terminated[t] | truncated[t]`` the step repeats how the old episode ended. It carried out
    no action and earned no reward, so ``act`` repeats and ``rew`` is 0; its info is absent. All other transitions are
    those of a list, and so are ``final`` (which has ``x7`` as well) and ``episodes()``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ... import nested
from ...nested import Nested
from ..concurrency.progress import Progress, vector_number
from . import autoreset, spaces
from .actions import ActionForm
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .returned.numbers import to_flags, to_rewards
from .returned.refused import five_values
from .rows import Array, Episode, ObservationWriter, OutcomeRow, StateRow
from .saving.environment import restore_environments, save_environments
from .vectors import infos
from .vectors.background import background_methods
from .vectors.closing import close_environments, is_stuck
from .vectors.first_reset import check_reset
from .vectors.interrupted import take_results

__all__ = ["VectorEnvironment"]


class VectorEnvironment:
    """A vector environment, stepped as a whole. Implements :class:`~rlplay.engine.envs.protocol.Environments`.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        Shape and dtype of one sub-environment's observation, in the containers that the first observations came in, and
        of its action.
    spaces : tuple
        The observation space and the action space of one sub-environment.
    instances : list
        The vector environment.
    steps_in_background : bool
        Whether it has methods that start a step and wait for it (:func:`.vectors.background.background_methods`).
    episodes : list of Episode
        The episodes that ended, in order. The stepper takes the list away and puts an empty one in its place.
    """

    def __init__(
        self,
        env: Any,
        result: Any,
        mode: str,
        entries: Entries,
        progress: Progress,
        *,
        final: bool = False,
        first: int = 0,
        number: int | None = None,
    ) -> None:
        """Take an environment that has been reset.

        Parameters
        ----------
        env : vector environment
            Of gym 0.26, gymnasium, EnvPool or ale-py.
        result : object
            What ``reset`` has returned.
        mode : {"SAME_STEP", "NEXT_STEP", "DISABLED"}
            Its autoreset mode.
        entries, progress, final
            The info entries to record; where the current activity is noted; whether :meth:`step` is given ``last``.
        first, number : int
            The number of the first sub-environment in the feed; its place in a list of vector environments, if any.

        Raises
        ------
        TypeError, ValueError
            It hides the true last observations although ``final``, its spaces cannot be recorded, or an observation
            does not fit its space.
        """
        patch_gym()
        self._mode = mode
        if final and self._mode == "SAME_STEP":
            autoreset.check_wrappers(env)
        self._env, self._entries, self._progress = env, entries, progress
        self._first, self._number, self._owned = first, vector_number(number), list[Any]()
        self.instances, self.spaces = [env], (env.single_observation_space, env.single_action_space)
        methods: Any = background_methods(env)
        self.steps_in_background, self._has_started = methods is not None, False
        self._start_step, self._wait_for_step, self._wait_at_end = methods or [env.step] * 3
        self.n_envs = int(env.num_envs)
        self._obs_description = spaces.fields(env.single_observation_space)
        self._batch_description = nested.map(lambda field: field.batched(self.n_envs), self._obs_description)
        self.act: Nested = spaces.fields(env.single_action_space)
        self._actions = ActionForm(self.act, self.n_envs, first)
        obs, info = check_reset(env, result)
        self._first_obs = spaces.cast(self._batch_description, obs)
        self.obs: Nested = spaces.along(self._obs_description, obs)
        self._writer = ObservationWriter(self._batch_description, obs, None)
        progress.doing = "getting ready"
        self._names_in_reset_info = set(info)
        names = {"final_info"}.union(*({entry.name, entry.name.partition(".")[0]} for entry in entries.entries))
        self._names_to_read = names | {f"_{name}" for name in names}  # with their masks
        self._returns = np.zeros(self.n_envs)
        # NEXT_STEP: the sub-environments that the next step resets, and (terminated, truncated) of the step before it
        self._reset_next = np.zeros(self.n_envs, bool)
        self._previous_ends = self._reset_next, self._reset_next
        self._ignoring: list[int] = []  # the same sub-environments: the next step ignores their actions
        self.episodes: list[Episode] = []

    def report_to(self, progress: Progress) -> None:
        """Note the current activity there from now on: another thread is to step the environment."""
        self._progress = progress

    def begin(self, row: StateRow) -> None:
        """Write row 0 of the first fragment."""
        row.begin()
        for leaf, part in zip(row.obs, self._first_obs, strict=True):
            leaf[...] = part
        self._first_obs.clear()

    def release(self) -> None:
        """Do nothing: a vector environment is never collected with ``sticky``, so none has been stopped."""

    def start(self, then: StateRow) -> None:
        """Start the next step, with the actions in ``then.act``."""
        self._progress.env = self._number
        self._start_step(self._actions.together(then.act, self._ignoring, self._progress))
        self._has_started = True

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then.act``; write the rest of ``then``, and ``outcome``; return who has ended.

        ``outcome`` holds default values already. ``sticky`` is ignored: ``rollout`` refuses it for vector environments.
        """
        self._progress.env = self._number
        obs, reward, terminated, truncated, info = five_values(self._carry_out(then))
        reward = then.rew[:] = to_rewards(reward, self.n_envs)
        outcome.terminated[:] = to_flags(terminated, self.n_envs, "terminated")
        outcome.truncated[:] = to_flags(truncated, self.n_envs, "truncated")
        self._writer.write(then, ..., obs)
        if self._reset_next.any():
            self._invalidate_resets(now, then, outcome)
        self._returns += np.where(outcome.valid, reward, 0.0)
        np.logical_or(outcome.terminated, outcome.truncated, out=then.fin)
        np.add(now.stepno, 1, out=then.stepno)
        has_ended = then.fin & outcome.valid
        ended: list[int] = np.flatnonzero(has_ended).tolist()
        for j in ended:
            self.episodes.append(Episode(self._first + j, float(self._returns[j]), int(then.stepno[j])))
        self._returns[has_ended] = 0.0
        then.stepno[then.fin] = 0
        if self._entries.entries:
            self._record_info(info, outcome, has_ended)
        if ended and last is not None:
            self._write_last(last.obs, then.obs, info, ended)
        if self._mode == "NEXT_STEP":
            self._reset_next, self._ignoring = has_ended, ended
            self._previous_ends = outcome.terminated.copy(), outcome.truncated.copy()
        elif self._mode == "DISABLED" and ended:
            self._reset(then.obs, has_ended)
        return ended

    def _carry_out(self, then: StateRow) -> Any:
        """Return what the step has returned, be it started already or not."""
        try:
            if not self._has_started:
                return self._env.step(self._actions.together(then.act, self._ignoring, self._progress))
            self._has_started = False  # if the wait fails or is interrupted, a second one might never end
            return self._wait_for_step()
        except KeyboardInterrupt:
            if not self._owned:  # the user may go on with the environment
                take_results(self._env)
            raise

    def _invalidate_resets(self, now: StateRow, then: StateRow, outcome: OutcomeRow) -> None:
        """NEXT_STEP: write the columns that this step has reset as no transition (the module's table, 2 -> 3)."""
        reset = self._reset_next
        outcome.valid[reset] = False
        for column, previous in zip((outcome.terminated, outcome.truncated), self._previous_ends, strict=True):
            column[reset] = previous[reset]
        then.rew[reset] = 0.0
        for source, target in zip(now.act, then.act, strict=True):
            target[reset] = source[reset]

    def _write_last(self, leaves: list[Array], then_obs: list[Array], info: Any, ended: Sequence[int]) -> None:
        """Write the true last observations: from the info in SAME_STEP, else from the observations of this step."""
        if self._mode == "SAME_STEP":
            for j in ended:
                last_obs = infos.last_observation(info, j, self._obs_description)
                parts = spaces.cast(self._obs_description, last_obs, f"final_obs[{j}]")
                for leaf, part in zip(leaves, parts, strict=True):
                    leaf[j] = part
        else:
            for leaf, part in zip(leaves, then_obs, strict=True):
                leaf[ended] = part[ended]

    def _reset(self, leaves: list[Array], has_ended: Array) -> None:
        """DISABLED: reset the sub-environments whose episode ended, and write their first observations."""
        self._progress.doing = "env.reset"
        obs, _ = self._env.reset(options={"reset_mask": has_ended.copy()})
        self._progress.doing = "env.step"
        for leaf, part in zip(leaves, spaces.cast(self._batch_description, obs), strict=True):
            leaf[has_ended] = part[has_ended]

    def _record_info(self, info: Mapping[str, Any], outcome: OutcomeRow, has_ended: Array) -> None:
        same_step = self._mode == "SAME_STEP"
        info = {name: values for name, values in info.items() if name in self._names_to_read}
        for j in np.flatnonzero(outcome.valid).tolist():
            self._progress.env = self._first + j
            single = infos.info_of(info, j, self.n_envs)
            if same_step and has_ended[j]:
                single = infos.info_at_end(single, self._names_in_reset_info)
            self._entries.record(single, outcome.info, j)
        self._progress.env = self._number

    def save_state(self, *, whole: bool) -> list[dict[str, Any]]:
        """Return a list of one dict: the state of the environment, None unless ``whole``, and that of its episodes."""
        state = {
            "mode": self._mode,
            "returns": self._returns.tolist(),
            "reset_next": self._reset_next.tolist(),
            "previous_ends": [ends.tolist() for ends in self._previous_ends],
        }
        return [{**state, "env": save_environments([self._env], self._first, self._progress, whole=whole)[0]}]

    def load_state(self, saved: Sequence[dict[str, Any]]) -> None:
        """Put the environment and its episodes into the state that :meth:`save_state` returned."""
        (one,) = saved
        autoreset.check_saved_mode(one["mode"], self._mode)
        restore_environments([self._env], [one["env"]], self._first, self._progress)
        self._returns[:] = one["returns"]
        self._reset_next = np.array(one["reset_next"], bool)
        self._ignoring = np.flatnonzero(self._reset_next).tolist()
        self._previous_ends = np.array(one["previous_ends"][0], bool), np.array(one["previous_ends"][1], bool)

    def own(self, envs: list[Any]) -> None:
        """Close the environment at :meth:`close`, too."""
        self._owned = envs

    def render(self) -> None:
        """Call ``render`` of the vector environment."""
        self._env.render()

    def close(self) -> list[str]:
        """Wait for a step that has been started; close the environment if a factory has made it."""
        stuck = False
        try:
            if self._has_started:
                self._has_started = False
                stuck = is_stuck(self._wait_at_end)
        finally:  # also after a KeyboardInterrupt
            complaints = close_environments(self._owned, stuck=stuck)
        return complaints
