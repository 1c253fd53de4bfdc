"""What a ledger writes with: codes that name an origin, and the spaces of its observations and actions.

It needs no gym: the module of spaces, ``gym.spaces`` or ``gymnasium.spaces``, is passed in.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

__all__ = [
    "ACTIONS",
    "FINE",
    "FORMS",
    "N_ENVS",
    "N_EPISODES",
    "N_STEPS",
    "Origin",
    "Sight",
    "action_space",
    "decode",
    "encode",
    "observation_space",
]

FORMS = ("vector", "dict", "tuple", "pair", "scalar", "discrete")
"""The forms of observation, see :func:`observation_space`."""

ACTIONS = ("discrete", "multidiscrete", "box", "multibinary", "dict")
"""The action spaces, see :func:`action_space`."""

N_STEPS, N_EPISODES, N_ENVS = 64, 1024, 256  # 2**24 together: the integers that float32 can hold
FINE = 2.0**-20  # beside any code it takes float64


class Origin(NamedTuple):
    """Where a number comes from."""

    env: int
    """The environment, up to 255."""
    episode: int
    """Its episode, modulo 1024."""
    step: int
    """The step in the episode, up to 63: the ``step``-th transition led here; 0 is what a reset gives."""


class Sight(NamedTuple):
    """An observation of the form ``"tuple"``."""

    vector: Any
    step: Any


def encode(env: int, episode: int, step: int) -> int:
    """Make one number of an origin: below ``2**24``, so that float32 holds it exactly."""
    return (env * N_EPISODES + episode % N_EPISODES) * N_STEPS + step


def decode(code: float) -> Origin:
    """Read an origin off a number made by :func:`encode`, such as a reward.

    Raises
    ------
    ValueError
        If it is none of those numbers.
    """
    if not 0 <= code < N_ENVS * N_EPISODES * N_STEPS or code != int(code):
        raise ValueError(f"{code!r} names no environment, episode and step.")
    rest, step = divmod(int(code), N_STEPS)
    env, episode = divmod(rest, N_EPISODES)
    return Origin(env, episode, step)


def observation_space(spaces: Any, form: str) -> Any:
    """Make the observation space of a form.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    form : str
        ``"vector"``: float32 ``(6,)``, see ``LedgerEnv.vector``. ``"dict"``: nested, with that vector, a uint8 image
        ``(2, 3)``, a Discrete that comes as a Python integer, and float64 numbers that float32 could not hold.
        ``"tuple"``: vector and Discrete, in a named tuple. ``"pair"``: a vector and a dict, which looks like what a
        reset returns. ``"scalar"``: the code in a float32 array without dimensions. ``"discrete"``: the code, a Python
        integer.
    """
    vector = spaces.Box(-np.inf, np.inf, (6,), np.float32)
    if form == "vector":
        return vector
    if form == "dict":
        inner = {"step": spaces.Discrete(N_STEPS), "exact": spaces.Box(-np.inf, np.inf, (2,), np.float64)}
        image = spaces.Box(0, 255, (2, 3), np.uint8)
        return spaces.Dict({"vector": vector, "image": image, "inner": spaces.Dict(inner)})
    if form == "tuple":
        return spaces.Tuple((vector, spaces.Discrete(N_STEPS)))
    if form == "pair":
        return spaces.Tuple((vector, spaces.Dict({"step": spaces.Discrete(N_STEPS)})))
    if form == "scalar":
        return spaces.Box(-np.inf, np.inf, (), np.float32)
    if form == "discrete":
        return spaces.Discrete(N_ENVS * N_EPISODES * N_STEPS)
    raise ValueError(f"`form` must be one of {FORMS}, got {form!r}.")


def action_space(spaces: Any, kind: str) -> Any:
    """Make the action space of a kind.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    kind : str
        ``"discrete"``: of 5. ``"multidiscrete"``: of 3 and 4. ``"box"``: float32 ``(2,)`` in [-1, 1].
        ``"multibinary"``: of 3. ``"dict"``: all of them, nested.
    """
    if kind == "discrete":
        return spaces.Discrete(5)
    if kind == "multidiscrete":
        return spaces.MultiDiscrete([3, 4])
    if kind == "box":
        return spaces.Box(-1.0, 1.0, (2,), np.float32)
    if kind == "multibinary":
        return spaces.MultiBinary(3)
    if kind == "dict":
        part = {name: action_space(spaces, name) for name in ACTIONS[:-1]}
        aim = spaces.Dict({"box": part["box"], "bits": part["multibinary"]})
        return spaces.Dict({"move": part["discrete"], "aim": aim, "gears": part["multidiscrete"]})
    raise ValueError(f"`action` must be one of {ACTIONS}, got {kind!r}.")
