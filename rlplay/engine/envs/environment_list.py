"""A list of single environments that write into rows, of any dialect (:mod:`rlplay.engine.envs.dialects`).

Imports neither torch, threads, gym nor gymnasium.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
from numpy import ndarray

from ... import nested
from ...nested import Nested
from ..concurrency.exceptions import add_note
from ..concurrency.progress import Progress
from . import spaces
from .dialects import is_factory, read_old_step, reward_to_float, seeded_reset, split_reset, takes
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .rows import Array, Episode, OutcomeRow, StateRow

__all__ = ["EnvironmentList"]

_MEMORYVIEW_DTYPES = "?bBhHiIlLqQfd"
"""The dtypes that a memoryview can be cast to and that numpy calls by the same letter."""


class EnvironmentList:
    """A list of environments that are stepped one after the other.

    Implements :class:`~rlplay.engine.envs.protocol.Environments`.

    Instances stay the user's and are never closed. Environments made by factories are closed by :meth:`close`.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        Shape and dtype of one observation, in the containers that the first observation came in, and of one action.
    spaces : tuple
        The observation space and the action space.
    episodes : list of Episode
        The episodes that ended, in order. The stepper takes the list away and puts an empty one in its place.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        seeds: Sequence[int],
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
        seeds : sequence of int
            One for each environment; also passed to factories that have a parameter ``seed``.
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
        try:
            self._envs = self._make_all(sources, seeds)
            patch_gym()
            progress.doing, progress.env = "checking the spaces", -1
            self._check_spaces()
            self.spaces = self._envs[0].observation_space, self._envs[0].action_space
            self._obs_description = spaces.fields(self._envs[0].observation_space)
            self.act = spaces.fields(self._envs[0].action_space)
            progress.doing = "env.reset"
            self.obs, self._first_obs, self._reset_returns_info = self._reset_all(seeds)
            progress.doing, progress.env = "getting ready", -1
            self._act_structure = nested.structure(self.act)
            # most spaces are a single array, for which flattening and unflattening can be left out
            self._array_form = (self.obs.dtype, self.obs.shape) if isinstance(self.obs, spaces.Field) else (None, None)
            self._vector_slices = _vector_slices(self.obs, self.n_envs)
            self._act_is_array = isinstance(self.act, spaces.Field)
            self._columns_numbers_envs = range(self.n_envs), range(first, first + self.n_envs), self._envs
            self._returns = [0.0] * self.n_envs
            self._stopped: dict[int, tuple[bool, bool]] = {}  # column -> (terminated, truncated), see `release`
            self.episodes: list[Episode] = []
        except BaseException as error:
            for complaint in self.close():
                add_note(error, complaint)
            raise

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""
        return len(self._envs)

    def _make_all(self, sources: Sequence[Any], seeds: Sequence[int]) -> list[Any]:
        envs = []
        self._progress.doing = "env.make"
        for j, (source, seed) in enumerate(zip(sources, seeds, strict=True)):
            self._progress.env = self._first_number + j
            envs.append(self._make(source, seed) if is_factory(source) else source)
        return envs

    def _make(self, factory: Callable[..., Any], seed: int) -> Any:
        bound = getattr(factory, "keywords", {})  # of a functools.partial
        env = factory(seed=seed) if takes(factory, "seed") and "seed" not in bound else factory()
        if not any(env is other for other in self._made):
            self._made.append(env)
        return env

    def _check_spaces(self) -> None:
        if len({id(env) for env in self._envs}) < len(self._envs):
            raise ValueError("the same environment stands twice in `envs`: each column needs an instance of its own.")
        for j, env in enumerate(self._envs):
            for name in ("reset", "step", "observation_space", "action_space"):
                if not hasattr(env, name):
                    raise TypeError(f"environment {self._first_number + j} is no environment: {env!r} has no `{name}`.")
            for name in ("observation_space", "action_space"):
                one, other = getattr(self._envs[0], name), getattr(env, name)
                if not spaces.equal_spaces(one, other):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {self._first_number + j} has "
                        f"the {name} {other}, environment {self._first_number} has {one}."
                    )

    def _reset_all(self, seeds: Sequence[int]) -> tuple[Nested, list[list[Array]], list[bool]]:
        """Reset each environment with its seed.

        Returns
        -------
        obs : nested Field
            Shape and dtype of one observation, in the containers that the first one came in.
        first_obs : list of lists of arrays
            The leaves of each environment's first observation, copied: an environment may reuse its arrays.
        returns_info : list of bool
            Whether ``reset`` of each environment returns a pair of observation and info.
        """
        obs: Nested = None
        first_obs: list[list[Array]] = []
        returns_info: list[bool] = []
        for j, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
            self._progress.env = self._first_number + j
            value, has_info = split_reset(self._obs_description, seeded_reset(env, seed))
            first_obs.append([np.array(leaf) for leaf in spaces.cast(self._obs_description, value)])
            returns_info.append(has_info)
            if obs is None:
                obs = spaces.along(self._obs_description, value)
        return obs, first_obs, returns_info

    def begin(self, row: StateRow) -> None:
        """Write row 0 of the first fragment."""
        row.begin()
        for j, parts in enumerate(self._first_obs):
            for leaf, part in zip(row.obs, parts, strict=True):
                leaf[j] = part
        self._first_obs.clear()

    def release(self) -> None:
        """Resume the environments that ``sticky`` has stopped: a new fragment begins."""
        self._stopped.clear()

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then.act``; write the rest of ``then``, and ``outcome``.

        ``outcome`` holds default values already. The true last observation of an episode that ended is written into
        ``last``, if given; then its environment is reset.

        Returns
        -------
        list of int
            The columns of the environments whose episode ended in this transition.
        """
        progress, stopped, returns = self._progress, self._stopped, self._returns
        records_info, rewards, ended = bool(self._entries.entries), then.rew, list[int]()
        (dtype, shape), leaf, slices = self._array_form, then.obs[0] if then.obs else then.rew, self._vector_slices
        flat = _flat_view(leaf) if slices else None
        np.add(now.stepno, 1, out=then.stepno)
        for j, number, env, action in zip(*self._columns_numbers_envs, self._actions(then), strict=True):
            if stopped and j in stopped:
                self._repeat_row(j, now, then, outcome)
                continue
            progress.env = number
            result = env.step(action)
            try:
                obs, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                obs, reward, terminated, truncated, info = read_old_step(result)
            if type(reward) is not float:
                reward = reward_to_float(reward)
            rewards[j] = reward
            returns[j] += reward
            if records_info:
                self._entries.record(info, outcome.info, j)
            if terminated or truncated:
                ended.append(j)
                outcome.terminated[j], outcome.truncated[j], then.fin[j] = bool(terminated), bool(truncated), True
                self.episodes.append(Episode(number, returns[j], int(then.stepno[j])))
                returns[j], then.stepno[j] = 0.0, 0
                if sticky:
                    stopped[j] = bool(terminated), bool(truncated)
                if last is not None:
                    self._write_obs(last.obs, j, obs)
                if not self._single_episode:
                    obs = self._reset(j)
            # the first two branches write the common case, a single array of exactly the space's shape and dtype
            if flat is not None:
                try:
                    flat[slices[j]] = obs  # raises unless `obs` is a vector of this length and dtype
                except (TypeError, ValueError):
                    self._write_obs(then.obs, j, obs)
            elif type(obs) is ndarray and obs.dtype is dtype and obs.shape == shape:
                leaf[j] = obs
            else:
                self._write_obs(then.obs, j, obs)
        return ended

    def _actions(self, row: StateRow) -> Iterable[Any]:
        """Return each environment's action, as a numpy scalar or a copy: environments may keep and change it."""
        if not self._act_is_array:
            return [self._act_structure.unflatten([leaf[j].copy() for leaf in row.act]) for j in range(self.n_envs)]
        (leaf,) = row.act
        return leaf if leaf.ndim == 1 else leaf.copy()  # iterating over a vector yields scalars, which are copies

    def _reset(self, j: int) -> Nested:
        self._progress.doing = "env.reset"
        obs = self._envs[j].reset()
        self._progress.doing = "env.step"
        return obs[0] if self._reset_returns_info[j] else obs

    def _repeat_row(self, j: int, now: StateRow, then: StateRow, outcome: OutcomeRow) -> None:
        """Write the column of a stopped environment: it repeats the row before, and its transition is not valid."""
        for source, target in zip(now.obs + now.act, then.obs + then.act, strict=True):
            target[j] = source[j]
        then.stepno[j], then.rew[j], then.fin[j] = 0, 0.0, True
        outcome.terminated[j], outcome.truncated[j] = self._stopped[j]
        outcome.valid[j] = False

    def _write_obs(self, leaves: list[Array], j: int, obs: Nested) -> None:
        """Write an observation of any form that can be cast to the space."""
        if type(obs) is ndarray and (obs.dtype, obs.shape) == self._array_form:
            leaves[0][j] = obs
            return
        for leaf, part in zip(leaves, spaces.cast(self._obs_description, obs), strict=True):
            leaf[j] = part

    def render(self) -> None:
        """Call ``render`` of each environment."""
        for env in self._envs:
            env.render()

    def close(self) -> list[str]:
        """Close the environments that factories made, each once; return one sentence for each that failed."""
        complaints, interrupt = [], None
        while self._made:
            env = self._made.pop()
            try:
                getattr(env, "close", bool)()
            except KeyboardInterrupt as error:
                interrupt = error
            except BaseException as error:  # the others must be closed all the same
                complaints.append(f"closing {env!r} failed: {error!r}.")
        if interrupt is not None:
            raise interrupt
        return complaints


def _flat_view(leaf: Array) -> memoryview:
    char: Any = leaf.dtype.char
    return leaf.data.cast("B").cast(char)


def _vector_slices(obs: Nested, n_envs: int) -> list[slice]:
    """Return each environment's slice of a flat row if an observation is a vector, else an empty list.

    Assigning to a slice of a memoryview checks length and dtype and copies, in half the time of a numpy assignment.
    """
    n = obs.shape[0] if isinstance(obs, spaces.Field) and len(obs.shape) == 1 else 0
    if n == 0 or obs.dtype.char not in _MEMORYVIEW_DTYPES:
        return []
    return [slice(j * n, (j + 1) * n) for j in range(n_envs)]
