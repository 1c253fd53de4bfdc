"""Packs the values of plain attributes as what ``torch.load`` with ``weights_only=True`` reads.

A number or a string of a class of the user's, such as a member of an ``IntEnum``, is packed as the number or string and
the name of the class. A collector process has classes of the user's script by value, and does not find them by name:
there they are looked for in the actor.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable, Iterator
from enum import Enum
from types import FunctionType
from typing import Any

from torch import nn

from ...envs.saving.functions import found_by_name

__all__ = ["pack_plain", "unpack_plain"]

_AS_THEY_ARE = (bool, int, float, str, type(None))


def pack_plain(value: Any) -> Any:
    """Return a plain value as a number, string, bytes or None, or a list of strings and such a value."""
    kind = type(value)
    if kind in _AS_THEY_ARE:
        return value
    base = next((x for x in (int, float, str) if isinstance(value, x)), None)
    if base is None or kind.__module__ == "numpy" or (vars(value) and not isinstance(value, Enum)):
        return pickle.dumps(value)
    plain = {int: int.__int__, float: float.__float__, str: str.__str__}[base](value)
    return [kind.__module__, kind.__qualname__, plain]


def unpack_plain(packed: Any, modules: Iterable[nn.Module]) -> Any:
    """Return the value that :func:`pack_plain` has packed.

    Parameters
    ----------
    modules : iterable of Module
        The modules of the actor, where classes are looked for that cannot be found by name.

    Raises
    ------
    ValueError
        The class of the value is not found.
    """
    if isinstance(packed, bytes):
        return pickle.loads(packed)
    if not isinstance(packed, list):
        return packed
    module, name, plain = packed
    for kind in (found_by_name(module, name), *_classes_of(modules)):
        if isinstance(kind, type) and (kind.__module__, kind.__qualname__) == (module, name):
            return kind(plain)
    raise ValueError(f"the state has a value of the class {module}.{name}, which is not found: define or import it.")


def _classes_of(modules: Iterable[nn.Module]) -> Iterator[Any]:
    """Yield the classes of the attributes of modules, and the global variables of methods of the user's script."""
    for module in modules:
        yield from map(type, vars(module).values())
        for kind in type(module).__mro__:
            functions = [x for x in vars(kind).values() if isinstance(x, FunctionType) and x.__module__ == "__main__"]
            for function in functions:
                yield from list(function.__globals__.values())
