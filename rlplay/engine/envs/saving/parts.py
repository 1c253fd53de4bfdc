"""The parts of an environment: its wrappers, the environments of a vector environment, and those inside of these.

Imports nothing else of ``rlplay``.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from types import FunctionType
from typing import Any

__all__ = ["Part", "attributes_of", "kind_of", "named_in_script", "parts_of", "stays", "walk_functions"]

_STAY = frozenset({"spec", "_cached_spec", "env_fns"})
"""Attributes that describe how an environment is made. They are left as they are."""

_SCRIPT = "__main__"

_CONSTANTS = (int, float, complex, str, bytes, type(None), type, FunctionType, type(sys))


class Part:
    """An environment or a wrapper, with the path to it.

    Attributes
    ----------
    env : object
    path : str
        The Python expression of the part, from ``env`` on.
    innermost : bool
        Whether there is no environment inside of it.
    """

    def __init__(self, env: Any, path: str) -> None:
        self.env, self.path, self.innermost = env, path, True


def parts_of(env: Any, path: str = "env") -> list[Part]:
    """Return an environment and all environments that are its attributes, or in lists that are, at any depth.

    Each comes once, the outermost first. An inner environment has ``step``, ``reset`` and an action space; a simulator
    without the last is a part of the environment that holds it. Properties are not read, since these may run code.
    """
    found = [Part(env, path)]
    for part in found:
        for name, value in attributes_of(part.env).items():
            several = list(enumerate(value)) if isinstance(value, list | tuple) else [(None, value)]
            for k, one in several:
                if not _is_environment(one):
                    continue
                part.innermost = False
                if not any(one is other.env for other in found):
                    found.append(Part(one, f"{part.path}.{name}" + ("" if k is None else f"[{k}]")))
    return found


def _is_environment(value: Any, holders: tuple[Any, ...] = ()) -> bool:
    """Whether a value is an environment, or a wrapper that passes attributes on to one that it holds."""
    kind, own = type(value), attributes_of(value)
    if isinstance(value, type) or not (hasattr(kind, "step") and hasattr(kind, "reset")):
        return False
    if any(name in own or hasattr(kind, name) for name in ("action_space", "single_action_space")):
        return True
    others = [one for one in own.values() if not any(one is holder for holder in (*holders, value))]
    return hasattr(kind, "__getattr__") and any(_is_environment(one, (*holders, value)) for one in others)


def attributes_of(env: Any) -> dict[str, Any]:
    """Return the attributes of an object, without those of its class; an empty dict if it has none."""
    own: dict[str, Any] = getattr(env, "__dict__", {})
    return own


def stays(name: str) -> bool:
    """Whether an attribute is neither saved nor restored."""
    return name in _STAY


def kind_of(env: Any) -> str:
    """Return the full name of an object's class."""
    return f"{type(env).__module__}.{type(env).__qualname__}"


def walk_functions(value: Any, path: tuple[Any, ...]) -> Iterator[tuple[tuple[Any, ...], FunctionType]]:
    """Yield the functions in an attribute that cannot be found again by their name, each with the path to it.

    Such are lambdas, functions that were made in functions, and those of the user's script, which a worker process does
    not find. Those that refer to anything but constants are left out, since what they refer to may change.
    """
    if isinstance(value, FunctionType):
        if not _has_name(value) and _refers_to_constants(value):
            yield path, value
    elif type(value) in (list, tuple):
        for k, one in enumerate(value):
            yield from walk_functions(one, (*path, k))
    elif type(value) is dict:
        for key, one in value.items():
            if isinstance(key, str | int):
                yield from walk_functions(one, (*path, key))


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
    if function.__module__ == _SCRIPT:
        return False
    found: Any = sys.modules.get(function.__module__)
    for name in function.__qualname__.split("."):
        found = getattr(found, name, None)
    return found is function


def _refers_to_constants(function: FunctionType) -> bool:
    values = [cell.cell_contents for cell in function.__closure__ or () if _is_filled(cell)]
    values += [*(function.__defaults__ or ()), *(function.__kwdefaults__ or {}).values()]
    return not function.__dict__ and all(isinstance(value, _CONSTANTS) for value in values)


def _is_filled(cell: Any) -> bool:
    try:
        cell.cell_contents  # noqa: B018
    except ValueError:
        return False
    return True
