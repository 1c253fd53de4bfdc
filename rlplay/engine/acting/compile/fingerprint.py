"""Fingerprints of a module's attributes other than parameters and buffers, to find those that a step has changed."""

from __future__ import annotations

import pickle
from io import BytesIO
from typing import Any

from torch import Generator, Tensor, nn

__all__ = ["fingerprints"]


def fingerprints(module: nn.Module) -> dict[str, Any]:
    """Return a fingerprint of each attribute of a module and its submodules, by the attribute's dotted name.

    Two fingerprints of an attribute are equal if the attribute has not changed in between. Parameters, buffers,
    submodules and ``generator`` have no fingerprint.
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
    except Exception:  # a lambda or a lock, for example, cannot be pickled, and is compared by identity
        return id(value)
    return file.getvalue(), _References(pickler.by_identity)


class _FingerprintPickler(pickle.Pickler):
    """Pickles a value, with the identity of tensors, modules and generators instead of their contents.

    A tensor may be large, so it is described by its ``id`` and its version counter, which each write increments.

    Parameters
    ----------
    file : BytesIO
        Receives the pickle.
    weights : set of int
        The ``id`` of parameters and buffers. Their version counters are ignored, since a step may write to buffers.

    Attributes
    ----------
    by_identity : list
        The objects that are described by their ``id``, which is unique only while the object is alive.
    """

    def __init__(self, file: BytesIO, weights: set[int]) -> None:
        super().__init__(file)
        self._weights, self.by_identity = weights, list[Any]()

    def persistent_id(self, value: Any) -> Any:
        """Return identity and version of a tensor, module or generator; None for an object that is to be pickled."""
        if not isinstance(value, Tensor | nn.Module | Generator):
            return None
        self.by_identity.append(value)
        return id(value), value._version if isinstance(value, Tensor) and id(value) not in self._weights else 0


class _References(list[Any]):
    """References that keep the objects of a fingerprint alive.

    ``==`` of two such lists is always True, so that comparing fingerprints compares only the pickles.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _References)
