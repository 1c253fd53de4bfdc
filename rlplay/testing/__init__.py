"""For tests, ours and yours: environments and actors whose every number says where it comes from.

``make_ledger``, ``LedgerEnv``, ``OldLedgerEnv``
    An environment that keeps the books: observations and rewards name environment, episode and step.
``FORMS``, ``ACTIONS``
    Names of its forms of observation, and of its action spaces: see :func:`observation_space`, :func:`action_space`.
``Origin``, ``encode``, ``decode``
    From the number to where it comes from, and back.
``CountingActor``
    An actor that returns what it saw as its info, and whose recurrent state counts.
``LaggingLane``
    A simulated accelerator on which everything happens late.
"""

from .actors import CountingActor
from .forms import ACTIONS, FORMS, Origin, action_space, decode, encode, observation_space
from .lagging import LaggingLane
from .ledger import LedgerEnv, OldLedgerEnv, make_ledger

__all__ = [
    "make_ledger",
    "LedgerEnv",
    "OldLedgerEnv",
    "CountingActor",
    "LaggingLane",
    "Origin",
    "encode",
    "decode",
    "observation_space",
    "action_space",
    "FORMS",
    "ACTIONS",
]
