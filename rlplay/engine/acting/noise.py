"""Noise that is drawn ahead on a device, in blocks, so that a captured step draws nothing itself.

A CUDA graph that draws from a generator takes two more kernels at each launch, which tell it how far the generator is,
and the kernels that draw. A graph that reads a row of a block takes one. Imports neither actors nor lanes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ...contexts import contextmanager
from ...sampling import Source, log_exponential
from .actor_spec import Form

__all__ = ["BLOCK", "BlockNoise", "NoiseBlock", "seed_from"]

BLOCK = 2**18
"""How many numbers a block holds. It does not depend on the length of fragments, so where these end changes nothing."""


class NoiseBlock:
    """Noise of one form: rows that are drawn together, and taken one after another.

    Attributes
    ----------
    numbers : tensor, ``(2 * n, *shape)``
        The rows. Those from ``position`` on have not been taken yet. The memory stays where it is.
    index : int64 tensor, ``(1,)``
        The row that a captured step takes first, on the device of the numbers.
    n_rows : int
        ``n``, how many rows are drawn together.
    """

    def __init__(self, form: Form, generator: torch.Generator) -> None:
        """Draw the first rows."""
        shape, dtype = form
        self.n_rows = BLOCK // shape.numel()
        self.numbers = torch.empty((2 * self.n_rows, *shape), dtype=dtype, device=generator.device)
        self.index = torch.zeros(1, dtype=torch.int64, device=generator.device)
        self._generator = generator
        self._position = self._end = self._index_is = 0
        self._provide(1)

    def take(self) -> Tensor:
        """Return a copy of the next row."""
        self._provide(1)
        self._position += 1
        return self.numbers[self._position - 1].clone()

    def at_index(self, k: int) -> Tensor:
        """Return a copy of the row that is ``k`` rows behind the one at the index, selected on the device."""
        return self.numbers[k:].index_select(0, self.index)[0]

    def prepare(self, count: int) -> None:
        """Make ready for a captured step that takes ``count`` rows."""
        self._provide(count)
        if self._index_is != self._position:
            self.index.fill_(self._position)
            self._index_is = self._position

    def advance(self, count: int) -> None:
        """Note that a captured step has taken ``count`` rows, and has moved the index."""
        self._position += count
        self._index_is += count

    def state_dict(self) -> dict[str, Any]:
        """Return the rows that have not been taken yet and the state of the generator: tensors on the host."""
        left = self.numbers[self._position : self._end]
        return {"left": left.to("cpu", copy=True), "generator": self._generator.get_state()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned. The memory stays where it is."""
        n = len(state["left"])
        self.numbers[:n] = state["left"].to(self.numbers.device)
        self._position, self._end = 0, n
        self._generator.set_state(state["generator"].cpu())

    def _provide(self, count: int) -> None:
        """Have at least so many rows that have not been taken yet; draw others behind them if there are fewer."""
        left = self._end - self._position
        if left < count:
            if left:
                self.numbers[:left] = self.numbers[self._position : self._end].clone()
            log_exponential(self.numbers[left : left + self.n_rows], self._generator)
            self._position, self._end = 0, left + self.n_rows


class BlockNoise(Source):
    """The random generator of a group on a device, with noise for :func:`rlplay.sampling.categorical` in blocks.

    The noise of each form has a generator of its own, seeded from the seed of this one. So it does not matter when a
    block is drawn: eager steps draw it when they need it, and for captured ones it is drawn before. Other draws, for
    which it serves as any other generator, do not change the noise. Noise so wide that a block would hold fewer than
    two rows of it is drawn at each step; so is all noise once the state of the generator has been set, since a state
    does not tell how far the blocks are.
    """

    def __init__(self, device: torch.device | str) -> None:
        """Start without blocks."""
        super().__init__(device)
        self._blocks: dict[Form, NoiseBlock] = {}
        self._in_blocks = True
        self._taken: dict[Form, int] | None = None  # inside `by_index`

    def manual_seed(self, seed: int) -> Source:
        """Set the seed, and drop all blocks."""
        self._restart()
        return super().manual_seed(seed)

    def seed(self) -> int:
        """Set a random seed, and drop all blocks."""
        self._restart()
        return super().seed()

    def set_state(self, state: Tensor) -> Any:
        """Set the state, and draw noise at each step from now on."""
        self._restart()
        self._in_blocks = False
        return super().set_state(state)

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the generator and of the blocks: tensors on the host, and booleans."""
        blocks = [block.state_dict() for block in self._blocks.values()]
        return {"generator": self.get_state(), "blocks": blocks, "in_blocks": self._in_blocks}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Continue from what :meth:`state_dict` returned: the same draws follow as there."""
        self._restart()
        super().set_state(state["generator"].cpu())
        self._in_blocks = state["in_blocks"]
        for saved in state["blocks"]:
            self.block((saved["left"].shape[1:], saved["left"].dtype)).load_state_dict(saved)

    def _restart(self) -> None:
        if self._taken is not None:
            raise RuntimeError("it seeds `self.generator`, or sets its state")
        self._blocks.clear()

    def log_exponential(self, shape: torch.Size, dtype: torch.dtype) -> Tensor:
        """Return logarithms of standard exponential variates, on the generator's device."""
        if not (self._in_blocks and 0 < 2 * shape.numel() <= BLOCK):
            return log_exponential(torch.empty(shape, dtype=dtype, device=self.device), self)
        form = torch.Size(shape), dtype
        block = self.block(form)
        if self._taken is None:
            return block.take()
        before = self._taken.get(form, 0)
        if before == block.n_rows:
            raise RuntimeError(f"it draws more than {BLOCK} numbers of noise in one step")
        self._taken[form] = before + 1
        return block.at_index(before)

    def block(self, form: Form) -> NoiseBlock:
        """Return the block of a form, which is drawn now if there is none."""
        block = self._blocks.get(form)
        if block is None:
            shape, dtype = form
            seed = seed_from(np.random.SeedSequence((self.initial_seed(), dtype.itemsize, *shape)))
            generator = torch.Generator(self.device).manual_seed(seed)
            with torch.inference_mode(False):  # its memory is also written to outside of the step
                block = self._blocks[form] = NoiseBlock(form, generator)
        return block

    @contextmanager
    def by_index(self) -> Iterator[dict[Form, int]]:
        """Inside the ``with`` block, noise is read at the index of its block, as a captured step has to read it.

        Yields
        ------
        dict
            How many rows of each form have been taken. Whoever takes them has to add these numbers to the indices.

        Raises
        ------
        RuntimeError
            Inside the block, if the generator is seeded or if a single step takes more rows than a block has.
        """
        self._taken = {}
        try:
            yield self._taken
        finally:
            self._taken = None

    def around(self, step: Callable[[], None], counts: Mapping[Form, int]) -> Callable[[], None]:
        """Return a callable that makes a captured step, after :meth:`prepare` and before :meth:`advance`."""
        if not counts:
            return step

        def step_with_noise() -> None:
            self.prepare(counts)
            step()
            self.advance(counts)

        return step_with_noise

    def prepare(self, counts: Mapping[Form, int]) -> None:
        """Make ready for a captured step that takes so many rows of each form."""
        for form, count in counts.items():
            self.block(form).prepare(count)

    def advance(self, counts: Mapping[Form, int]) -> None:
        """Note that a captured step has taken these rows."""
        for form, count in counts.items():
            self._blocks[form].advance(count)


def seed_from(sequence: np.random.SeedSequence) -> int:
    """Return the seed of 63 bits that a seed sequence determines."""
    return int(sequence.generate_state(1, np.uint64)[0]) >> 1
