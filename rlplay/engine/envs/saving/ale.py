"""Saves what ``clone_state`` of ale-py's environments leaves out: the action that a "sticky" frame repeats.

With ``repeat_action_probability`` above 0 the emulator repeats its previous action at random. It keeps that action
outside of its state. Whether the next frames repeat it follows from the random numbers, which are in the state. If they
do, the action is found by trial: restoring tries each action until the same frames give the same state. ale-py is not
imported.
"""

from __future__ import annotations

import hashlib
import math
import re
from typing import Any

import numpy as np

__all__ = ["restore_ale", "save_ale"]

_ENGINE = re.compile(rb"(?:\d+ ){624}\d+")
"""A Mersenne Twister, as C++ writes it: 624 numbers and a position. The state has those of the console and of the
environment, in this order."""

_DRAWS = 512
"""How many random numbers are looked at. Each frame draws two: one for each player."""

_DOUBT = 1e-15
"""The largest probability that the previous action is still another one, after frames with one action alone."""


def save_ale(env: Any) -> dict[str, Any]:
    """Return the state of ale-py's environment, with what is needed to find the previous action.

    The environment goes on as if it had not been saved: the emulator keeps the previous action while frames repeat it,
    and the state is restored after the frames that are tried.

    Raises
    ------
    TypeError
        The previous action cannot be found out.
    """
    state = env.clone_state(include_rng=True)
    n = _frames_that_repeat(env, state)
    digest = b""
    if n:
        digest = _digest_after(env, n)
        env.restore_state(state)
    return {"state": state, "n": n, "digest": digest}


def restore_ale(env: Any, saved: dict[str, Any]) -> None:
    """Put the environment into the state that :func:`save_ale` returned.

    Raises
    ------
    ValueError
        The frames that repeat the previous action are not those that were saved: it is another game.
    """
    n, probability = saved["n"], env.ale.getFloat("repeat_action_probability")
    n_surely = math.ceil(math.log(_DOUBT) / math.log(min(probability, 0.99))) if n else 0
    env.restore_state(saved["state"])
    for action in env.ale.getLegalActionSet() if n else ():
        for _ in range(n_surely):
            env.ale.act(action)
        env.restore_state(saved["state"])
        same = _digest_after(env, n) == saved["digest"]
        env.restore_state(saved["state"])
        if same:
            return
    if n:
        raise ValueError("no action leads to the frames that were saved: is it the same game and version of ale-py?")


def _frames_that_repeat(env: Any, state: Any) -> int:
    """Return how many of the next frames repeat the previous action."""
    probability = env.ale.getFloat("repeat_action_probability")
    if probability <= 0:
        return 0
    engines = _ENGINE.findall(state.__getstate__())
    if len(engines) != 2 or getattr(env, "continuous", False):
        raise TypeError(
            f"`clone_state` leaves out the action that repeat_action_probability={probability:g} repeats, and it "
            "cannot be found out with this version of ale-py or with continuous actions: make the environment with "
            "`repeat_action_probability=0.0`"
        )
    *words, position = map(int, engines[1].split())
    twister = np.random.RandomState()
    twister.set_state(("MT19937", np.array(words, np.uint32), position, 0, 0.0))
    drawn = np.frombuffer(twister.bytes(4 * _DRAWS), "<u4")[::2] / 2.0**32
    return int(np.argmin(np.append(drawn < probability, False)))


def _digest_after(env: Any, n: int) -> bytes:
    """Make ``n`` frames, and return a digest of the state that they lead to."""
    noop = env.ale.getLegalActionSet()[0]
    for _ in range(n):
        env.ale.act(noop)
    return hashlib.sha256(env.clone_state(include_rng=True).__getstate__()).digest()
