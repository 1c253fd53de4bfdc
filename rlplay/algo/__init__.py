"""The pure pieces of a learning algorithm: what a training loop makes of a fragment.

:mod:`~rlplay.algo.returns` knows arrays alone: returns, temporal differences, GAE and V-trace. :func:`transitions`
turns a fragment into what they take, right under truncation; :func:`unroll` runs an actor over a fragment, with
gradients. The losses stand above these, each in a module of its own (:mod:`~rlplay.algo.a2c`).

This room knows the nouns of :mod:`rlplay.engine`. It knows no environments and no threads.
"""

from . import a2c, returns
from .transitions import Transitions, blank_padding, transitions
from .unroll import Unrolled, unroll

__all__ = ["Transitions", "Unrolled", "a2c", "blank_padding", "returns", "transitions", "unroll"]
