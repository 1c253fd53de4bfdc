"""Fingerprints of what a module stores besides parameters and buffers, to see whether a step has changed any of it."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

from torch import Generator, Tensor, nn

__all__ = ["fingerprints"]


def fingerprints(module: nn.Module) -> dict[str, Any]:
    """Return a fingerprint of each attribute of a module and its submodules, by the attribute's dotted name.

    Two fingerprints of an attribute are equal if it has not changed in between. Parameters, buffers, submodules and
    ``generator`` have none.
    """
    weights = {id(x) for x in (*module.parameters(), *module.buffers())}
    return {
        f"{name}.{key}".lstrip("."): _fingerprint(value, weights)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in ("_parameters", "_buffers", "_modules", "generator")
    }


def _fingerprint(value: Any, weights: set[int]) -> Any:
    """Return an object that compares equal as long as ``value`` is unchanged."""
    pickler = _FingerprintPickler(file := BytesIO(), weights)
    try:
        pickler.dump(value)
    except Exception:  # cannot be pickled, such as a lambda or a lock: compared by identity
        return id(value)
    return file.getvalue(), _KeptAlive(pickler.by_identity)


class _FingerprintPickler(pickle.Pickler):
    """Pickles a value, with the identity of tensors, modules and generators instead of their contents.

    A tensor may be large, so it is described by its ``id`` and its version counter, which each write increments.

    Parameters
    ----------
    file : BytesIO
        Receives the pickle.
    weights : set of int
        The ``id`` of parameters and buffers, whose versions are ignored.

    Attributes
    ----------
    by_identity : list
        The objects that are described by their ``id``, which is unique only while they are alive.
    """

    def __init__(self, file: BytesIO, weights: set[int]) -> None:
        super().__init__(file)
        self._weights, self.by_identity = weights, list[Any]()

    def persistent_id(self, thing: Any) -> Any:
        """Return identity and version of an object that is not to be pickled, None for any other."""
        if not isinstance(thing, Tensor | nn.Module | Generator):
            return None
        self.by_identity.append(thing)
        return id(thing), thing._version if isinstance(thing, Tensor) and id(thing) not in self._weights else 0


class _KeptAlive(list[Any]):
    """Objects that a fingerprint keeps alive. All such lists are equal, since only the pickles are to be compared."""

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _KeptAlive)
