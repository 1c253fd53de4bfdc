"""The replay buffer that draws uniformly."""

from __future__ import annotations

import torch

from .batches import Batch, Sequences
from .buffer import Buffer

__all__ = ["Uniform"]


class Uniform(Buffer):
    """A replay buffer that draws every valid item with the same probability.

    Randomness comes from ``generator`` alone, which must be on the buffer's device (None: torch's global one). A batch
    is stratified: the items are split into ``n`` equal parts by their place in the buffer, and one is drawn from each.
    So a batch has fewer repetitions than one of independent draws, and comes ordered by place; shuffle it if it is to
    be split.

    Parameters
    ----------
    capacity : int >= 1
        In environment steps; there is room for ``capacity // (T * B)`` whole fragments.
    sequences : bool
        Whether an item is a whole column of a fragment, of ``T`` steps, rather than a transition. Transitions that are
        not valid are never drawn, nor are columns that have no other.
    device : torch.device or str, optional
        Where fragments are stored and samples delivered; None: where the first fragment is.

    Notes
    -----
    Drawing is from the very sum tree of :class:`Prioritized`, with values of 0 and 1: that leaves out what is not valid
    exactly, without rejections, for which the host would have to wait.
    """

    def __init__(self, capacity: int, *, sequences: bool = False, device: torch.device | str | None = None) -> None:
        super().__init__(capacity, sequences, device)

    def sample(self, n: int, *, gamma: float, n_steps: int = 1, generator: torch.Generator | None = None) -> Batch:
        """Draw ``n`` transitions. The host does not wait for the device.

        Parameters
        ----------
        n : int >= 1
            How many.
        gamma : float in [0, 1]
            The discount.
        n_steps : int >= 1
            How many steps to look ahead at most, see :class:`Batch`.
        generator : torch.Generator, optional
            On the buffer's device.

        Raises
        ------
        RuntimeError
            Nothing has been committed, or (noticed on the CPU alone; elsewhere the weights are zero) no transition that
            is held is valid, or this is a buffer of sequences.
        """
        return self._transitions(n, 0.0, generator, n_steps, gamma)

    def sample_sequences(self, n: int, *, generator: torch.Generator | None = None) -> Sequences:
        """Draw ``n`` columns. If there is ``final``, the host waits for the device, once.

        Parameters
        ----------
        n : int >= 1
            How many.
        generator : torch.Generator, optional
            On the buffer's device.

        Raises
        ------
        RuntimeError
            As for :meth:`sample`, or this is a buffer of transitions.
        """
        return self._columns(n, 0.0, generator)
