"""The numbers and spaces of ledger environments: codes of origins, observation spaces and action spaces.

The module must import neither gym nor gymnasium: the module that defines spaces (``gym.spaces`` or
``gymnasium.spaces``) is an argument.
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
    "TupleObservation",
    "action_space",
    "decode",
    "encode",
    "observation_space",
]

FORMS = ("vector", "dict", "tuple", "pair", "scalar", "discrete")
"""The names of the observation spaces, see :func:`observation_space`."""

ACTIONS = ("discrete", "multidiscrete", "box", "multibinary", "dict")
"""The names of the action spaces, see :func:`action_space`."""

N_STEPS, N_EPISODES, N_ENVS = 64, 1024, 256
"""Numbers of steps, episodes and environments that have a code. Their product is 2**24, and float32 holds all integers
up to 2**24."""

FINE = 2.0**-20
"""A fraction whose sum with a code needs float64."""


class Origin(NamedTuple):
    """The environment, episode and step that a code stands for."""

    env: int
    """The number of the environment, from 0 to 255."""
    episode: int
    """The number of its episode, modulo 1024."""
    step: int
    """The number of transitions since the reset, from 0 to 63."""


class TupleObservation(NamedTuple):
    """An observation of the space ``"tuple"``."""

    vector: Any
    """The vector of ``LedgerEnv.vector``, float32 ``(6,)``."""
    step: Any
    """The number of transitions since the reset, an int."""


def encode(env: int, episode: int, step: int) -> int:
    """Return the code of an origin: an integer below ``2**24``, so that float32 holds it exactly."""
    return (env * N_EPISODES + episode % N_EPISODES) * N_STEPS + step


def decode(code: float) -> Origin:
    """Return the origin of a code made by :func:`encode`, such as a reward.

    Raises
    ------
    ValueError
        If no origin has this code.
    """
    if not 0 <= code < N_ENVS * N_EPISODES * N_STEPS or code != int(code):
        raise ValueError(f"{code!r} names no environment, episode and step.")
    rest, step = divmod(int(code), N_STEPS)
    env, episode = divmod(rest, N_EPISODES)
    return Origin(env, episode, step)


def observation_space(spaces: Any, form: str) -> Any:
    """Make the observation space of a given name.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    form : str
        ``"vector"``: float32 ``(6,)``, see ``LedgerEnv.vector``. ``"dict"``: nested, with that vector, a uint8 image
        ``(2, 3)``, a Discrete whose values are Python integers, and float64 numbers that float32 cannot hold.
        ``"tuple"``: a named tuple of vector and Discrete. ``"pair"``: a tuple of vector and dict, like the return value
        of ``reset``. ``"scalar"``: the code in a float32 array without dimensions. ``"discrete"``: the code
        as a Python integer.
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
    """Make the action space of a given name.

    Parameters
    ----------
    spaces : module
        ``gym.spaces`` or ``gymnasium.spaces``.
    kind : str
        ``"discrete"``: 5 actions. ``"multidiscrete"``: 3 and 4 actions. ``"box"``: float32 ``(2,)`` in [-1, 1].
        ``"multibinary"``: 3 bits. ``"dict"``: the four other spaces, nested.
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
