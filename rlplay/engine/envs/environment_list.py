"""A list of single environments that write into rows, of any dialect (:mod:`rlplay.engine.envs.dialects`).

Imports neither torch, threads, gym nor gymnasium.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...nested import Nested
from ..concurrency.exceptions import closed_on_error
from ..concurrency.progress import Progress
from . import spaces
from .actions import ActionForm
from .autoreset import SelfResetting, check_not_overwritten, find_self_resetting
from .dialects import check_environments, make_each, read_old_step, seeded_reset, split_reset
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .returned.numbers import to_flag, to_reward
from .returned.refused import observation_of
from .rows import Array, Episode, ObservationWriter, OutcomeRow, StateRow
from .saving.environment import restore_environments, save_environments
from .vectors.closing import close_environments

__all__ = ["EnvironmentList"]

_ONE = np.array(1)  # NumPy would convert a plain number at each addition


class EnvironmentList:
    """A list of environments that are stepped one after the other, as the protocol ``Environments`` asks.

    Instances stay the user's and are never closed. Environments made by factories are closed by :meth:`close`.

    Environments that reset themselves in the step that ends an episode have the same rows as others. Those that do it
    in the next step have the rows of NEXT_STEP (:mod:`.vector_environment` has the table), but with ``sticky`` or
    ``single_episode`` they are reset at the end of the episode, and have the same rows as others.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        Shape and dtype of one observation, in the containers that the first observation came in, and of one action.
    spaces : tuple
        The observation space and the action space.
    instances : list
        The environments.
    episodes : list of Episode
        The episodes that ended, in order. The stepper takes the list away and puts an empty one in its place.
    """

    steps_in_background = False

    def __init__(
        self,
        sources: Sequence[Any],
        seeds: Sequence[int | None],
        entries: Entries,
        progress: Progress,
        *,
        single_episode: bool = False,
        first: int = 0,
    ) -> None:
        """Call the factories, and reset each environment exactly once, with its seed.

        Parameters
        ----------
        sources : sequence
            Environments, and factories of environments.
        seeds : sequence of int or None
            One for each environment; also passed to factories that have a parameter ``seed``. None: no seed is given.
        entries : Entries
            The info entries to record.
        progress : Progress
            Where the current activity is noted.
        single_episode : bool
            Whether no environment is reset at the end of its episode. Then its last observation is written as if it
            were the first of another episode, and it must not be stepped again (:meth:`step` with ``sticky``).
        first : int
            The number of the first environment in the feed, where another list holds those before it.

        Raises
        ------
        TypeError, ValueError
            A source is no environment, spaces differ or cannot be recorded, or an observation does not fit its space.
        """
        self._entries, self._progress = entries, progress
        self._single_episode, self._first_number = single_episode, first
        self._made: list[Any] = []
        with closed_on_error(self.close):
            self.instances = make_each(sources, seeds, progress, first, self._made)
            patch_gym()
            progress.doing, progress.env = "checking the spaces", -1
            check_environments(self.instances, first)
            self.spaces = self.instances[0].observation_space, self.instances[0].action_space
            self._obs_description = spaces.fields(self.instances[0].observation_space)
            self.act = spaces.fields(self.instances[0].action_space)
            progress.doing = "env.reset"
            own = ((j, find_self_resetting(env, first + j)) for j, env in enumerate(self.instances))
            self._self_resetting: dict[int, SelfResetting] = {j: how for j, how in own if how is not None}
            self.obs, self._first_obs, self._writer, self._reset_returns_info = self._reset_all(seeds)
            progress.doing, progress.env = "getting ready", -1
            self._actions = ActionForm(self.act, self.n_envs, first)
            columns, numbers = range(self.n_envs), range(first, first + self.n_envs)
            self._columns: Any = columns, numbers, self.instances, self._writer.slices or columns
            self._returns = [0.0] * self.n_envs
            self._stopped: dict[int, tuple[bool, bool]] = {}  # column -> (terminated, truncated), see `release`
            self._reset_next: set[int] = set()  # those of the stopped columns whose next step resets them
            self.episodes: list[Episode] = []

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""
        return len(self.instances)

    def _reset_all(
        self, seeds: Sequence[int | None]
    ) -> tuple[Nested, list[list[Array]], ObservationWriter, list[bool]]:
        """Reset each environment with its seed.

        Returns the fields of one observation, in the containers that the first one came in; the leaves of each first
        observation, copied, since an environment may reuse its arrays; a writer of the form of the first one; and
        whether ``reset`` of each environment returns a pair of observation and info.
        """
        obs: Nested = None
        writer: Any = None
        first_obs: list[list[Array]] = []
        returns_info: list[bool] = []
        for j, (env, seed) in enumerate(zip(self.instances, seeds, strict=True)):
            self._progress.env = self._first_number + j
            result = seeded_reset(env, seed)
            value, has_info = split_reset(self._obs_description, result)
            if has_info and j in self._self_resetting:
                self._self_resetting[j].note_reset_info(result[1] or ())
            first_obs.append([np.array(leaf) for leaf in spaces.cast(self._obs_description, value)])
            returns_info.append(has_info)
            if writer is None:
                obs = spaces.along(self._obs_description, value)
                writer = ObservationWriter(self._obs_description, value, self.n_envs)
        return obs, first_obs, writer, returns_info

    def begin(self, row: StateRow) -> None:
        """Write row 0 of the first fragment."""
        row.begin()
        for j, parts in enumerate(self._first_obs):
            for leaf, part in zip(row.obs, parts, strict=True):
                leaf[j] = part
        self._first_obs.clear()

    def start(self, then: StateRow) -> None:
        """Do nothing: the environments are stepped by :meth:`step`."""

    def release(self) -> None:
        """Resume the environments that ``sticky`` has stopped: a new fragment begins."""
        for j in [j for j in self._stopped if j not in self._reset_next]:
            del self._stopped[j]

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then.act``; write the rest of ``then``, and ``outcome``.

        ``outcome`` holds default values already. The true last observation of an episode that ended is written into
        ``last``, if given; then its environment is reset. Returns the columns of the environments whose episode ended.
        """
        progress, stopped, returns = self._progress, self._stopped, self._returns
        ended, rewards, np_false = list[int](), then.rewards, np.False_
        write, vectors = self._writer.write, then.flat[0] if self._writer.slices else None
        record = self._entries.record if self._entries.entries else None
        actions = self._actions.each(then.act, stopped, progress)
        np.add(now.stepno, _ONE, then.stepno)
        for j, number, env, part, action in zip(*self._columns, actions, strict=True):
            if stopped and j in stopped:
                self._repeat_row(j, now, then, outcome)
                if j in self._reset_next:
                    self._step_into_next_episode(j, action, then)
                continue
            progress.env = number
            result = env.step(action)
            try:
                obs, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                obs, reward, terminated, truncated, info = read_old_step(result)
            if type(reward) is not float:
                reward = to_reward(reward)
            rewards[j] = reward
            returns[j] += reward
            going_on = (terminated is False or terminated is np_false) and (truncated is False or truncated is np_false)
            if not going_on and any(ends := (to_flag(terminated, "terminated"), to_flag(truncated, "truncated"))):
                ended.append(j)
                obs = self._end_episode(j, obs, info, ends, then, outcome, last, sticky=sticky)
            elif record is not None:
                record(info, outcome.info, j)
            if vectors is None:
                write(then, j, obs)
            else:
                try:
                    vectors[part] = obs  # raises unless `obs` is a vector of this length and dtype
                except (TypeError, ValueError):
                    write(then, j, obs)
        return ended

    def _end_episode(
        self,
        j: int,
        obs: Nested,
        info: Any,
        ends: tuple[bool, bool],
        then: StateRow,
        outcome: OutcomeRow,
        last: StateRow | None,
        *,
        sticky: bool,
    ) -> Nested:
        """Write how an episode ended, and its true last observation; return the observation of the next row."""
        own, has_reset, first_obs = self._self_resetting.get(j), False, None
        if own is not None and (has_reset := own.has_reset(info)):
            first_obs, obs, info = obs, own.last_observation(info), own.last_info(info)
            if last is not None or self._single_episode:
                check_not_overwritten(obs, first_obs)
        self._entries.record(info, outcome.info, j)
        outcome.terminated[j], outcome.truncated[j] = ends
        self.episodes.append(Episode(self._first_number + j, self._returns[j], int(then.stepno[j])))
        self._returns[j], then.stepno[j], then.fin[j] = 0.0, 0, True
        if last is not None:
            self._writer.write(last, j, obs)
        if sticky:
            self._stopped[j] = ends
        if self._single_episode:
            return obs
        if own is not None and own.resets_next() and not sticky:
            self._stopped[j] = ends
            self._reset_next.add(j)
            return obs
        return first_obs if has_reset else self._reset(j)

    def _step_into_next_episode(self, j: int, action: Any, then: StateRow) -> None:
        """Step an environment that resets itself at this step, and write the first observation of the next episode.

        If this step reports an end, too, a wrapper outside has ended its own episode: then all wrappers are reset.
        """
        self._progress.env = self._first_number + j
        result = self.instances[j].step(action)
        obs, _, terminated, truncated, _ = result if len(result) == 5 else read_old_step(result)
        is_over = to_flag(terminated, "terminated") or to_flag(truncated, "truncated")
        self._writer.write(then, j, self._reset(j) if is_over else obs)
        del self._stopped[j]
        self._reset_next.remove(j)

    def _reset(self, j: int) -> Nested:
        self._progress.doing = "env.reset"
        obs = observation_of(self.instances[j].reset(), has_info=self._reset_returns_info[j])
        self._progress.doing = "env.step"
        return obs

    def _repeat_row(self, j: int, now: StateRow, then: StateRow, outcome: OutcomeRow) -> None:
        """Write the column of a stopped environment: it repeats the row before, and its transition is not valid."""
        for source, target in zip(now.obs + now.act, then.obs + then.act, strict=True):
            target[j] = source[j]
        then.stepno[j], then.rew[j], then.fin[j] = 0, 0.0, True
        outcome.terminated[j], outcome.truncated[j] = self._stopped[j]
        outcome.valid[j] = False

    def save_state(self, *, whole: bool) -> list[dict[str, Any]]:
        """Return for each environment its own state, which is None unless ``whole``, and the state of its episode."""
        envs = save_environments(self.instances, self._first_number, self._progress, whole=whole)
        return [
            {
                "return": self._returns[j],
                "stopped": list(self._stopped.get(j, ())),
                "reset_next": j in self._reset_next,
                "env": env,
            }
            for j, env in enumerate(envs)
        ]

    def load_state(self, saved: Sequence[dict[str, Any]]) -> None:
        """Put the environments and their episodes into the states that :meth:`save_state` returned."""
        restore_environments(self.instances, [one["env"] for one in saved], self._first_number, self._progress)
        self._returns[:] = [one["return"] for one in saved]
        self._stopped = {j: tuple(one["stopped"]) for j, one in enumerate(saved) if one["stopped"]}
        self._reset_next = {j for j, one in enumerate(saved) if one["reset_next"]}

    def own(self, envs: list[Any]) -> None:
        """Close these environments at :meth:`close`, too."""
        self._made += envs

    def render(self) -> None:
        """Call ``render`` of each environment."""
        for env in self.instances:
            env.render()

    def close(self) -> list[str]:
        """Close the environments that factories made, each once; return one sentence for each that failed."""
        return close_environments(self._made)
