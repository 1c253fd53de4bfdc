"""Functions that pickle does not find by their name, in the attributes of environments.

Such a function is not saved. What is saved is its fingerprint, by which it is found among those of the environment that
goes on. Imports nothing else of ``rlplay`` than :mod:`.parts`.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dis import get_instructions
from hashlib import sha256
from types import CodeType, FunctionType, ModuleType
from typing import Any

from .parts import Part, attributes_of

__all__ = ["fingerprint", "found_by_name", "functions_in", "named_in_script"]

_SCRIPT = "__main__"

_CONSTANTS = (int, float, complex, str, bytes, type(None), type, FunctionType, ModuleType)


def functions_in(value: Any) -> Iterator[FunctionType]:
    """Yield the functions in an attribute that cannot be found again by their name.

    Such are lambdas, functions that were made in functions, and those of the user's script, which a worker process does
    not find. Those that refer to anything but constants are left out, since what they refer to may change.
    """
    if isinstance(value, FunctionType):
        if not _has_name(value) and _refers_to_constants(value):
            yield value
    elif type(value) in (list, tuple, dict):
        for one in value.values() if type(value) is dict else value:
            yield from functions_in(one)


def fingerprint(function: FunctionType) -> str:
    """Return what tells a function that refers to constants from all others: equal ones do the same.

    It depends on the version of Python, but not on the file and the line.
    """
    return sha256(repr(_describe(function, ())).encode()).hexdigest()


def _describe(value: Any, outer: tuple[Any, ...]) -> Any:
    """Return nested tuples of strings and numbers. ``outer`` are the functions that ``value`` is part of."""
    if isinstance(value, FunctionType):
        if value in outer:
            return "a function that this is part of", outer.index(value)
        if outer and _has_name(value):
            return value.__module__, value.__qualname__
        parts = value.__code__, value.__defaults__, value.__kwdefaults__ and tuple(value.__kwdefaults__.items())
        cells = tuple(cell.cell_contents if _is_filled(cell) else "empty" for cell in value.__closure__ or ())
        return value.__module__, value.__qualname__, _describe((*parts, cells), (*outer, value))
    if isinstance(value, CodeType):
        arguments = value.co_argcount, value.co_posonlyargcount, value.co_kwonlyargcount, value.co_flags
        names = value.co_names, value.co_varnames, value.co_freevars, value.co_cellvars
        return value.co_code, value.co_exceptiontable, *arguments, *names, _describe(value.co_consts, outer)
    if isinstance(value, tuple):
        return tuple(_describe(one, outer) for one in value)
    if isinstance(value, frozenset):
        return "frozenset", sorted(repr(_describe(one, outer)) for one in value)
    if isinstance(value, type):
        return value.__module__, value.__qualname__
    return value.__name__ if isinstance(value, ModuleType) else repr(value)


def named_in_script(parts: Sequence[Part]) -> dict[str, Any]:
    """Return classes and functions of the user's script (``__main__``) that environments use, by their names.

    A worker process does not run the script. It has what its environments need of the script by value (cloudpickle), so
    that pickle does not find these classes and functions by name. They are global variables of the functions that came
    with them.
    """
    used = [one for part in parts for one in (part.env, *attributes_of(part.env).values())]
    kinds = {kind: None for one in used for kind in (one if isinstance(one, type) else type(one)).__mro__}
    classes = [kind for kind in kinds if kind.__module__ == _SCRIPT]
    functions = [one for one in used if isinstance(one, FunctionType) and one.__module__ == _SCRIPT]
    inside = [one for kind in classes for one in vars(kind).values() if isinstance(one, FunctionType)]
    variables = {id(one.__globals__): one.__globals__ for one in functions + inside}.values()
    others = [one for names in variables if names.get("__name__") == _SCRIPT for one in names.copy().values()]
    return {
        one.__name__: one
        for one in classes + functions + others
        if isinstance(one, type | FunctionType) and one.__module__ == _SCRIPT and one.__name__ == one.__qualname__
    }


def _has_name(function: FunctionType) -> bool:
    return function.__module__ != _SCRIPT and found_by_name(function.__module__, function.__qualname__) is function


def found_by_name(module: str | None, name: str) -> Any:
    """Return what has a qualified name in a module that has been imported; None if there is nothing."""
    found: Any = sys.modules.get(module or "")
    for part in name.split("."):
        found = getattr(found, part, None)
    return found


def _refers_to_constants(function: FunctionType, outer: tuple[FunctionType, ...] = ()) -> bool:
    """Whether neither what a function refers to, nor what these functions refer to, may change."""
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    if function.__dict__ or not all(isinstance(value, _CONSTANTS) for value in values):
        return False
    if _writes_to(function.__code__, frozenset(function.__code__.co_freevars)):
        return False
    inside = [one for one in values if isinstance(one, FunctionType) and not _has_name(one) and one not in outer]
    return all(_refers_to_constants(one, (*outer, function)) for one in inside)


def _writes_to(code: CodeType, variables: frozenset[str]) -> bool:
    """Whether code, functions inside of it included, assigns to variables of an outer function (``nonlocal``)."""
    if not variables:
        return False
    if any(one.opname in ("STORE_DEREF", "DELETE_DEREF") and one.argval in variables for one in get_instructions(code)):
        return True
    return any(_writes_to(one, variables) for one in code.co_consts if isinstance(one, CodeType))


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
