"""The step of an environment as part of a captured graph, behind the actor's step."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..envs.identity import environments_in
from ..memory.lane import Lane, Place
from .environment import FINAL_NAMES, Call, TensorEnvironment
from .memory import TurnMemory, make_blocks, tensor_rows

__all__ = ["CapturedStep", "HeldTensors"]


class CapturedStep:
    """A step of an environment from the row before an index to the row at the index, which lies on the device.

    One graph serves all rows, so rows are read and written by the index.
    """

    def __init__(self, environment: TensorEnvironment, memory: TurnMemory, call: Call, lane: Lane) -> None:
        """Allocate two rows: the environment reads one and writes the other, which is then copied to its place."""
        self._environment, self._memory, self._call = environment, memory, call
        self._then, self._before = (make_blocks(memory.blocks.layout, 1, lane) for _ in range(2))
        (self._row,), (self._now,) = tensor_rows(self._then), tensor_rows(self._before)
        layout = memory.blocks.layout.block
        self._read = slice(layout.actions.start if layout.act else layout.small.start, None)  # all but observations
        self._last = [lane.empty(Place.ACTOR, leaf.shape[1:], leaf.dtype) for leaf in memory.lasts]

    def __call__(self, index: Tensor) -> None:
        """Make the step; ``index`` is an int64 tensor ``(1,)``, the row to write.

        Raises
        ------
        RuntimeError
            The environment has given no last observations, though they are needed; or it has put another tensor in the
            place of one of its own, which replays would neither compute nor read.
        """
        blocks, before = self._memory.blocks, index - 1
        torch.index_select(blocks.memory[:, self._read], 0, before, out=self._before.memory[:, self._read])
        held = HeldTensors(self._environment.instances)
        try:
            given = self._environment.step(self._now, self._row, self._last, self._call, self._memory.acts)
        finally:
            changed = held.put_back()
        if changed:
            raise RuntimeError(
                f"its step puts another tensor into `{changed[0]}`, and a graph needs the same memory at each step: "
                "make it before the first step, and write into it (`copy_`)"
            )
        if not given:
            raise RuntimeError(f"its infos have none of {', '.join(map(repr, FINAL_NAMES))}, in each step")
        blocks.write(index, self._then.memory)
        for rows, last in zip(self._memory.lasts, self._last, strict=True):
            rows.index_copy_(0, before, last[None])


class HeldTensors:
    """The tensors in the attributes of environments and of those inside of them, and in dicts in these attributes."""

    def __init__(self, environments: Sequence[Any]) -> None:
        """Note which tensors are there."""
        self._stores: list[tuple[str, dict[Any, Any]]] = []
        for part in (part for one in environments for part in environments_in(one)):
            own: dict[str, Any] = getattr(part, "__dict__", {})
            kind = type(part).__name__
            self._stores.append((f"{kind}.", own))
            self._stores += [(f"{kind}.{name}.", value) for name, value in own.items() if isinstance(value, dict)]
        self._held = [_tensors_in(store) for _, store in self._stores]

    @property
    def tensors(self) -> list[Tensor]:
        """The noted tensors that have memory of the usual kind."""
        return [x for held in self._held for x in held.values() if x.layout == torch.strided]

    def put_back(self) -> list[str]:
        """Put the noted tensors back, and remove new ones; return the names of those places that had changed."""
        changed = []
        for (prefix, store), held in zip(self._stores, self._held, strict=True):
            now = _tensors_in(store)
            for name in held.keys() | now.keys():
                if now.get(name) is held.get(name):
                    continue
                changed.append(f"{prefix}{name}")
                if name in held:
                    store[name] = held[name]
                else:
                    del store[name]
        return sorted(changed)


def _tensors_in(store: dict[Any, Any]) -> dict[Any, Tensor]:
    return {name: x for name, x in store.items() if isinstance(x, Tensor)}
