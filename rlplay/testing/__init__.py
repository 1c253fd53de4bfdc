"""Helpers for tests: environments and actors whose numbers identify their origin, and a simulated device.

``make_ledger``, ``LedgerEnv``, ``OldLedgerEnv``
    An environment whose observations and rewards encode the environment, the episode and the step.
``FORMS``, ``ACTIONS``
    The names of its observation spaces and of its action spaces.
``observation_space``, ``action_space``
    Make a space from its name.
``Origin``, ``encode``, ``decode``
    An environment, episode and step; encoded as a number, and decoded.
``CountingActor``
    An actor that returns its inputs as its info, and whose recurrent state counts rows.
``LaggingLane``
    A simulated accelerator that runs all work as late as its streams allow.
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
