"""Which environments are the same one, also inside of wrappers (``env``) and of vector environments (``envs``)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

__all__ = ["check_distinct", "environments_in"]


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
