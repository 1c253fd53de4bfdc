"""Environments of three dialects made one: gym up to 0.25, gym 0.26 and gymnasium, told apart by what they return.

Knows numpy rows to write into. Neither torch nor threads, and it imports neither gym nor gymnasium.
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
from .dialects import _old, _scalar, _seeded_reset, _told, is_factory, takes
from .gym_on_numpy2 import patch_gym
from .info import Entries
from .rows import Array, Episode, OutcomeRow, StateRow

__all__ = ["EnvironmentList"]

_NATIVE = "?bBhHiIlLqQfd"
"""The dtypes that a memoryview can be cast to, and that numpy calls by the same letter."""


class EnvironmentList:
    """A list of environments, stepped one after the other, that write into rows.

    Instances stay the user's and are never closed; what factories made is closed by :meth:`close`.

    Attributes
    ----------
    obs, act : nested :class:`~rlplay.engine.envs.spaces.Field`
        What one observation looks like, in the containers that the first one came in; what one action looks like.
    spaces : tuple
        The observation space and the action spaces.
    episodes : list of Episode
        The episodes that have ended since somebody last took them away.
    """

    def __init__(
        self,
        sources: Sequence[Any],
        seeds: Sequence[int],
        entries: Entries,
        progress: Progress,
        *,
        once: bool = False,
        first: int = 0,
    ) -> None:
        """Make what is to be made, and reset each environment exactly once, with its seed.

        With ``once`` no environment is reset again: after its episode it has to stand still. ``first`` is the number of
        the first environment, if there are others before it that somebody else keeps.

        Raises
        ------
        TypeError, ValueError
            If something is no environment, if spaces differ or cannot be recorded, if an observation does not fit.
        """
        self._entries, self._progress, self._once, self._offset = entries, progress, once, first
        self._envs: list[Any] = []
        self._made: list[Any] = []
        try:
            self._open(sources, seeds)
        except BaseException as error:
            for complaint in self.close():
                add_note(error, complaint)
            raise

    def _open(self, sources: Sequence[Any], seeds: Sequence[int]) -> None:
        progress = self._progress
        progress.doing = "env.make"
        for j, (source, seed) in enumerate(zip(sources, seeds, strict=True)):
            progress.env = self._offset + j
            self._envs.append(self._make(source, seed) if is_factory(source) else source)
        patch_gym()
        progress.doing, progress.env = "checking the spaces", -1
        if len({id(env) for env in self._envs}) < len(self._envs):
            raise ValueError("the same environment stands twice in `envs`: each column needs an instance of its own.")
        self._check_spaces()
        self.spaces = self._envs[0].observation_space, self._envs[0].action_space
        described = spaces.fields(self._envs[0].observation_space)
        self.act = spaces.fields(self._envs[0].action_space)
        self.obs: Nested = None
        self._pairs: list[bool] = []
        self._first: list[list[Array]] = []
        progress.doing = "env.reset"
        for j, (env, seed) in enumerate(zip(self._envs, seeds, strict=True)):
            progress.env = self._offset + j
            obs, pair = _told(described, _seeded_reset(env, seed))
            # copies: an environment may well reuse the array on its next step
            self._first.append([np.array(part) for part in spaces.cast(described, obs)])
            self._pairs.append(pair)
            if self.obs is None:
                self.obs = spaces.along(described, obs)
        progress.doing, progress.env = "getting ready", -1
        self._act_spec = nested.structure(self.act)
        # most spaces are a single array, for which taking apart and putting together can be left out
        self._described = described
        self._plain_obs = (self.obs.dtype, self.obs.shape) if isinstance(self.obs, spaces.Field) else (None, None)
        self._spans = _spans(self.obs, self.n_envs)
        self._plain_act = isinstance(self.act, spaces.Field)
        self._roll = range(self.n_envs), range(self._offset, self._offset + self.n_envs), self._envs
        self._ret = [0.0] * self.n_envs
        self._stuck: dict[int, tuple[bool, bool]] = {}
        self.episodes: list[Episode] = []

    @property
    def n_envs(self) -> int:
        """The number of environments, ``B``."""
        return len(self._envs)

    def _make(self, factory: Callable[..., Any], seed: int) -> Any:
        bound = getattr(factory, "keywords", {})  # of a functools.partial
        env = factory(seed=seed) if takes(factory, "seed") and "seed" not in bound else factory()
        if not any(env is other for other in self._made):
            self._made.append(env)
        return env

    def _check_spaces(self) -> None:
        for j, env in enumerate(self._envs):
            for name in ("reset", "step", "observation_space", "action_space"):
                if not hasattr(env, name):
                    raise TypeError(f"environment {self._offset + j} is no environment: {env!r} has no `{name}`.")
            for name in ("observation_space", "action_space"):
                one, other = getattr(self._envs[0], name), getattr(env, name)
                if not spaces.equal_spaces(one, other):
                    raise ValueError(
                        f"environments of one feed must have equal spaces: environment {self._offset + j} has the "
                        f"{name} {other}, environment {self._offset} has {one}."
                    )

    def begin(self, row: StateRow) -> None:
        """Write the very first observations: row 0 of the first fragment."""
        row.begin()
        for j, parts in enumerate(self._first):
            for leaf, part in zip(row.obs, parts, strict=True):
                leaf[j] = part
        self._first.clear()

    def release(self) -> None:
        """Let environments whose episode ended go on: a new fragment begins."""
        self._stuck.clear()

    def step(
        self, now: StateRow, then: StateRow, outcome: OutcomeRow, last: StateRow | None, *, sticky: bool
    ) -> list[int]:
        """Carry out the actions in ``then.act``; fill in the rest of ``then`` and of ``outcome``.

        ``outcome`` come cleared. The true last observation of an episode that ended is written into ``last``, if given;
        then its environment is reset.

        Returns
        -------
        list of int
            The environments whose episode ended with this very transition.
        """
        progress, stuck, returns = self._progress, self._stuck, self._ret
        recorded, rewards, ended = bool(self._entries.entries), then.rew, list[int]()
        (dtype, shape), leaf, spans = self._plain_obs, then.obs[0] if then.obs else then.rew, self._spans
        flat = _flat(leaf) if spans else None
        np.add(now.stepno, 1, out=then.stepno)
        for j, number, env, action in zip(*self._roll, self._actions(then), strict=True):
            if stuck and j in stuck:
                self._stand_still(j, now, then, outcome)
                continue
            progress.env = number
            result = env.step(action)
            try:
                obs, reward, terminated, truncated, info = result
            except (TypeError, ValueError):
                obs, reward, terminated, truncated, info = _old(result)
            if type(reward) is not float:
                reward = _scalar(reward)
            rewards[j] = reward
            returns[j] += reward
            if recorded:
                self._entries.record(info, outcome.info, j)
            if terminated or truncated:
                ended.append(j)
                outcome.terminated[j], outcome.truncated[j], then.fin[j] = bool(terminated), bool(truncated), True
                self.episodes.append(Episode(number, returns[j], int(then.stepno[j])))
                returns[j], then.stepno[j] = 0.0, 0
                if sticky:
                    stuck[j] = bool(terminated), bool(truncated)
                if last is not None:
                    self._write(last.obs, j, obs)
                if not self._once:
                    obs = self._begin_again(j)
            if flat is not None:
                try:
                    flat[spans[j]] = obs  # which takes nothing but a vector of the very form that the space says
                except (TypeError, ValueError):
                    self._write(then.obs, j, obs)
            elif type(obs) is ndarray and obs.dtype is dtype and obs.shape == shape:
                leaf[j] = obs  # as nearly always: a single array, of the very form that the space says
            else:
                self._write(then.obs, j, obs)
        return ended

    def _actions(self, row: StateRow) -> Iterable[Any]:
        """Give each environment an action of its own: a numpy scalar or a copy."""
        if not self._plain_act:
            return [self._act_spec.unflatten([leaf[j].copy() for leaf in row.act]) for j in range(self.n_envs)]
        (leaf,) = row.act
        return leaf if leaf.ndim == 1 else leaf.copy()  # the elements of a vector are scalars, and no views

    def _begin_again(self, j: int) -> Nested:
        self._progress.doing = "env.reset"
        obs = self._envs[j].reset()
        self._progress.doing = "env.step"
        return obs[0] if self._pairs[j] else obs

    def _stand_still(self, j: int, now: StateRow, then: StateRow, outcome: OutcomeRow) -> None:
        """Repeat the first row of an episode that is not begun before the next fragment."""
        for source, target in zip(now.obs + now.act, then.obs + then.act, strict=True):
            target[j] = source[j]
        then.stepno[j], then.rew[j], then.fin[j] = 0, 0.0, True
        outcome.terminated[j], outcome.truncated[j] = self._stuck[j]
        outcome.valid[j] = False

    def _write(self, leaves: list[Array], j: int, obs: Nested) -> None:
        if type(obs) is ndarray and (obs.dtype, obs.shape) == self._plain_obs:
            leaves[0][j] = obs
            return
        for leaf, part in zip(leaves, spaces.cast(self._described, obs), strict=True):
            leaf[j] = part

    def render(self) -> None:
        """Let every environment show itself."""
        for env in self._envs:
            env.render()

    def close(self) -> list[str]:
        """Close what factories made, each once, and say what went wrong; the user's own instances are left alone."""
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


def _flat(leaf: Array) -> memoryview:
    char: Any = leaf.dtype.char
    return leaf.data.cast("B").cast(char)


def _spans(obs: Nested, n_envs: int) -> list[slice]:
    """Say where in a flat row each environment's observation lies, if that is a vector; else nothing.

    A memoryview of the row checks the form and copies, in half the time that it takes numpy to copy.
    """
    n = obs.shape[0] if isinstance(obs, spaces.Field) and len(obs.shape) == 1 else 0
    if n == 0 or obs.dtype.char not in _NATIVE:
        return []
    return [slice(j * n, (j + 1) * n) for j in range(n_envs)]
