"""The state of a behaviour copy that no snapshot contains: plain attributes, and values kept in other attributes.

Saved as dicts, lists, numbers, strings, bytes and tensors on the host. Weights are left out: each snapshot overwrites
them before the copy acts, and empties the buffers that the copy has filled. What has been seen of the learner's actor
is saved apart: it belongs to whoever takes the snapshots, which may be another process.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from ....dtypes import as_bytes
from ..plain_attributes import NO_CHANGES, PlainChange, PlainChanges, PlainWatch, dotted, load_plain, plain_of
from .kept_values import kept_values, load_kept_values
from .plain_values import pack_plain, unpack_plain

__all__ = [
    "copy_state",
    "load_copy_state",
    "load_watch_state",
    "pack_changes",
    "unpack_changes",
    "watch_state",
    "what_differs",
]

_MISSING = object()


def copy_state(modules: Mapping[str, nn.Module]) -> dict[str, Any]:
    """Return the state of a copy whose modules are these, by name."""
    return {"plain": _pack(plain_of(modules)), **kept_values(modules)}


def load_copy_state(modules: Mapping[str, nn.Module], state: Mapping[str, Any], *, keep_others: bool) -> None:
    """Put a copy into a state that :func:`copy_state` returned. ``keep_others`` as for :func:`.load_plain`.

    Raises
    ------
    ValueError
        The actor has other modules, or its attributes do not fit (:func:`.kept_values.load_kept_values`).
    """
    plain = _unpack(state["plain"], modules.values())
    if plain.keys() != modules.keys():
        raise ValueError(
            f"the state is of another actor: it had the modules {sorted(plain)}, and has {sorted(modules)}."
        )
    load_plain(modules, plain, keep_others=keep_others)
    load_kept_values(modules, state, _device_of(modules))


def watch_state(watch: PlainWatch) -> dict[str, Any]:
    """Return what has been seen of the learner's actor."""
    watched = watch.state_dict()
    return {"seen": _pack(watched["seen"]), "latest": pack_changes(watched["latest"])}


def load_watch_state(watch: PlainWatch, state: Mapping[str, Any], modules: Iterable[nn.Module]) -> None:
    """Continue from what :func:`watch_state` returned, with the classes of values that ``modules`` have."""
    seen, latest = _unpack(state["seen"], modules), unpack_changes(state["latest"], modules)
    watch.load_state_dict({"seen": seen, "latest": latest})


def what_differs(states: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the attributes in which states of copies of one actor differ; sorted."""
    first, *others = [_by_name(state) for state in states]
    names = {name for one in (first, *others) for name in one}
    differ = {
        name for name in names if any(not _same(first.get(name, _MISSING), one.get(name, _MISSING)) for one in others)
    }
    return sorted({attribute for _, attribute in differ})


def _by_name(state: Mapping[str, Any]) -> dict[tuple[str, str], Any]:
    """Return the values in a state of a copy, by the kind and the name of the attribute."""
    found = {("plain", dotted((name, key))): x for name, own in state["plain"].items() for key, x in own.items()}
    for kind in ("tensors", "others", "values"):
        found |= {(kind, dotted((name, key))): x for name, key, x in state[kind]}
    return found


def _same(one: Any, other: Any) -> bool:
    """Return whether two values are the same to the last bit: tensors, lists of tensors, or plain values."""
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if isinstance(one, Tensor) and isinstance(other, Tensor):
        alike = (one.dtype, one.shape) == (other.dtype, other.shape)
        return alike and torch.equal(as_bytes(one), as_bytes(other))
    return type(one) is type(other) and bool(repr(one) == repr(other))


def pack_changes(changes: PlainChanges) -> list[Any]:
    """Return changes of plain attributes as a list of numbers, strings and bytes."""
    packed = [
        [name, key, one.number, one.present, pack_plain(one.value)] for (name, key), one in changes.changes.items()
    ]
    return [changes.number, packed]


def unpack_changes(packed: list[Any], modules: Iterable[nn.Module]) -> PlainChanges:
    """Return the changes that :func:`pack_changes` has packed, with the classes of values that ``modules`` have."""
    number, changes = packed
    if not number:
        return NO_CHANGES
    return PlainChanges(
        number,
        {(name, key): PlainChange(at, present, unpack_plain(x, modules)) for name, key, at, present, x in changes},
    )


def _pack(plain: Mapping[str, Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    return {name: {key: pack_plain(x) for key, x in own.items()} for name, own in plain.items()}


def _unpack(packed: Mapping[str, Mapping[str, Any]], modules: Iterable[nn.Module]) -> dict[str, dict[str, Any]]:
    return {name: {key: unpack_plain(x, modules) for key, x in own.items()} for name, own in packed.items()}


def _device_of(modules: Mapping[str, nn.Module]) -> torch.device:
    found = (x.device for module in modules.values() for x in (*module.parameters(), *module.buffers()))
    return next(found, torch.device("cpu"))
