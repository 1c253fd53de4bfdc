"""The parts of a learning algorithm as pure functions of fragments and arrays.

:mod:`~rlplay.algo.returns`
    Functions of arrays: returns, temporal differences, GAE and V-trace.
:func:`transitions`
    Converts a fragment to the arguments of these functions, with correct values where an episode was truncated.
:func:`unroll`
    Runs an actor over a fragment, with gradients.
:mod:`~rlplay.algo.a2c`, :mod:`~rlplay.algo.ppo`, :mod:`~rlplay.algo.vtrace`, :mod:`~rlplay.algo.dqn`
    The losses: ``loss(fragment, actor, ...) -> (loss, info)``, where info is a dict of detached tensors.

``torch.compile(loss)`` compiles one graph for all fragments of one shape. If the fragments have ``final`` it compiles
up to four, since the number of episodes that ended may be zero, one or more. With a recurrent actor, unrolling runs
eagerly and the rest is compiled.

This package imports only the data types of :mod:`rlplay.engine` and :mod:`rlplay.replay`. It must not import
environments or threads.
"""

import sys

from . import returns
from .losses import a2c, actor_critic, c51, dqn, ppo, quantile, r2d2, sac, td3, vtrace
from .transitions import Transitions, blank_padding, taken, transitions
from .unroll import Unrolled, unroll

for module in (a2c, actor_critic, dqn, ppo, vtrace):  # their first paths, `rlplay.algo.a2c`, stay importable
    sys.modules[module.__name__.replace(".losses.", ".")] = module

__all__ = [
    "Transitions",
    "Unrolled",
    "a2c",
    "blank_padding",
    "c51",
    "dqn",
    "ppo",
    "quantile",
    "r2d2",
    "returns",
    "sac",
    "taken",
    "td3",
    "transitions",
    "unroll",
    "vtrace",
]
