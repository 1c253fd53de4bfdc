"""The parameters and buffers of a module: their names, and where the module stores them.

A module may assign a new tensor to a buffer. Snapshots are copied into the old tensor, and compiled or captured steps
have its address, so the old tensor is put back into its place. A module may also fill an empty buffer, add one, or
delete one; that is undone, too. Imports nothing else of ``rlplay``.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

__all__ = [
    "WeightStore",
    "addresses",
    "adds_fills_or_empties",
    "check_can_be_written",
    "check_not_sharded",
    "check_same_names",
    "check_same_weights",
    "named_weights",
    "replaced_weights",
    "restore_stores",
    "weight_stores",
]


class WeightStore(NamedTuple):
    """Where a module stores all of its parameters, or all of its buffers, and what belongs there."""

    store: dict[str, Tensor | None]
    """The module's ``_parameters`` or ``_buffers``."""
    content: dict[str, Tensor | None]
    """What belongs there, by name; None for what is registered as None."""


def weight_stores(module: nn.Module) -> list[WeightStore]:
    """List where a module and its submodules store parameters and buffers, with what is now there."""
    stores = [store for part in module.modules() for store in (part._parameters, part._buffers)]
    return [WeightStore(store, dict(store)) for store in stores]  # type: ignore[arg-type]


def addresses(stores: Sequence[WeightStore]) -> list[int]:
    """Return the addresses of the tensors that belong into these stores."""
    return [x.data_ptr() for _, content in stores for x in content.values() if x is not None]


def replaced_weights(stores: Sequence[WeightStore]) -> list[tuple[Tensor | None, Tensor | None]]:
    """Return ``(tensor, replacement)`` for each tensor that belongs into a store and has been replaced there."""
    pairs = [(x, store.get(name)) for store, content in stores for name, x in content.items()]
    return [(x, now) for x, now in pairs if now is not x]


def adds_fills_or_empties(module: nn.Module, stores: Sequence[WeightStore], replaced: Sequence[Any]) -> bool:
    """Return whether a step has registered a parameter or buffer, filled an empty one, or emptied or deleted one.

    To be called before :func:`restore_stores`.

    Parameters
    ----------
    stores : sequence of WeightStore
        What :func:`weight_stores` returned before the step.
    replaced : sequence of pairs
        What :func:`replaced_weights` returned after the step.
    """
    one_is_empty = any(tensor is None or replacement is None for tensor, replacement in replaced)
    return one_is_empty or _n_weights(weight_stores(module)) != _n_weights(stores)


def _n_weights(stores: Sequence[WeightStore]) -> int:
    return sum(len(content) for _, content in stores)


def restore_stores(stores: Sequence[WeightStore]) -> None:
    """Put back the tensors that belong into each store, and remove others. Values of replacements are not copied."""
    for store, content in stores:
        if store.keys() != content.keys() or any(store[name] is not x for name, x in content.items()):
            store.clear()
            store.update(content)


def named_weights(modules: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return the parameters and then the buffers of modules by name, each tensor once.

    The names are those of ``torch.nn.Module.named_parameters``. Faster than that method, which searches recursively.

    Parameters
    ----------
    modules : mapping of str to module
        As from ``dict(module.named_modules())``.
    """
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for kind in ("_parameters", "_buffers"):
        for prefix, module in modules.items():
            for name, weight in getattr(module, kind).items():
                if weight is not None and id(weight) not in seen:
                    seen.add(id(weight))
                    found[f"{prefix}.{name}" if prefix else name] = weight
    return found


def check_not_sharded(actor: nn.Module) -> None:
    """Check that each process has all of an actor's parameters.

    Raises
    ------
    TypeError
        They are sharded by FSDP, of either version, or are tensors that torch distributes otherwise.
    """
    by_fsdp = any(
        getattr(part, "_is_fsdp_managed_module", False)
        or {"FullyShardedDataParallel", "FSDPModule"} & {kind.__name__ for kind in type(part).__mro__}
        for part in actor.modules()
    )
    distributed = any("DTensor" in {kind.__name__ for kind in type(x).__mro__} for x in actor.parameters())
    if by_fsdp or distributed:
        how = "by FSDP" if by_fsdp else "as `DTensor`, like those of FSDP"
        raise TypeError(
            f"the actor's parameters are sharded {how}: each process has a part of them only, and no snapshot of all "
            "can be taken. Use DistributedDataParallel, and pass `rollout` the module inside of it."
        )


def check_can_be_written(name: str, weight: Tensor) -> None:
    """Check that snapshots can be written into the copy of a parameter or buffer.

    Raises
    ------
    ValueError
        It is not initialised yet, is on the meta device, or is sparse, quantized or expanded.
    """
    if nn.parameter.is_lazy(weight):
        raise ValueError(
            f"the actor's {name!r} is lazy and not initialised yet: call the actor once on an example first."
        )
    if weight.device.type == "meta":
        raise ValueError(f"the actor's {name!r} is on the meta device: initialise it on a real one first.")
    if weight.layout != torch.strided:
        raise ValueError(
            f"the actor's {name!r} is no dense tensor, but {weight.layout}, into which snapshots of the learner's "
            "weights cannot be copied: keep it dense (`to_dense()`), and make the sparse one of it inside `step`."
        )
    if weight.is_quantized:
        raise ValueError(
            f"the actor's {name!r} is quantized ({weight.dtype}), and snapshots of the learner's weights cannot be "
            "copied into such a tensor: keep its `int_repr()`, and compute the numbers inside `step`."
        )
    if weight.numel() and any(n > 1 and step == 0 for n, step in zip(weight.shape, weight.stride(), strict=True)):
        raise ValueError(
            f"the actor's {name!r} is an expanded tensor, with several of its elements in one place in memory, so "
            "that snapshots of the learner's weights cannot be copied into it: register its `clone()`."
        )


def check_same_names(what: str, expected: Mapping[str, Any], got: Mapping[str, Any]) -> None:
    """Check that the learner's actor still has what its copy has.

    Raises
    ------
    ValueError
        If names were added or are gone.
    """
    if expected.keys() != got.keys():
        raise ValueError(
            f"the actor no longer has the {what} that it had when the feed was made: added "
            f"{sorted(got.keys() - expected.keys())}, gone {sorted(expected.keys() - got.keys())}. Make a new feed "
            "after such a change."
        )


def check_same_weights(expected: Mapping[str, Tensor], got: Mapping[str, Tensor]) -> None:
    """Check that the learner's weights have the shapes and dtypes of those of the copy.

    Raises
    ------
    ValueError
        If one of them has changed.
    """
    for name, mine in expected.items():
        theirs = got[name]
        if mine.shape != theirs.shape or mine.dtype != theirs.dtype:
            raise ValueError(
                f"the actor's {name!r} has changed its form: expected shape {tuple(mine.shape)}, dtype "
                f"{mine.dtype}, got {tuple(theirs.shape)}, {theirs.dtype}. Make a new feed after such a change."
            )
