"""The ledger environment: every number that it gives names where it comes from.

Its episodes have known lengths and ends, its observations and rewards tell environment, episode and step, and it notes
what it is told. It needs no gym: the module of spaces, ``gym.spaces`` or ``gymnasium.spaces``, is passed in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from .forms import FINE, N_ENVS, N_EPISODES, N_STEPS, Sight, action_space, encode, observation_space

__all__ = ["LedgerEnv", "OldLedgerEnv", "make_ledger"]


def make_ledger(spaces: Any, index: int, *, api: str = "new", **options: Any) -> LedgerEnv | OldLedgerEnv:
    """Make a ledger environment of either dialect.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    index : int
        The environment's number.
    api : {"new", "old"}
        ``"new"``: that of gym 0.26 and gymnasium, :class:`LedgerEnv`. ``"old"``: that of gym up to 0.25,
        :class:`OldLedgerEnv`.
    **options
        As for :class:`LedgerEnv`.
    """
    if api not in ("new", "old"):
        raise ValueError(f"`api` must be 'new' or 'old', got {api!r}.")
    return LedgerEnv(spaces, index, **options) if api == "new" else OldLedgerEnv(spaces, index, **options)


class _Ledger:
    """The books, whatever the dialect."""

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
            raise ValueError(f"`index` must be below {N_ENVS}, got {index}.")
        if not all(1 <= length < N_STEPS for length in lengths):
            raise ValueError(f"`lengths` must be from 1 to {N_STEPS - 1}, got {tuple(lengths)}.")
        self.index, self.form, self.lengths, self.ends = index, form, tuple(lengths), tuple(ends)
        self.observation_space = observation_space(spaces, form)
        self.action_space = action_space(spaces, action)
        self._reuse, self._reward = reuse, reward
        self._kept: dict[str, Any] = {}
        self.seeds: list[int | None] = []
        self.actions: list[Any] = []
        self.resets = self.closed = 0
        self.episode, self.stepno, self.over = -1, 0, True
        self._digest = -1

    @property
    def unwrapped(self) -> _Ledger:
        """The environment itself."""
        return self

    @property
    def code(self) -> int:
        """The number of where it stands: the reward of the last step."""
        return encode(self.index, self.episode, self.stepno)

    def length(self, episode: int) -> int:
        """Tell how many steps an episode has."""
        return self.lengths[(episode + self.index) % len(self.lengths)]

    def end(self, episode: int) -> tuple[bool, bool]:
        """Tell how an episode ends: terminated, truncated."""
        how = self.ends[(episode + self.index) % len(self.ends)]
        return how != "truncated", how != "terminated"

    def vector(self) -> list[float]:
        """List environment, episode, step, a digest of the last action (-1: none yet), and the seed in two halves."""
        seed = next((seed for seed in reversed(self.seeds) if seed is not None), None)
        halves = (-1, -1) if seed is None else divmod(seed, 2**16)
        return [self.index, self.episode % N_EPISODES, self.stepno, self._digest, *halves]

    def _begin(self) -> Any:
        self.resets += 1
        self.episode, self.stepno, self.over, self._digest = self.episode + 1, 0, False, -1
        return self._observe()

    def _advance(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        if self.over:
            raise RuntimeError(f"ledger {self.index} was stepped without a reset after the end of an episode.")
        self.actions.append(action)
        self._digest = _digest(action)
        self.stepno += 1
        self.over = self.stepno >= self.length(self.episode)
        terminated, truncated = self.end(self.episode) if self.over else (False, False)
        return self._observe(), self._reward(self.code), terminated, truncated, self._inform(truncated)

    def _inform(self, truncated: bool) -> dict[str, Any]:
        """Fill an info dict: some entries are always there, some at times, some at the end of an episode."""
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
            return Sight(vector, self.stepno)
        if self.form == "pair":
            return vector, {"step": np.int64(self.stepno)}
        numbers = [*self.vector()[:4], self.code, 255]
        image = self._array("image", np.array(numbers, np.int64).reshape(2, 3) % 256, np.uint8)
        exact = self._array("exact", [self.code + FINE, self._digest - FINE], np.float64)
        return {"vector": vector, "image": image, "inner": {"step": self.stepno, "exact": exact}}

    def _array(self, name: str, numbers: Any, dtype: Any) -> Any:
        """Make an array, or overwrite the one of last time, as some simulators do."""
        array = np.array(numbers, dtype)
        if not self._reuse:
            return array
        kept = self._kept.setdefault(name, array)
        kept[...] = array
        return kept

    def close(self) -> None:
        """Note that it was closed."""
        self.closed += 1


class LedgerEnv(_Ledger):
    """The ledger environment, in the dialect of gym 0.26 and gymnasium.

    The reward of a step is the code (:func:`encode`) of where it led. Episode ``k`` of environment ``j`` has
    ``lengths[(k + j) % len(lengths)]`` steps, and ends as ``ends[(k + j) % len(ends)]``. The info dict of each step
    has ``"code"``, ``"place"`` (int32 ``(2,)``: episode, step), ``"first"`` (bool), ``"nested"`` (with
    ``"deep.step"``, and at an end ``"deep.over"``) and ``"a.b"`` (a key with a dot); every other step has ``"even"``;
    the end of an episode has ``"episode"`` (return ``"r"`` and length ``"l"``) and ``"TimeLimit.truncated"``.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    index : int
        The environment's number, below 256.
    form, action : str
        See :func:`observation_space` and :func:`action_space`.
    lengths : sequence of int
        From 1 to 63 steps.
    ends : sequence of {"terminated", "truncated", "both"}
        How episodes end.
    reuse : bool
        Whether to return one and the same array at each step and reset, overwritten, as some simulators do.
    reward : callable
        Makes of the reward, a number, what is returned: ``numpy.asarray`` gives arrays without dimensions.

    Attributes
    ----------
    seeds : list of int or None
        The seeds that it was given, one for each reset (of the old dialect: one for each call of ``seed``).
    actions : list
        The very objects that it was given as actions.
    resets, closed : int
        How often it was.
    episode, stepno, over : int, int, bool
        Where it stands.
    """

    def reset(self, *, seed: int | None = None, options: Any = None) -> tuple[Any, dict[str, Any]]:
        """Begin the next episode; return the observation and an info dict."""
        self.seeds.append(seed)
        obs = self._begin()
        return obs, {"code": float(self.code)}

    def step(self, action: Any) -> tuple[Any, Any, bool, bool, dict[str, Any]]:
        """Return observation, reward, terminated, truncated and info.

        Raises
        ------
        RuntimeError
            If the episode has ended.
        """
        return self._advance(action)


class OldLedgerEnv(_Ledger):
    """The ledger environment, in the dialect of gym up to 0.25; otherwise as :class:`LedgerEnv`.

    An end that is both is a truncation here, as far as can be told from what it returns.
    """

    def seed(self, seed: int | None = None) -> list[int | None]:
        """Note the seed."""
        self.seeds.append(seed)
        return [seed]

    def reset(self) -> Any:
        """Begin the next episode; return the observation."""
        return self._begin()

    def step(self, action: Any) -> tuple[Any, Any, bool, dict[str, Any]]:
        """Return observation, reward, done and info, where ``"TimeLimit.truncated"`` tells which end it was.

        Raises
        ------
        RuntimeError
            If the episode has ended.
        """
        obs, reward, terminated, truncated, info = self._advance(action)
        return obs, reward, terminated or truncated, info


def _digest(action: Any) -> int:
    """Make of any action an integer from 0 to 250, in which every part of it counts."""
    digest = 0
    for number in _numbers(action):
        digest = (digest * 37 + round(4 * number) + 1) % 251
    return digest


def _numbers(action: Any) -> list[float]:
    if isinstance(action, Mapping):
        return [number for key in sorted(action) for number in _numbers(action[key])]
    return [float(number) for number in np.asarray(action).ravel()]
