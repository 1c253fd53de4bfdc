"""The parts of a learning algorithm as pure functions of fragments and arrays.

:mod:`~rlplay.algo.returns`
    Functions of arrays: returns, temporal differences, GAE and V-trace.
:func:`transitions`
    Converts a fragment to the arguments of these functions, with correct values where an episode was truncated.
:func:`unroll`
    Runs an actor over a fragment, with gradients.
:mod:`~rlplay.algo.policy`
    Reads the distribution of a policy, for any action space, from an actor's info.
:mod:`~rlplay.algo.a2c`, :mod:`~rlplay.algo.ppo`, :mod:`~rlplay.algo.vtrace`, :mod:`~rlplay.algo.dqn`
    Losses of fragments: ``loss(fragment, actor, ...) -> (loss, info)``, where info is a dict of detached tensors.
:mod:`~rlplay.algo.c51`, :mod:`~rlplay.algo.quantile`, :mod:`~rlplay.algo.sac`, :mod:`~rlplay.algo.td3`
    Losses of transitions from a replay buffer; :mod:`~rlplay.algo.dqn` has one as well. SAC and TD3 have losses of
    sequences, too, for actors and critics with a recurrent state.
:mod:`~rlplay.algo.r2d2`
    Parts of learning from replayed sequences with recurrent networks.
:class:`RunningNorm`, :class:`ReturnNorm`
    Running normalisation of observations and rewards, as modules with state.

``torch.compile(loss)`` compiles one graph for all fragments of one shape. If the fragments have ``final`` it compiles
up to four, since the number of episodes that ended may be zero, one or more. With a recurrent actor, unrolling runs
eagerly and the rest is compiled.

This package imports only the data types of :mod:`rlplay.engine` and :mod:`rlplay.replay`. It must not import
environments or threads.
"""

import sys

from . import returns
from .losses import a2c, actor_critic, c51, dqn, ppo, quantile, r2d2, sac, td3, vtrace
from .normalisation import ReturnNorm, RunningNorm
from .transitions import Transitions, blank_padding, taken, transitions
from .unroll import Unrolled, unroll

for module in (a2c, actor_critic, c51, dqn, ppo, quantile, r2d2, sac, td3, vtrace):  # `rlplay.algo.a2c`, for short
    sys.modules[module.__name__.replace(".losses.", ".")] = module

__all__ = [
    "ReturnNorm",
    "RunningNorm",
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
