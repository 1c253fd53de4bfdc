"""Small environments that are learnt in seconds and whose optimum is known.

Single ones derive from ``gymnasium.Env`` (from gym's ``Env`` where gymnasium is not installed), draw random numbers
only from their own ``np_random``, and return new float32 arrays as observations (``BitFlip``: dicts of them). Where an
environment has these attributes, ``optimum`` is the expected undiscounted return of the best policy, and ``chance`` the
expected undiscounted return of uniformly random actions.

``NarrowPath``
    The observation shows the right action, and a wrong action terminates the episode.
``Chain``
    A chain of states with a reward at either end, whose action values are known exactly.
``Catch``
    A paddle has to catch a falling ball. The reward comes only at the end of an episode.
``Recall``
    A cue has to be remembered, which needs a recurrent actor.
``Regulator``
    Continuous control: linear dynamics, quadratic costs.
``Endless``
    Episodes never terminate; a time limit truncates them. The value function needs bootstrapping at time limits.
``BitFlip``
    Bits have to be made equal to a goal, which chance hardly ever reaches.
``DeepSea``
    A rare reward at the end of a long way, which needs exploration.
``CartPoleBatch``, ``RegulatorBatch``
    Many environments at once, written in torch: CartPole with gymnasium's dynamics, and the regulator. They take and
    return tensors on their device, and draw from their own ``generator``.
"""

from typing import TYPE_CHECKING

from ...lazy_imports import import_on_first_use
from .bit_flip import BitFlip
from .catch import Catch
from .chain import Chain
from .deep_sea import DeepSea
from .endless import Endless
from .path import NarrowPath
from .recall import Recall
from .regulator import Regulator

if TYPE_CHECKING:
    from .batches import CartPoleBatch, RegulatorBatch

__all__ = [
    "BitFlip",
    "CartPoleBatch",
    "Catch",
    "Chain",
    "DeepSea",
    "Endless",
    "NarrowPath",
    "Recall",
    "Regulator",
    "RegulatorBatch",
]

__getattr__, __dir__ = import_on_first_use(__name__, dict.fromkeys(("CartPoleBatch", "RegulatorBatch"), ".batches"))
