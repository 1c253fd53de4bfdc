"""Fingerprints of what a step may keep outside of parameters and buffers, to find what it has changed."""

from __future__ import annotations

import pickle
import random
from io import BytesIO
from types import FunctionType
from typing import Any

import numpy as np
from torch import Generator, Tensor, nn

from ...envs.saving.functions import found_by_name
from ..copying.parts import held_parts
from ..copying.walk import Walk

__all__ = ["fingerprints"]

_GENERATORS = (np.random.Generator, np.random.RandomState, random.Random)


def fingerprints(module: nn.Module) -> dict[str, Any]:
    """Return a fingerprint of each attribute of a module and its submodules, by the attribute's dotted name.

    Two fingerprints of an attribute are equal if the attribute has not changed in between. Parameters, buffers,
    submodules and ``generator`` have no fingerprint. Random generators that the code finds elsewhere, as in a global
    variable, have one, by the path to them.
    """
    weights = {id(x) for x in (*module.parameters(), *module.buffers())}
    attributes = {
        f"{name}.{key}".lstrip("."): _fingerprint(value, weights)
        for name, part in module.named_modules()
        for key, value in vars(part).items()
        if key not in ("_parameters", "_buffers", "_modules", "generator")
    }
    found = [x for x in Walk(module, with_code=True) if x.by_code and isinstance(x.value, _GENERATORS)]
    return attributes | {place.path: _fingerprint(place.value, weights) for place in found}


def _fingerprint(value: Any, weights: set[int]) -> Any:
    """Return an object that compares equal as long as ``value`` is unchanged."""
    pickler = _FingerprintPickler(file := BytesIO(), weights)
    try:
        pickler.dump(value)
    except Exception:  # a lock, for example, cannot be pickled, and is compared by identity
        return id(value)
    return file.getvalue(), _References(pickler.by_identity)


class _FingerprintPickler(pickle.Pickler):
    """Pickles a value, with the identity of tensors, modules and generators instead of their contents.

    A tensor may be large, so it is described by its ``id`` and its version counter, which each write increments.
    Functions and classes that have no name to be found by are described by their identity; functions also by the
    variables that they refer to, which may change.

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

    def reducer_override(self, value: Any) -> Any:
        """Describe a function or class that has no name to be found by; it is never unpickled."""
        if not isinstance(value, FunctionType | type) or found_by_name(value.__module__, value.__qualname__) is value:
            return NotImplemented
        self.by_identity.append(value)
        return object, (), (id(value), list(held_parts(value)))


class _References(list[Any]):
    """References that keep the objects of a fingerprint alive.

    ``==`` of two such lists is always True, so that comparing fingerprints compares only the pickles.
    """

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _References)
