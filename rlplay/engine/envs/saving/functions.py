"""Functions that pickle does not find by their name, in the attributes of environments.

The code of such a function is not saved. What is saved is a fingerprint, by which it is found among the functions of
the environment that goes on. If a function refers to constants alone, the fingerprint is that of all of it, and the
very function is taken. Of all others what they refer to is saved, and they are made anew with the code that is found.
Imports nothing else of ``rlplay`` than :mod:`.parts`.
"""

from __future__ import annotations

import sys
from collections.abc import Container, Iterator, Sequence
from dis import get_instructions
from hashlib import sha256
from importlib import import_module
from types import CellType, CodeType, FunctionType, ModuleType
from typing import Any

from .parts import Part, attributes_of

__all__ = [
    "fingerprint",
    "found_by_name",
    "functions_in",
    "named_in_script",
    "reduced",
    "refers_to_constants",
]

_SCRIPT = "__main__"

_CONSTANTS = (int, float, complex, str, bytes, type(None), type, FunctionType, ModuleType)


def functions_in(value: Any, seen: set[int]) -> Iterator[FunctionType]:
    """Yield the functions in an attribute that cannot be found again by their name, and those that these refer to.

    Such are lambdas, functions that were made in functions, and those of the user's script, which a worker process does
    not find. ``seen`` has the ``id()`` of all that has been looked at, which the caller keeps alive.
    """
    if isinstance(value, FunctionType) and not _has_name(value):
        inside: Any = _referred_by(value)
    elif type(value) in (list, tuple, dict):
        inside = value.values() if type(value) is dict else value
    else:
        return
    if id(value) not in seen:
        seen.add(id(value))
        if isinstance(value, FunctionType):
            yield value
        for one in inside:
            yield from functions_in(one, seen)


def reduced(value: Any, kept: Container[int]) -> tuple[Any, ...] | None:
    """Return how pickle is to make a function anew, as ``__reduce__`` does; None for objects that pickle knows itself.

    The code of the function is found, not pickled. Each variable of its closure (a cell) is pickled as an object of its
    own, since several functions may share it. A module, which pickle refuses, is found by its name.

    Parameters
    ----------
    kept : container of int
        Has the ``id()`` of the code of each such function, which is not pickled.
    """
    if isinstance(value, CellType):
        return _cell, (), (value.cell_contents,) if _is_filled(value) else None, None, None, _fill
    if isinstance(value, ModuleType) and sys.modules.get(value.__name__) is value:
        return import_module, (value.__name__,)
    if not isinstance(value, FunctionType) or id(value.__code__) not in kept or value.__dict__:
        return None
    return _function, (value.__code__, value.__defaults__, value.__kwdefaults__, value.__closure__)


def _function(found: FunctionType, defaults: Any, keyword_defaults: Any, cells: Any) -> FunctionType:
    """Make a function with the code of the function ``found``, but with defaults and a closure of its own."""
    made = FunctionType(found.__code__, found.__globals__, found.__name__, defaults, cells)
    made.__kwdefaults__, made.__qualname__, made.__module__ = keyword_defaults, found.__qualname__, found.__module__
    return made


def _cell() -> CellType:
    return CellType()


def _fill(cell: CellType, content: tuple[Any]) -> None:
    (cell.cell_contents,) = content


def fingerprint(of: FunctionType | CodeType) -> str:
    """Return the fingerprint of a function that refers to constants, or of code. Those with equal ones do the same.

    The fingerprint depends on the version of Python, but not on the file and the line.
    """
    return sha256(repr(_describe(of, ())).encode()).hexdigest()


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
        handlers = getattr(value, "co_exceptiontable", b"")  # Python 3.10 has them in `co_code`
        return value.co_code, handlers, *arguments, *names, _describe(value.co_consts, outer)
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


def _referred_by(function: FunctionType) -> list[Any]:
    """Return what a function refers to: its variables of outer functions, and its defaults."""
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    return [*values, *(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]


def refers_to_constants(function: FunctionType, outer: tuple[FunctionType, ...] = ()) -> bool:
    """Whether neither what a function refers to, nor what these functions refer to, may change."""
    values = _referred_by(function)
    if function.__dict__ or not all(isinstance(value, _CONSTANTS) for value in values):
        return False
    if _writes_to(function.__code__, frozenset(function.__code__.co_freevars)):
        return False
    inside = [one for one in values if isinstance(one, FunctionType) and not _has_name(one) and one not in outer]
    return all(refers_to_constants(one, (*outer, function)) for one in inside)


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
