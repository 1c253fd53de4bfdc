"""What an object refers to: the parts that it holds, and what its code can reach by a name.

A part has a name in Python notation, such as ``.head`` or ``['value']``, so that a path can be shown to the user.
Imports nothing else of ``rlplay``.
"""

from __future__ import annotations

import dis
import functools
import gc
import logging
import sys
import types
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

__all__ = [
    "BUILTIN_METHODS",
    "CLASS",
    "VARIABLE",
    "WEAK_CONTAINERS",
    "Part",
    "class_attributes",
    "held_parts",
    "is_atomic",
    "names_in_code",
    "referent_of",
    "slots_of",
    "used_globals",
]

Part = tuple[str, Any]
"""How an object refers to another one, and the other one."""

VARIABLE = " > "
"""Stands in a path before the name of a variable of a function (of its closure, or a global one)."""

CLASS = ".__class__"
"""How an object refers to its class."""

WEAK_CONTAINERS = (weakref.WeakSet, weakref.WeakKeyDictionary, weakref.WeakValueDictionary)

BUILTIN_METHODS = (types.BuiltinMethodType, types.MethodWrapperType)
"""The types of methods of objects that are not written in Python, such as ``items.append``."""

_LIBRARIES = frozenset(sys.stdlib_module_names) | {
    *("builtins", "torch", "functorch", "torchgen", "triton", "numpy", "optree", "cloudpickle", "rlplay"),
    *("gym", "gymnasium", "scipy", "pandas", "matplotlib", "tqdm"),
}
_LIBRARIES -= {"__main__"}

_ATOMIC = (
    *(int, float, complex, str, bytes, bytearray, type(None), type(Ellipsis), type(NotImplemented), range, slice),
    *(types.ModuleType, types.CodeType, types.FrameType, types.TracebackType, types.GetSetDescriptorType),
    *(types.MemberDescriptorType, types.WrapperDescriptorType, types.MethodDescriptorType),
    *(torch.dtype, torch.device, torch.layout, torch.memory_format, torch.Size, torch.Generator, np.dtype, np.generic),
    *(logging.Logger, logging.Handler),
)

_NOT_RUN = frozenset(
    f"__{name}__"
    for name in (
        *("init", "new", "del", "init_subclass", "post_init", "set_name", "class_getitem", "subclasshook", "prepare"),
        *("copy", "deepcopy", "reduce", "reduce_ex", "getstate", "setstate", "getnewargs", "getnewargs_ex", "repr"),
        *("str", "dir", "dict", "weakref", "doc", "module", "qualname", "annotations", "slots", "abstractmethods"),
    )
)
"""Special attributes of classes that a copy does not use when it acts."""


def is_atomic(value: Any) -> bool:
    """Return whether a value refers to nothing, or only to what an actor's weights cannot be found in."""
    return type(value) not in weakref.ProxyTypes and isinstance(value, _ATOMIC)


def referent_of(proxy: Any) -> Any:
    """Return what a ``weakref.proxy`` refers to; None if that is gone."""
    try:
        return proxy.__reduce_ex__.__self__
    except ReferenceError:
        return None


def slots_of(value: Any) -> Iterator[Part]:
    """Yield the attributes that an object keeps in slots, by their names."""
    for kind in type(value).__mro__:
        slots = vars(kind).get("__slots__", ())
        for name in (slots,) if isinstance(slots, str) else slots:
            mangled = f"_{kind.__name__.lstrip('_')}{name}" if name.startswith("__") and name[-2:] != "__" else name
            if name not in ("__dict__", "__weakref__") and hasattr(value, mangled):
                yield mangled, getattr(value, mangled)


def held_parts(value: Any) -> Iterator[Part]:
    """Yield what an object holds. Not what its class holds, nor global variables."""
    kind = type(value)
    if kind in weakref.ProxyTypes:
        yield "", referent_of(value)
        return
    if is_atomic(value) or isinstance(value, type):
        return
    if isinstance(value, types.FunctionType):
        yield from _parts_of_function(value)
        return
    if isinstance(value, types.MethodType):
        yield ".__self__", value.__self__
        yield ".__func__", value.__func__
        return
    if isinstance(value, BUILTIN_METHODS):
        yield ".__self__", value.__self__
        return
    if isinstance(value, weakref.ref):
        yield "()", value()
        yield ".__callback__", value.__callback__
        return
    if isinstance(value, nn.Module):
        for store in ("_parameters", "_buffers", "_modules"):
            yield from ((f".{name}", part) for name, part in (vars(value).get(store) or {}).items())
    elif isinstance(value, dict):
        yield from ((f"[{_shown(key)}]", part) for key, part in value.items())
        yield from ((f".keys({_shown(key)})", key) for key in value)
    elif isinstance(value, list | tuple):
        names = getattr(kind, "_fields", None) if isinstance(value, tuple) else None
        for i, part in enumerate(value):
            yield (f".{names[i]}" if names else f"[{i}]"), part
    elif isinstance(value, np.ndarray):
        if value.dtype.hasobject:
            yield from ((f".flat[{i}]", part) for i, part in enumerate(value.flat))
    elif isinstance(value, functools.partial):
        yield ".func", value.func
        yield from ((f".args[{i}]", part) for i, part in enumerate(value.args))
        yield from ((f".keywords[{name!r}]", part) for name, part in value.keywords.items())
    elif isinstance(value, WEAK_CONTAINERS):
        items = value.items() if not isinstance(value, weakref.WeakSet) else ((x, x) for x in value)
        for key, part in list(items):
            yield f"[{_shown(key)}]", part
            yield f".keys({_shown(key)})", key
        return
    yield from _attributes(value)


