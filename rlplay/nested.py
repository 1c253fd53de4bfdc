"""Nested arrays: dicts, lists, tuples and named tuples of them, to any depth.

The only room that knows ``optree``. A leaf is whatever is no container; ``None`` and the empty tuple have no leaves.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import optree

__all__ = ["Nested", "Structure", "flatten", "leaves", "map", "names", "structure"]

Nested: TypeAlias = Any
"""A leaf, or a container of :data:`Nested`. Python's type system cannot say which leaves, so docstrings do."""

Structure: TypeAlias = optree.PyTreeSpec
"""How a nested thing is put together, without its leaves. ``unflatten`` puts leaves back."""


def flatten(tree: Nested) -> tuple[list[Any], Structure]:
    """Take a nested thing apart into its leaves (dict keys in sorted order) and its structure."""
    found, spec = optree.tree_flatten(tree)
    return found, spec


def leaves(tree: Nested) -> list[Any]:
    """Return the leaves alone, in the order of :func:`flatten`."""
    return optree.tree_leaves(tree)


def structure(tree: Nested) -> Structure:
    """Return the structure alone. Structures compare with ``==``."""
    return optree.tree_structure(tree)


def map(fn: Callable[..., Any], tree: Nested, *others: Nested) -> Nested:
    """Apply ``fn`` to each leaf of ``tree``, and to what stands in its place in each of ``others``."""
    return optree.tree_map(fn, tree, *others)


def names(tree: Nested, root: str = "") -> list[str]:
    """Name each leaf as one would write it in Python, for messages: ``obs['camera'][0]``."""
    accessors: Iterable[Any] = optree.tree_accessors(tree)
    return [accessor.codify(root) for accessor in accessors]
