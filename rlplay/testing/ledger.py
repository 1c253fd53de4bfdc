"""The ledger environment: its observations and rewards encode the environment, the episode and the step.

The lengths of episodes and the ways in which they end are arguments, and the environment keeps lists of all seeds and
actions. The module must import neither gym nor gymnasium: the module that defines spaces (``gym.spaces`` or
``gymnasium.spaces``) is an argument.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .forms import FINE, N_ENVS, N_EPISODES, N_STEPS, TupleObservation, action_space, encode, observation_space

__all__ = ["LedgerEnv", "OldLedgerEnv", "make_ledger"]


def make_ledger(spaces: Any, index: int, *, api: str = "new", **options: Any) -> LedgerEnv | OldLedgerEnv:
    """Make a ledger environment of the new or the old gym API.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    index : int
        The environment's number, from 0 to 255.
    api : {"new", "old"}
        ``"new"``: the API of gym 0.26 and gymnasium, :class:`LedgerEnv`. ``"old"``: the API of gym up to 0.25,
        :class:`OldLedgerEnv`.
    **options
        The other parameters of :class:`LedgerEnv`.

    Raises
    ------
    ValueError
        If ``api``, ``index`` or an option is out of range.
    """
    if api not in ("new", "old"):
        raise ValueError(f"`api` must be 'new' or 'old', got {api!r}.")
    return LedgerEnv(spaces, index, **options) if api == "new" else OldLedgerEnv(spaces, index, **options)


class _BaseLedgerEnv:
    """The behaviour that both APIs share. Subclasses add ``reset`` and ``step``."""

    metadata: Mapping[str, Any] = {}
    render_mode = None
    spec = None

    def __init__(
        self,
        spaces: Any,
        index: int = 0,
        *,
        form: str = "vector",
        action: str = "discrete",
        lengths: Sequence[int] = (4, 1, 7, 1, 1, 3, 12),
        ends: Sequence[str] = ("terminated", "truncated", "both", "truncated"),
        reuse: bool = False,
        reward: Callable[[float], Any] = float,
    ) -> None:
        if not 0 <= index < N_ENVS:
            raise ValueError(f"`index` must be from 0 to {N_ENVS - 1}, got {index}.")
        if not all(1 <= length < N_STEPS for length in lengths):
            raise ValueError(f"`lengths` must be from 1 to {N_STEPS - 1}, got {tuple(lengths)}.")
        self.index, self.form, self.lengths, self.ends = index, form, tuple(lengths), tuple(ends)
        self.observation_space = observation_space(spaces, form)
        self.action_space = action_space(spaces, action)
        self._reuse, self._reward = reuse, reward
        self._arrays: dict[str, Any] = {}  # the arrays that are overwritten, by name; empty unless `reuse`
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []
        self.resets = self.closed = 0
        self.episode, self.stepno, self.over = -1, 0, True
        self._last_action = -1  # the digest of the last action; -1 if the episode has had no action yet

    @property
    def unwrapped(self) -> _BaseLedgerEnv:
        """The environment itself."""
        return self

    @property
    def code(self) -> int:
        """The code of the present environment, episode and step, which is the reward of the latest step."""
        return encode(self.index, self.episode, self.stepno)

    def length(self, episode: int) -> int:
        """Return the number of steps of an episode."""
        return self.lengths[(episode + self.index) % len(self.lengths)]

    def end(self, episode: int) -> tuple[bool, bool]:
        """Return how an episode ends, as ``(terminated, truncated)``."""
        kind = self.ends[(episode + self.index) % len(self.ends)]
        return kind != "truncated", kind != "terminated"

    def vector(self) -> list[float]:
        """Return environment, episode, step, digest of the last action, and the two 16-bit halves of the last seed.

        The digest is -1 before the first action of an episode. The halves are -1 if no seed was given.
        """
        seed = next((seed for seed in reversed(self.seeds) if seed is not None), None)
        halves = (-1, -1) if seed is None else divmod(seed, 2**16)
        return [self.index, self.episode % N_EPISODES, self.stepno, self._last_action, *halves]

    def _start_episode(self) -> Any:
        self.resets += 1
        self.episode, self.stepno, self.over, self._last_action = self.episode + 1, 0, False, -1
        return self._observe()

    def _take_step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.over:
            raise RuntimeError(f"ledger {self.index} was stepped without a reset after the end of an episode.")
        self.actions.append(action)
        self._last_action = _digest(action)
        self.stepno += 1
        self.over = self.stepno >= self.length(self.episode)
        terminated, truncated = self.end(self.episode) if self.over else (False, False)
        return self._observe(), self._reward(self.code), terminated, truncated, self._make_info(truncated)

    def _make_info(self, truncated: bool) -> dict[str, Any]:
        """Make the info dict of a step. Some keys are in every step, some in every other step, some at an end only."""
        deep: dict[str, Any] = {"step": self.stepno}
        info: dict[str, Any] = {
            "code": float(self.code),
            "place": np.array([self.episode, self.stepno], np.int32),
            "first": self.stepno == 1,
            "nested": {"deep": deep},
            "a.b": self.stepno + 0.5,
        }
        if self.stepno % 2 == 0:
            info["even"] = self.stepno
        if self.over:
            deep["over"] = True
            first, last = encode(self.index, self.episode, 1), self.code
            info["episode"] = {"r": (first + last) * self.stepno / 2, "l": self.stepno}
            info["TimeLimit.truncated"] = truncated
        return info

    def _observe(self) -> Any:
        if self.form == "discrete":
            return self.code
        if self.form == "scalar":
            return self._array("scalar", self.code, np.float32)
        vector = self._array("vector", self.vector(), np.float32)
        if self.form == "vector":
            return vector
        if self.form == "tuple":
            return TupleObservation(vector, self.stepno)
        if self.form == "pair":
            return vector, {"step": np.int64(self.stepno)}
        numbers = [*self.vector()[:4], self.code, 255]
        image = self._array("image", np.array(numbers, np.int64).reshape(2, 3) % 256, np.uint8)
        exact = self._array("exact", [self.code + FINE, self._last_action - FINE], np.float64)
        return {"vector": vector, "image": image, "inner": {"step": self.stepno, "exact": exact}}

    def _array(self, name: str, numbers: Any, dtype: Any) -> Any:
        """Return a new array; with ``reuse``, the same array at each call with the same name, with new contents."""
        array = np.array(numbers, dtype)
        if not self._reuse:
            return array
        reused = self._arrays.setdefault(name, array)
        reused[...] = array
        return reused

    def close(self) -> None:
        """Count the calls."""
        self.closed += 1


class LedgerEnv(_BaseLedgerEnv):
    """The ledger environment, with the API of gym 0.26 and gymnasium.

    The reward of a step is the code (:func:`encode`) of the environment, the episode and the number of the step, which
    counts from 1. Episode ``k`` of environment ``j`` has ``lengths[(k + j) % len(lengths)]`` steps, and ends as
    ``ends[(k + j) % len(ends)]`` says. The info dict of each step has ``"code"``, ``"place"`` (int32 ``(2,)``: episode,
    step), ``"first"`` (bool), ``"nested"`` (with ``"deep.step"``, and at an end ``"deep.over"``) and ``"a.b"`` (a key
    with a dot); every other step has ``"even"``; the end of an episode has ``"episode"`` (return ``"r"`` and length
    ``"l"``) and ``"TimeLimit.truncated"``.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    index : int
        The environment's number, from 0 to 255.
    form, action : str
        The names of the spaces, see :func:`observation_space` and :func:`action_space`.
    lengths : sequence of int
        Lengths of episodes, from 1 to 63 steps.
    ends : sequence of {"terminated", "truncated", "both"}
        How episodes end.
    reuse : bool
        Whether all steps and resets return the same array, overwritten each time, as some simulators do.
    reward : callable
        Converts the reward, a float, to the object that ``step`` returns. For example, ``numpy.asarray`` gives arrays
        without dimensions.

    Attributes
    ----------
    seeds : list of int or None
        The seed of each reset; with the old API, the seed of each call of ``seed``.
    actions : list
        The objects that ``step`` was called with.
    resets, closed : int
        The number of calls of ``reset`` and of ``close``.
    episode, stepno, over : int, int, bool
        The present episode (-1 before the first reset) and step, and whether the episode has ended.
    """

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode; return the observation and an info dict."""
        self.seeds.append(seed)
        obs = self._start_episode()
        return obs, {"code": float(self.code)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return observation, reward, terminated, truncated and info.

        Raises
        ------
        RuntimeError
            If the episode has ended.
        """
        return self._take_step(action)


class OldLedgerEnv(_BaseLedgerEnv):
    """The ledger environment, with the API of gym up to 0.25; otherwise as :class:`LedgerEnv`.

    An end that is both a termination and a truncation is reported as a truncation, since this API has one flag.
    """

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Append the seed to ``seeds``."""
        self.seeds.append(seed)
        return [seed]

    def reset(self) -> Any:
        """Begin the next episode; return the observation."""
        return self._start_episode()

    def step(self, action: Any) -> tuple[Any, Any, bool, dict[str, Any]]:
        """Return observation, reward, done and info, where ``"TimeLimit.truncated"`` is True for a truncation.

        Raises
        ------
        RuntimeError
            If the episode has ended.
        """
        obs, reward, terminated, truncated, info = self._take_step(action)
        return obs, reward, terminated or truncated, info


def _digest(action: Any) -> int:
    """Return an integer from 0 to 250 that depends on every number of an action."""
    digest = 0
    for number in _numbers(action):
        digest = (digest * 37 + round(4 * number) + 1) % 251
    return digest


def _numbers(action: Any) -> list[float]:
    """Return all numbers of an action, those of a dict in the order of its sorted keys."""
    if isinstance(action, Mapping):
        return [number for key in sorted(action) for number in _numbers(action[key])]
    return [float(number) for number in np.asarray(action).ravel()]
