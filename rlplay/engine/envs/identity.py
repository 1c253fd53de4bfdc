"""Environments inside of others: the wrappers around one, and which are the same one.

The search for an environment that two others share follows only the attributes ``env`` of wrappers and ``envs`` of
vector environments. What an environment holds by another name may be common to several, as an opponent is, or an
environment that it learns from. Wrappers may hold the environment that they wrap by any name.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

__all__ = ["check_distinct", "environments_in", "wrappers"]


def environments_in(source: Any) -> list[Any]:
    """Return an environment, and those inside of it. Reads no properties, since these may run code."""
    found = [source]
    for part in found:
        own = getattr(part, "__dict__", {})
        several = own.get("envs")
        inside = [own.get("env"), *(several if isinstance(several, list | tuple) else ())]
        found += [one for one in inside if hasattr(one, "step") and not any(one is other for other in found)]
    return found


def check_distinct(envs: Sequence[Any]) -> None:
    """Raise ValueError if an environment is there twice, be it inside of wrappers or of vector environments."""
    seen: set[int] = set()
    for env in envs:
        parts = environments_in(env)
        again = next((part for part in parts if id(part) in seen), None)
        if again is not None:
            raise ValueError(
                f"the same environment stands twice in `envs` (a {type(again).__name__}; those inside of wrappers "
                "count): each column needs an instance of its own."
            )
        seen.update(map(id, parts))


def wrappers(env: Any) -> Iterator[Any]:
    """Yield the wrappers around an environment from the outside in, then the environment itself, each once."""
    seen: set[int] = set()
    while env is not None and id(env) not in seen and len(seen) < 100:
        seen.add(id(env))
        yield env
        own = getattr(env, "__dict__", {})
        inside = [one for name, one in own.items() if name != "env" and _has_steps(one)]
        # a wrapper may pass on the attribute `env` of an environment that it holds by another name
        env = inside[0] if inside and "env" not in own else getattr(env, "env", None)


def _has_steps(value: Any) -> bool:
    return hasattr(type(value), "step") and hasattr(type(value), "reset")
