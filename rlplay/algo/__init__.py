"""The pure pieces of a learning algorithm: what a training loop makes of a fragment.

:mod:`~rlplay.algo.returns` knows arrays alone: returns, temporal differences, GAE and V-trace. :func:`transitions`
turns a fragment into what they take, right under truncation; :func:`unroll` runs an actor over a fragment, with
gradients. The losses stand above these, each in a module of its own: :mod:`~rlplay.algo.a2c`, :mod:`~rlplay.algo.ppo`,
:mod:`~rlplay.algo.vtrace`, :mod:`~rlplay.algo.dqn`. Each is ``loss(fragment, actor, ...) -> (loss, info)``, where the
info has detached tensors, for which the device is not made to wait. ``torch.compile(loss)`` makes one graph of it for
all fragments of one shape, and up to four if they have ``final``, as there may be none, one, or many ends of episodes.
With a recurrent actor the unrolling is left as it stands, and the rest is compiled.

This room knows the nouns of :mod:`rlplay.engine` and of :mod:`rlplay.replay`. It knows no environments and no threads.
"""

from . import a2c, dqn, ppo, returns, vtrace
from .transitions import Transitions, blank_padding, taken, transitions
from .unroll import Unrolled, unroll

__all__ = [
    "Transitions",
    "Unrolled",
    "a2c",
    "blank_padding",
    "dqn",
    "ppo",
    "returns",
    "taken",
    "transitions",
    "unroll",
    "vtrace",
]
