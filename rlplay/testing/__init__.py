"""Helpers for tests: environments and actors whose numbers encode environment, episode and step; a lagging device.

``LedgerEnv``
    An environment with the API of gym 0.26 and gymnasium. Its observations and rewards encode the environment, the
    episode and the step.
``OldLedgerEnv``
    The same environment with the API of gym up to 0.25.
``make_ledger``
    Makes a ``LedgerEnv`` or an ``OldLedgerEnv``.
``FORMS``
    The names of the observation spaces that a ledger environment can have.
``ACTIONS``
    The names of the action spaces that a ledger environment can have.
``observation_space``, ``action_space``
    Make a space from its name.
``Origin``
    A tuple of environment, episode and step.
``encode``, ``decode``
    Convert an environment, episode and step to one number, and back to an ``Origin``.
``CountingActor``
    An actor that returns its inputs as its info, and whose recurrent state counts rows.
``ClockedLane``
    A lagging device with a virtual clock, which computes how long collecting takes.
``LaggingLane``
    A lagging device: a simulated accelerator that runs queued work as late as possible, or earlier with ``haste``.

The engine must not import this package.
"""

from typing import TYPE_CHECKING

from ..lazy_imports import import_on_first_use
from .forms import ACTIONS, FORMS, Origin, action_space, decode, encode, observation_space
from .ledger import LedgerEnv, OldLedgerEnv, make_ledger

if TYPE_CHECKING:
    from .actors import CountingActor
    from .clocked import ClockedLane
    from .lagging import LaggingLane

__all__ = [
    "make_ledger",
    "LedgerEnv",
    "OldLedgerEnv",
    "ClockedLane",
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

__getattr__, __dir__ = import_on_first_use(
    __name__, {"ClockedLane": ".clocked", "CountingActor": ".actors", "LaggingLane": ".lagging"}
)
