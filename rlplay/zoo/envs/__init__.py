"""Small environments that are learnt in seconds and whose optimum is known.

All have the API of gym 0.26, draw random numbers only from their own ``np_random``, and return new float32 arrays as
observations. ``optimum`` is the expected undiscounted return of the best policy, ``chance`` that of the uniformly
random policy.

``NarrowPath``
    The observation shows the right action; a wrong one terminates the episode.
``Chain``
    A walk between two rewards, with exact action values.
``Catch``
    A paddle has to catch a falling ball: reward only at the end.
``Recall``
    A cue has to be remembered: needs a recurrent actor.
``Regulator``
    Continuous control: linear dynamics, quadratic costs.
``Endless``
    Truncated by a time limit and never terminated: needs bootstrapping at time limits.
"""

from .catch import Catch
from .chain import Chain
from .endless import Endless
from .path import NarrowPath
from .recall import Recall
from .regulator import Regulator

__all__ = ["Catch", "Chain", "Endless", "NarrowPath", "Recall", "Regulator"]
