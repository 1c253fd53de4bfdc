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

from importlib import import_module
from typing import TYPE_CHECKING, Any

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

_NEED_TORCH = {"CountingActor": ".actors", "ClockedLane": ".clocked", "LaggingLane": ".lagging"}
"""The module of each name that is imported on first use."""


def __getattr__(name: str) -> Any:
    """Import what needs torch on first use, so that processes that only step the environments load no torch."""
    if name in _NEED_TORCH:
        return getattr(import_module(_NEED_TORCH[name], __name__), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    """List names that are imported on first use, too: for completion, and for the documentation."""
    return sorted({*globals(), *__all__})