def _parts_of_function(function: types.FunctionType) -> Iterator[Part]:
    """Yield the variables of a function's closure, its defaults, and its attributes."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        if cell != types.CellType():
            yield f"{VARIABLE}{name}", cell.cell_contents
    yield from ((f".__defaults__[{i}]", default) for i, default in enumerate(function.__defaults__ or ()))
    yield from ((f".__kwdefaults__[{name!r}]", default) for name, default in (function.__kwdefaults__ or {}).items())
    yield from ((f".{name}", attribute) for name, attribute in vars(function).items())


def _attributes(value: Any) -> Iterator[Part]:
    """Yield the attributes of an object, and what else Python's garbage collector knows of it."""
    known: set[int] = set()
    own = getattr(value, "__dict__", None)
    attributes = [*(own.items() if isinstance(own, dict) else ()), *slots_of(value)]
    for name, part in attributes:
        # torch makes this function anew for each module, and a copy of the module does not have it
        if name != "_compiled_call_impl" and not (isinstance(value, Tensor) and name == "_backward_hooks"):
            known.add(id(part))
            yield f".{name}", part
    if isinstance(value, Tensor | np.ndarray | nn.Module | list | tuple):
        return
    for part in gc.get_referents(value):
        if part is not own and part is not type(value) and id(part) not in known:
            yield "", part


def _shown(key: Any) -> str:
    """Return a key of a dict as code, or its type if that is not short."""
    return repr(key) if isinstance(key, str | int | float | bool | None) else f"<{type(key).__name__}>"


def _is_library(module: Any) -> bool:
    return isinstance(module, str) and module.partition(".")[0] in _LIBRARIES


def _is_installed(module: types.ModuleType) -> bool:
    file = getattr(module, "__file__", None) or ""
    return "site-packages" in file or "dist-packages" in file


def names_in_code(code: types.CodeType) -> set[str]:
    """Return all names that code uses, functions inside of it included; strings as well, as for ``getattr``."""
    names = {*code.co_names}
    for constant in code.co_consts:
        if isinstance(constant, types.CodeType):
            names |= names_in_code(constant)
        elif isinstance(constant, str):
            names.add(constant)
    return names


def _global_paths(code: types.CodeType) -> set[tuple[str, ...]]:
    """Return the global variables that code reads, each with the attributes that are read directly from it.

    Functions inside of the code are included.

    ``nets.HEADS["value"]`` is ``("nets", "HEADS")``. An attribute with the name of a global variable does not count as
    that variable.
    """
    found, path = set[tuple[str, ...]](), tuple[str, ...]()
    for instruction in dis.get_instructions(code):
        if instruction.opname == "EXTENDED_ARG":
            continue  # part of the instruction that follows
        if path and instruction.opname in ("LOAD_ATTR", "LOAD_METHOD"):
            path = (*path, instruction.argval)
        else:
            is_global = "GLOBAL" in instruction.opname or instruction.opname == "LOAD_NAME"
            path = (instruction.argval,) if is_global else ()
        found |= {path} if path else set()
    nested = [_global_paths(constant) for constant in code.co_consts if isinstance(constant, types.CodeType)]
    return found.union(*nested)


def used_globals(function: types.FunctionType) -> Iterator[Part]:
    """Yield the global variables that a function's code uses, unless the function belongs to a library.

    Of a module of the user's own, what the code uses of it as well.
    """
    if not _is_library(function.__globals__.get("__name__")):
        for first, *others in sorted(_global_paths(function.__code__)):
            names, how = function.__globals__, VARIABLE
            for name in (first, *others):
                if name not in names:
                    break
                part, how = names[name], f"{how}{name}"
                yield how, part
                if not isinstance(part, types.ModuleType) or _is_library(part.__name__) or _is_installed(part):
                    break
                names, how = vars(part), f"{how}."


def class_attributes(kind: type) -> Iterator[tuple[str, Any]]:
    """Yield what a class holds itself, by name, unless it belongs to a library or a copy does not use it."""
    if not _is_library(kind.__module__):
        yield from ((name, part) for name, part in list(vars(kind).items()) if name not in _NOT_RUN)
