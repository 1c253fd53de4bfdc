"""What a behaviour copy has that no snapshot brings: plain attributes, filled buffers, tensors in other attributes.

Saved as dicts, lists, numbers, strings, bytes and tensors on the host. Weights are left out: each snapshot overwrites
them before the copy acts. What has been seen of the learner's actor is saved apart: it belongs to whoever takes the
snapshots, which may be another process.
"""

from __future__ import annotations

import io
import pickle
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....nested import leaves
from ..plain_attributes import NO_CHANGES, PlainChange, PlainChanges, PlainWatch, load_plain, plain_of

__all__ = [
    "copy_state",
    "load_copy_state",
    "load_watch_state",
    "pack_changes",
    "unpack_changes",
    "watch_state",
    "what_differs",
]

_AS_THEY_ARE = (bool, int, float, str, type(None))
"""``torch.load`` with ``weights_only=True`` reads these."""

_MISSING = object()
_OWN_OF_MODULES = frozenset(vars(nn.Module())) | {"generator"}


def copy_state(modules: Mapping[str, nn.Module], empty: Mapping[str, set[str]]) -> dict[str, Any]:
    """Return the state of a copy.

    Parameters
    ----------
    modules : mapping of str to module
        The modules of the copy, by name.
    empty : mapping of str to set of str
        For each module: its buffers that were None when the copy was made.
    """
    weights = _weights_of(modules)
    filled = [
        [name, key, buffer.to("cpu", copy=True)]
        for name, module in modules.items()
        for key, buffer in module._buffers.items()
        if buffer is not None and key in empty[name]
    ]
    tensors = [
        [name, key, [x.detach().to("cpu", copy=True) for x in found]]
        for name, module in modules.items()
        for key, found in _tensors(module, weights).items()
    ]
    generators = [
        [name, key, generator.get_state()]
        for name, module in modules.items()
        for key, generator in _generators(module).items()
    ]
    return {"plain": _pack(plain_of(modules)), "filled": filled, "tensors": tensors, "generators": generators}


def load_copy_state(modules: Mapping[str, nn.Module], state: Mapping[str, Any]) -> None:
    """Put a copy into a state that :func:`copy_state` returned.

    Raises
    ------
    ValueError
        The actor has other modules, or other tensors in its attributes.
    """
    plain = _unpack(state["plain"])
    if plain.keys() != modules.keys():
        raise ValueError(
            f"the state is of another actor: it had the modules {sorted(plain)}, and has {sorted(modules)}."
        )
    load_plain(modules, plain)
    for name, key, value in state["filled"]:
        modules[name]._buffers[key] = value.to(_device_of(modules), copy=True)
    weights = _weights_of(modules)
    for name, key, values in state["tensors"]:
        own = _tensors(modules[name], weights).get(key, [])
        if [x.shape for x in own] != [x.shape for x in values]:
            raise ValueError(f"the state is of another actor: the tensors in its {_dotted(name, key)!r} differ.")
        with torch.no_grad():
            for target, value in zip(own, values, strict=True):
                target.copy_(value)
    for name, key, value in state["generators"]:
        generator = _generators(modules[name]).get(key)
        if generator is None:
            raise ValueError(f"the state is of another actor: its {_dotted(name, key)!r} is no generator any more.")
        generator.set_state(value.cpu())


def watch_state(watch: PlainWatch) -> dict[str, Any]:
    """Return what has been seen of the learner's actor."""
    watched = watch.state_dict()
    return {"seen": _pack(watched["seen"]), "latest": pack_changes(watched["latest"])}


def load_watch_state(watch: PlainWatch, state: Mapping[str, Any]) -> None:
    """Continue from what :func:`watch_state` returned."""
    watch.load_state_dict({"seen": _unpack(state["seen"]), "latest": unpack_changes(state["latest"])})


def what_differs(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the attributes and buffers in which states of copies of one actor differ; sorted."""
    first, *others = [_by_name(state) for state in states]
    names = {name for one in (first, *others) for name in one}
    return sorted(
        name for name in names if any(not _same(first.get(name, _MISSING), one.get(name, _MISSING)) for one in others)
    )


def _by_name(state: Mapping[str, Any]) -> dict[str, Any]:
    """Return what a state of a copy has, by the names of attributes and buffers."""
    found = {_dotted(name, key): x for name, own in state["plain"].items() for key, x in own.items()}
    for kind in ("filled", "tensors", "generators"):
        found |= {_dotted(name, key): x for name, key, x in state[kind]}
    return found


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same to the last bit: tensors, lists of tensors, or plain values."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and torch.equal(_bytes_of(one), _bytes_of(other))
    return type(one) is type(other) and bool(repr(one) == repr(other))


def _bytes_of(x: Tensor) -> Tensor:
    return x.contiguous().reshape(-1).view(torch.uint8)


def pack_changes(changes: PlainChanges) -> list[Any]:
    """Return changes of plain attributes as a list of numbers, strings and bytes."""
    packed = [
        [name, key, one.number, one.present, _pack_value(one.value)] for (name, key), one in changes.changes.items()
    ]
    return [changes.number, packed]


def unpack_changes(packed: list[Any]) -> PlainChanges:
    """Return the changes that :func:`pack_changes` has packed."""
    number, changes = packed
    if not number:
        return NO_CHANGES
    return PlainChanges(
        number, {(name, key): PlainChange(at, present, _unpack_value(x)) for name, key, at, present, x in changes}
    )


def _pack(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: _pack_value(x) for key, x in own.items()} for name, own in plain.items()}


def _unpack(packed: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: _unpack_value(x) for key, x in own.items()} for name, own in packed.items()}


def _pack_value(value: Any) -> Any:
    return value if type(value) in _AS_THEY_ARE else pickle.dumps(value)


def _unpack_value(value: Any) -> Any:
    return pickle.load(io.BytesIO(value)) if isinstance(value, bytes) else value


def _weights_of(modules: Mapping[str, nn.Module]) -> set[int]:
    """Return the ``id()`` of each parameter and buffer."""
    return {id(x) for module in modules.values() for x in (*module._parameters.values(), *module._buffers.values())}


def _tensors(module: nn.Module, weights: set[int]) -> dict[str, list[Tensor]]:
    """Return the tensors in attributes that are neither parameters nor buffers: in nests, too."""
    others = {key: x for key, x in vars(module).items() if key not in _OWN_OF_MODULES}
    found = {key: [x for x in leaves(value) if isinstance(x, Tensor)] for key, value in others.items()}
    found = {key: [x for x in tensors if id(x) not in weights] for key, tensors in found.items()}
    return {key: tensors for key, tensors in found.items() if tensors}


def _generators(module: nn.Module) -> dict[str, torch.Generator]:
    return {key: x for key, x in vars(module).items() if key not in _OWN_OF_MODULES and isinstance(x, torch.Generator)}


def _device_of(modules: Mapping[str, nn.Module]) -> torch.device:
    found = (x.device for module in modules.values() for x in (*module.parameters(), *module.buffers()))
    return next(found, torch.device("cpu"))


def _dotted(name: str, key: str) -> str:
    return f"{name}.{key}" if name else key
