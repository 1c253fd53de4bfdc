"""The first reset of a vector environment: how it is seeded, and what it returned.

The libraries are recognised by the names of classes, and tensors by their attributes. Imports neither rows nor torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from .... import nested
from ..autoreset import class_names
from ..dialects import has_seed_method, refuses
from ..returned.refused import infos_of
from .interrupted import reset_async

__all__ = ["check_reset", "gives_tensors", "reset_vector"]


def reset_vector(env: Any, seeds: Sequence[int | None]) -> Any:
    """Reset a vector environment with the seeds in the form that its library takes; return what ``reset`` returned.

    ``SyncVectorEnv``, ``AsyncVectorEnv`` and ale-py's take one seed for each sub-environment, others the first seed
    only. EnvPool takes no seed here: it is seeded where it is made (``envpool.make(..., seed=)``). If the seeds are
    None, ``reset`` gets no seed. If ``reset`` has no parameter ``seed``, it gets none, and ``env.seed(seeds[0])`` is
    called before, if there is one.
    """
    raw = getattr(env, "unwrapped", env)
    names = class_names(raw)
    seed: Any = seeds[0]
    if names & {"SyncVectorEnv", "AsyncVectorEnv"}:
        seed = list(seeds)
    elif "AtariVectorEnv" in names:
        seed = np.array(seeds)
    reset = partial(env.reset, seed=seed)
    if seeds[0] is None or "EnvPoolMixin" in names:
        reset = env.reset
    elif refuses(env.reset, "seed"):
        reset = env.reset
        if has_seed_method(env):
            env.seed(seeds[0])
    return reset_async(raw, reset) if "AsyncVectorEnv" in names else reset()


def gives_tensors(result: Any) -> bool:
    """Whether ``reset`` of a vector environment returned observations that are torch tensors."""
    pair = isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping)
    leaves = _leaves_inside(result[0] if pair else result)
    return any(hasattr(leaf, "data_ptr") and hasattr(leaf, "device") for leaf in leaves)


def _leaves_inside(tree: Any) -> Iterator[Any]:
    """Yield the leaves of a nest, also those inside of mappings that are leaves to :mod:`rlplay.nested`."""
    for leaf in nested.leaves(tree):
        if isinstance(leaf, Mapping):
            yield from _leaves_inside(list(leaf.values()))
        else:
            yield leaf


def check_reset(env: Any, result: Any) -> tuple[Any, Mapping[str, Any]]:
    """Return observations and info out of what ``reset`` of a vector environment has returned.

    Raises
    ------
    ValueError
        It is no pair of observations and info.
    TypeError
        The observations are torch tensors.
    """
    if gives_tensors(result):
        raise TypeError(
            f"the vector environment {env!r} gives torch tensors: expected NumPy arrays here. `same` and `threaded` "
            "without workers take such environments, and lists of them."
        )
    if result is None:
        raise ValueError(
            f"`reset` of the vector environment {env!r} returned None: is `return observations, infos` missing?"
        )
    if not (isinstance(result, tuple) and len(result) == 2 and isinstance(result[1], Mapping | list | None)):
        raise ValueError(
            f"expected `reset` of the vector environment {env!r} to return observations and a dict of infos, got "
            f"{type(result).__name__} (those of gym up to 0.25 are not supported): pass a list of single environments "
            "instead."
        )
    return result[0], infos_of(result[1])
