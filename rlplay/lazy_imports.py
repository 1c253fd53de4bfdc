"""Names of a package that are imported when they are first used. Imports nothing else of ``rlplay``."""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from importlib import import_module
from typing import Any

__all__ = ["import_on_first_use"]


def import_on_first_use(
    package: str, modules: Mapping[str, str]
) -> tuple[Callable[[str], Any], Callable[[], list[str]]]:
    """Return ``__getattr__`` and ``__dir__`` for a package (PEP 562) that imports some of its names on first use.

    What needs torch is imported in this way, so that processes that only step environments load no torch. ``dir()``
    lists these names, too: for completion, and for the documentation.

    Parameters
    ----------
    package : str
        The name of the package.
    modules : mapping
        For each such name the module that it is imported from, relative to the package, such as ``".core"``.
    """

    def get(name: str) -> Any:
        if name in modules:
            return getattr(import_module(modules[name], package), name)
        raise AttributeError(f"module {package!r} has no attribute {name!r}")

    def list_names() -> list[str]:
        return sorted({*vars(sys.modules[package]), *modules})

    return get, list_names
