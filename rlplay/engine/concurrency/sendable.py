"""Finds out why something cannot be sent to another process, or be read there. Must not import torch."""

from __future__ import annotations

import functools
import pickle
import types
from collections.abc import Iterator, Mapping
from typing import Any

import cloudpickle

from .exceptions import repr_of

__all__ = ["check_factory_and_actor", "check_sendable", "unpickle_from"]

_DEEPEST = 12
"""How many attributes, items and variables deep the cause is looked for."""


def check_sendable(name: str, path: str, thing: Any, remedy: str, where: str) -> None:
    """Check that a thing can be pickled.

    Parameters
    ----------
    name, path : str
        How messages call the thing, and the expression that begins the path to what is wrong.
    thing : object
    remedy : str
        What the user can do about it.
    where : str
        Which process the thing is to be sent to.

    Raises
    ------
    TypeError
        It cannot be pickled. The message names it, and the path to the part of it that cannot.
    """
    error = _failure(thing)
    if error is not None:
        path, part = _find(thing, path, _DEEPEST)
        raise TypeError(
            f"{name} cannot be sent to {where}: {path}, of type {type(part).__name__}, cannot be pickled "
            f"({_failure(part)}). {remedy}"
        ) from error


def check_factory_and_actor(factory: Any, actor: Any, envs: slice, where: str, alternative: str) -> None:
    """Check that the factory of some environments and an actor can be pickled.

    Parameters
    ----------
    envs : slice
        The numbers of the environments.
    where : str
        Which process they are to be sent to, for the message.
    alternative : str
        What the user can do instead, without pickling, for the message.

    Raises
    ------
    TypeError
        As :func:`check_sendable`.
    """
    made = f"`factory` (which makes environments {envs.start} to {envs.stop - 1})"
    of_factory = f"Let it make what it needs when it is called, or {alternative}."
    of_actor = f"Make it when the actor is first used, leave it out in `__getstate__`, or {alternative}."
    check_sendable(made, "`factory`", factory, of_factory, where)
    check_sendable("`actor`", "`actor`", actor, of_actor, where)


def unpickle_from(name: str, data: bytes | bytearray) -> Any:
    """Unpickle what another process has sent; ``name`` is that process's, for messages.

    Raises
    ------
    TypeError
        If it cannot be unpickled in this process.
    """
    try:
        return pickle.loads(data)
    except Exception as error:
        raise TypeError(
            f"{name} has sent an object that cannot be unpickled in this process ({repr_of(error)}): its class, such "
            "as that of a named tuple in an observation or in the actor's info, must be importable here, too."
        ) from error


def _failure(thing: Any) -> Exception | None:
    try:
        cloudpickle.dumps(thing)
    except Exception as error:
        return error
    return None


def _find(thing: Any, path: str, depth: int) -> tuple[str, Any]:
    """Return the path to the innermost part that cannot be pickled, and this part."""
    if depth:
        for inner, part in _parts(thing, path):
            if part is not thing and _failure(part) is not None:
                return _find(part, inner, depth - 1)
    return path, thing


def _parts(thing: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Yield what is pickled together with a thing, each part with its path."""
    if isinstance(thing, Mapping):
        yield from ((f"{path}[{key!r}]", item) for key, item in thing.items())
    elif isinstance(thing, list | tuple | set | frozenset):
        yield from ((f"{path}[{k}]", item) for k, item in enumerate(thing))
    elif isinstance(thing, functools.partial):
        yield f"{path}.func", thing.func
        yield from _parts(thing.args, f"{path}.args")
        yield from _parts(thing.keywords, f"{path}.keywords")
    elif isinstance(thing, types.MethodType):
        yield f"{path}.__self__", thing.__self__
        yield f"{path}.__func__", thing.__func__
    elif isinstance(thing, types.FunctionType):
        yield from _variables(thing, path)
    elif isinstance(thing, type):
        yield from ((f"{path}.{name}", part) for name, part in vars(thing).items())
    else:
        for name, part in getattr(thing, "__dict__", {}).items():
            if name in ("_parameters", "_buffers", "_modules") and isinstance(part, dict):  # of a torch module
                yield from ((f"{path}.{inner}", one) for inner, one in part.items())
            else:
                yield f"{path}.{name}", part
        yield f"the class of {path}", type(thing)


def _variables(function: types.FunctionType, path: str) -> Iterator[tuple[str, Any]]:
    """Yield the variables that a function uses, and its defaults."""
    yield from _parts(function.__defaults__ or (), f"{path}.__defaults__")
    yield from _parts(function.__kwdefaults__ or {}, f"{path}.__kwdefaults__")
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the variable `{name}` that {path} uses", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    for name in function.__code__.co_names:
        if name in function.__globals__:
            yield f"the variable `{name}` that {path} uses", function.__globals__[name]
