"""The step of an environment as part of a captured graph, behind the actor's step."""

from __future__ import annotations

from torch import Tensor

from ..memory.lane import Lane, Place
from ..memory.slot import Blocks
from .environment import FINAL_NAMES, Call, TensorEnvironment
from .memory import TurnMemory, make_blocks, tensor_rows

__all__ = ["CapturedStep"]


class CapturedStep:
    """A step of an environment from the row before an index to the row at the index, which lies on the device.

    One graph serves all rows, so rows are read and written by the index.
    """

    def __init__(self, environment: TensorEnvironment, memory: TurnMemory, call: Call, lane: Lane) -> None:
        """Allocate a row that the environment writes, before it is copied to its place."""
        self._environment, self._memory, self._call = environment, memory, call
        self._then = make_blocks(memory.blocks.layout, 1, lane)
        (self._row,) = tensor_rows(self._then)
        self._last = [lane.empty(Place.ACTOR, leaf.shape[1:], leaf.dtype) for leaf in memory.lasts]

    def __call__(self, index: Tensor) -> None:
        """Make the step; ``index`` is an int64 tensor ``(1,)``, the row to write.

        Raises
        ------
        RuntimeError
            The environment has given no last observations, though they are needed.
        """
        blocks, before = self._memory.blocks, index - 1
        (now,) = tensor_rows(Blocks(blocks.memory.index_select(0, before), blocks.layout))
        if not self._environment.step(now, self._row, self._last, self._call, self._memory.acts):
            raise RuntimeError(f"its infos have none of {', '.join(map(repr, FINAL_NAMES))}, in each step")
        blocks.memory.index_copy_(0, index, self._then.memory)
        for rows, last in zip(self._memory.lasts, self._last, strict=True):
            rows.index_copy_(0, before, last[None])
