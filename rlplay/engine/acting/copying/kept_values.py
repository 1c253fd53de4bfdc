"""What the modules of a behaviour copy keep in attributes, apart from modules, weights and plain values.

Tensors, arrays and random generators that are attributes, or in nests that are, are written into those of the new
copy, if it has them in the same shape, and tensors also in the same places in memory. Attributes that consist of these
and of objects of Python's and NumPy's own classes are pickled, and replaced if the new copy has something else. All
other attributes stay as the new copy has them.
"""

from __future__ import annotations

import hashlib
import io
import pickle
import random
from collections.abc import Mapping
from itertools import islice
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from ....nested import leaves
from ...envs.saving.whole import is_trusted
from ..plain_attributes import NOT_LOOKED_AT, AttributeName, dotted, plain_of
from ..weights import named_weights
from .kept_memory import Place, Remade, places_of

__all__ = ["kept_values", "load_kept_values"]

_Id = tuple[str | int, ...]
"""Identifies an object that is saved apart from the attributes that refer to it."""

_OTHERS = (np.ndarray, torch.Generator, np.random.Generator, np.random.RandomState, random.Random)


def kept_values(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return what modules keep in attributes.

    Returns
    -------
    dict
        Lists of ``[module, attribute, ...]``. ``tensors``, ``others``: the values; ``places``: which memory the tensors
        lie in; ``ids``: which of the others are one object; ``values``: a digest, for attributes that are pickled.
        ``pickled``: these attributes by their names.
    """
    found = _Found(modules)
    return {
        "tensors": [[*name, [x.detach().to("cpu", copy=True) for x in some]] for name, some in found.tensors.items()],
        "places": [[*name, [list(place) for place in some]] for name, some in found.places.items()],
        "others": [[*name, [_pack(x) for x in some]] for name, some in found.others.items()],
        "ids": [[*name, [list(found.ids[id(x)][1]) for x in some]] for name, some in found.others.items()],
        "values": [[*name, digest] for name, digest in found.digests.items()],
        "pickled": found.pickled({name: found.attributes[name] for name in found.digests}),
    }


def load_kept_values(modules: Mapping[str, nn.Module], state: Mapping[str, Any], device: torch.device) -> None:
    """Restore what :func:`kept_values` returned. Tensors that are made anew are made on ``device``.

    Raises
    ------
    ValueError
        The actor has other tensors in attributes of which not all could be saved.
    """
    found = _Found(modules)
    digests = {(name, key): digest for name, key, digest in state["values"]}
    objects, changed = {key: x for x, key in found.ids.values()}, digests != found.digests
    restored = _restored_tensors(found, state, digests, device)
    with torch.no_grad():
        for (name, key), (tensors, saved, anew) in restored.items():
            objects |= {("tensor", name, key, k): x.copy_(saved[k]) for k, x in enumerate(tensors)}
            changed |= anew
    saved_ids = {(name, key): ids for name, key, ids in state["ids"]}
    taken: dict[int, list[Any]] = {}
    for name, key, packed in state["others"]:
        own_others = found.others.get((name, key), [])
        for k, (one, saved_id) in enumerate(zip(packed, saved_ids[name, key], strict=True)):
            own_one = own_others[k] if k < len(own_others) else None
            if taken.setdefault(id(own_one), saved_id) != saved_id:
                own_one = None  # it was one object, and had become several
            made = _unpack(one, own_one, device)
            objects["other", name, key, k] = made
            changed |= made is not own_one
    if changed:
        for (name, key), value in _Unpickler(io.BytesIO(state["pickled"]), objects).load().items():
            vars(modules[name])[key] = value


def _restored_tensors(
    found: _Found, state: Mapping[str, Any], digests: Mapping[AttributeName, bytes], device: torch.device
) -> dict[AttributeName, tuple[list[Tensor], list[Tensor], bool]]:
    """Return a triple for each attribute: its tensors, the values to write into them, and whether the tensors are new.

    The tensors of the new copy are taken, unless they have other shapes or lie otherwise in memory.

    Raises
    ------
    ValueError
        Those of an attribute that is not pickled have other shapes, or share other memory.
    """
    saved: dict[AttributeName, list[Tensor]] = {(name, key): some for name, key, some in state["tensors"]}
    places = {(name, key): [(at, offset, steps) for at, offset, steps in some] for name, key, some in state["places"]}
    taken: dict[AttributeName, list[Tensor]] = {}
    for name, some in saved.items():
        own, own_places = found.tensors.get(name, []), found.places.get(name, [])
        alike = [(x.shape, x.dtype) for x in own] == [(x.shape, x.dtype) for x in some]
        if alike and own_places == places[name]:
            taken[name] = own
        elif name not in digests:
            if not alike or [at for at, *_ in own_places] != [at for at, *_ in places[name]]:
                raise ValueError(
                    f"the state does not fit this actor: the tensors in its {dotted(name)!r} had other shapes, or "
                    "shared other memory, and what else is in there cannot be saved. Keep such tensors in an "
                    "attribute of their own."
                )
            taken[name] = own
    pairs = [(x, place) for name, some in saved.items() for x, place in zip(some, places[name], strict=True)]
    stays = {
        place[0]: x
        for name, own in taken.items()
        for x, place in zip(own, places[name], strict=True)
        if isinstance(place[0], int) and place[0] >= 0
    }
    remade = Remade([x for x, _ in pairs], [place for _, place in pairs], stays, found.weights, device)
    return {
        name: (taken[name], some, False)
        if name in taken
        else ([remade.make(x, place) for x, place in zip(some, places[name], strict=True)], some, True)
        for name, some in saved.items()
    }


class _Found:
    """What is found in the attributes of modules, by the names of modules and attributes."""

    def __init__(self, modules: Mapping[str, nn.Module]) -> None:
        plain = plain_of(modules)
        self.attributes: dict[AttributeName, Any] = {
            (name, key): value
            for name, module in modules.items()
            for key, value in vars(module).items()
            if key not in NOT_LOOKED_AT and key not in plain[name]
        }
        self.weights = named_weights(dict(modules))
        self.ids: dict[int, tuple[Any, _Id]] = {id(x): (x, ("weight", name)) for name, x in self.weights.items()}
        self.tensors, self.others = self._find("tensor", Tensor), self._find("other", _OTHERS)
        self.places = self._places()
        digests = {name: self._digest(value) for name, value in self.attributes.items()}
        self.digests = {name: digest for name, digest in digests.items() if digest}
        """Of those attributes that can be pickled by value."""

    def _find(self, kind: str, types: Any) -> dict[AttributeName, list[Any]]:
        """Return the objects of some types in each attribute that has any; weights are left out."""
        found: dict[AttributeName, list[Any]] = {}
        for name, value in self.attributes.items():
            some = [x for x in leaves(value) if isinstance(x, types)]
            some = [x for x in some if self.ids.get(id(x), (x, ("",)))[1][0] != "weight"]
            if some:
                found[name] = some
            for k, x in enumerate(some):
                self.ids.setdefault(id(x), (x, (kind, *name, k)))
        return found

    def _places(self) -> dict[AttributeName, list[Place]]:
        """Return the places in memory of the tensors in each attribute."""
        names = sorted(self.tensors)
        places = iter(places_of([x for name in names for x in self.tensors[name]], self.weights))
        return {name: list(islice(places, len(self.tensors[name]))) for name in names}

    def pickled(self, value: Any) -> bytes:
        """Pickle a value that refers to what has an id."""
        file = io.BytesIO()
        _Pickler(file, self.ids).dump(value)
        return file.getvalue()

    def _digest(self, value: Any) -> bytes:
        try:
            return hashlib.sha256(self.pickled(value)).digest()
        except Exception:  # what cannot be pickled by value is left as it is
            return b""


class _Pickler(pickle.Pickler):
    def __init__(self, file: io.BytesIO, ids: Mapping[int, tuple[Any, _Id]]) -> None:
        super().__init__(file, protocol=5)
        self._ids = ids

    def persistent_id(self, obj: Any) -> _Id | None:
        known = self._ids.get(id(obj))
        return None if known is None else known[1]

    def reducer_override(self, obj: Any) -> Any:
        named = isinstance(obj, type | FunctionType | BuiltinFunctionType)
        if isinstance(obj, nn.Module | Tensor) or not is_trusted(obj if named else type(obj)):
            raise pickle.PicklingError(f"{type(obj).__name__} is not pickled by value")
        return NotImplemented


class _Unpickler(pickle.Unpickler):
    def __init__(self, file: io.BytesIO, objects: Mapping[_Id, Any]) -> None:
        super().__init__(file)
        self._objects = objects

    def persistent_load(self, pid: Any) -> Any:
        return self._objects[pid]


def _pack(one: Any) -> Any:
    """Return the type of the device and the state of a generator of torch; pickle any other object."""
    return [one.device.type, one.get_state()] if isinstance(one, torch.Generator) else pickle.dumps(one)


def _unpack(packed: Any, own: Any, device: torch.device) -> Any:
    """Put ``own`` into the packed state and return it; if its kind or shape differs, return a new object.

    A new generator of torch is made on ``device`` if that has the type of the packed one's device.
    """
    if isinstance(packed, list):
        kind, state = packed
        if not (isinstance(own, torch.Generator) and own.device.type == kind):
            own = torch.Generator(device if device.type == kind else kind)
        return own.set_state(state.cpu())
    made = pickle.loads(packed)
    if type(own) is not type(made):
        return made
    if isinstance(made, np.ndarray):
        if (own.shape, own.dtype) != (made.shape, made.dtype) or not own.flags.writeable:
            return made
        own[...] = made
    elif isinstance(made, random.Random):
        own.setstate(made.getstate())
    elif isinstance(made, np.random.RandomState):
        own.set_state(made.get_state(legacy=False))
    elif type(own.bit_generator) is type(made.bit_generator):
        own.bit_generator.state = made.bit_generator.state
    else:
        return made
    return own
