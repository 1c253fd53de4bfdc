"""The parts of an environment: its wrappers, the environments of a vector environment, and those inside of these.

Imports nothing else of ``rlplay``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

__all__ = ["Part", "attributes_of", "kind_of", "parts_of", "stays"]


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


def parts_of(env: Any) -> list[Part]:
    """Return an environment and all environments that are its attributes, or in containers that are, at any depth.

    Each comes once, the outermost first. Those in lists, tuples and dicts come before those that are attributes
    themselves: if a wrapper holds several environments and steps one of them at a time, the order does not depend on
    which one that is. An inner environment has ``step``, ``reset`` and an action space; a simulator without the last is
    a part of the environment that holds it. Properties are not read, since these may run code.
    """
    found = [Part(env, "env")]
    for part in found:
        for where, one in _held_by(part.env):
            if not _is_environment(one):
                continue
            part.innermost = False
            if not any(one is other.env for other in found):
                found.append(Part(one, part.path + where))
    return found


def _held_by(env: Any) -> Iterator[tuple[str, Any]]:
    """Yield what the containers among the attributes hold, then the other attributes, each with the path to it."""
    own = list(attributes_of(env).items())
    containers = [(name, value) for name, value in own if isinstance(value, list | tuple | dict)]
    for name, value in containers:
        items = value.items() if isinstance(value, dict) else enumerate(value)
        yield from ((f".{name}[{key!r}]", one) for key, one in items)
    yield from ((f".{name}", value) for name, value in own)


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


def stays(env: Any, name: str) -> bool:
    """Whether an attribute is neither saved nor restored, since it describes how the environment was made.

    Such are what gym keeps in ``spec``, and the factories of a vector environment.
    """
    if name == "env_fns":
        return hasattr(env, "single_action_space")
    value = attributes_of(env).get(name)
    return name in ("spec", "_cached_spec") and (value is None or type(value).__name__ == "EnvSpec")


def kind_of(env: Any) -> str:
    """Return the full name of an object's class."""
    return f"{type(env).__module__}.{type(env).__qualname__}"
