"""Environments that are learnt in seconds, each a page, each with a known optimum.

They speak the dialect of gym 0.26, draw only from their own ``np_random``, and hand out observations that are new
float32 arrays. An ``optimum`` is the expected undiscounted return of the best policy, ``chance`` that of the uniformly
random one.

``NarrowPath``
    One wrong step ends it: control with the answer in view.
``Chain``
    Action values in closed form.
``Catch``
    A ball falls, a paddle waits: reward only at the end.
``Recall``
    A cue to be remembered: for recurrent actors.
``Regulator``
    Continuous control: linear dynamics, quadratic costs.
``Endless``
    Cut by a time limit, never ended: shows who forgets to bootstrap.
"""

from .catch import Catch
from .chain import Chain
from .endless import Endless
from .path import NarrowPath
from .recall import Recall
from .regulator import Regulator

__all__ = ["Catch", "Chain", "Endless", "NarrowPath", "Recall", "Regulator"]
