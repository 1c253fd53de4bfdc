"""Nested arrays: dicts, lists, tuples and named tuples of arrays, to any depth.

A leaf is any object that is not a container. ``None`` and the empty tuple have no leaves. This is the only module that
imports ``optree``; it imports nothing of ``rlplay``, and no PyTorch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, TypeAlias

import optree

__all__ = ["Nested", "Structure", "flatten", "leaves", "map", "names", "structure"]

Nested: TypeAlias = Any
"""A leaf, or a container of :data:`Nested`. The type cannot express the kind of leaf, so docstrings state it."""

Structure: TypeAlias = optree.PyTreeSpec
"""The containers of a nested object without its leaves. ``structure.unflatten(leaves)`` rebuilds the object."""


def flatten(tree: Nested) -> tuple[list[Any], Structure]:
    """Return the leaves of a nested object, with dict keys in sorted order, and its structure."""
    found, structure = optree.tree_flatten(tree)
    return found, structure


def leaves(tree: Nested) -> list[Any]:
    """Return the leaves of a nested object, in the order of :func:`flatten`."""
    return optree.tree_leaves(tree)


def structure(tree: Nested) -> Structure:
    """Return the structure of a nested object. Structures can be compared with ``==``."""
    return optree.tree_structure(tree)


def map(fn: Callable[..., Any], tree: Nested, *others: Nested) -> Nested:
    """Apply a function to each leaf, and return the results in the same structure.

    ``fn`` receives a leaf of ``tree``, and from each of ``others`` the object at the same place, which may be a
    container.

    Raises
    ------
    ValueError
        If one of ``others`` lacks a place of ``tree``.
    """
    return optree.tree_map(fn, tree, *others)


def names(tree: Nested, root: str = "") -> list[str]:
    """Return the Python expression of each leaf, for messages: ``obs['camera'][0]`` if ``root`` is ``"obs"``."""
    accessors: Iterable[Any] = optree.tree_accessors(tree)
    return [accessor.codify(root) for accessor in accessors]
