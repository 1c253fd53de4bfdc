"""The replay buffer that draws uniformly."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from .batches import Batch, Sequences
from .buffer import Buffer

__all__ = ["Uniform"]


class Uniform(Buffer):
    """A replay buffer that draws every valid item with the same probability.

    Randomness comes only from ``generator``, which must be on the buffer's device (None: torch's global one). A batch
    is stratified: the items are split into ``n`` equal parts by their position in the buffer, and one item is drawn
    from each part. So a batch has fewer repetitions than a batch of independent draws. The batch is ordered by
    position; shuffle it before you split it into minibatches.

    Parameters
    ----------
    capacity : int >= 1
        In environment steps. There is room for ``capacity // (T * B)`` whole fragments.
    sequences : bool
        Whether an item is a whole column of a fragment, of ``T`` steps, rather than a transition. Transitions that are
        not valid, and columns without a valid transition, are never drawn.
    device : torch.device or str, optional
        The device of the stored fragments and of the samples; None: the device of the first fragment.
    keep : "actor", "info", or both
        What a buffer of transitions keeps beside states and outcomes: the actor's info, the environments' info. Samples
        have them as ``actor`` and ``info``. (A buffer of sequences keeps the whole fragment.)

    Notes
    -----
    Items are drawn from the sum tree that :class:`Prioritized` uses, with priorities 0 (not valid) and 1. This excludes
    invalid items without rejection sampling, for which the host would have to wait for the device.
    """

    def __init__(
        self,
        capacity: int,
        *,
        sequences: bool = False,
        device: torch.device | str | None = None,
        keep: str | Sequence[str] = (),
    ) -> None:
        super().__init__(capacity, sequences, device, keep)

    def sample(self, n: int, *, gamma: float, n_steps: int = 1, generator: torch.Generator | None = None) -> Batch:
        """Draw ``n`` transitions. The host does not wait for the device.

        Parameters
        ----------
        n : int >= 1
            The number of transitions.
        gamma : float in [0, 1]
            The discount.
        n_steps : int >= 1
            The largest number of steps of a transition, see :class:`Batch`.
        generator : torch.Generator, optional
            On the buffer's device.

        Raises
        ------
        RuntimeError
            Nothing has been committed, this is a buffer of sequences, or no stored transition is valid. The last
            condition is checked on the CPU only; on another device the weights returned are zero instead.
        """
        return self._sample_transitions(n, 0.0, generator, n_steps, gamma)

    def sample_sequences(self, n: int, *, generator: torch.Generator | None = None) -> Sequences:
        """Draw ``n`` columns. If the fragments have ``final``, the host waits for the device, once.

        Parameters
        ----------
        n : int >= 1
            The number of columns.
        generator : torch.Generator, optional
            On the buffer's device.

        Raises
        ------
        RuntimeError
            Nothing has been committed, this is a buffer of transitions, or no stored transition is valid. The last
            condition is checked as in :meth:`sample`.
        """
        return self._sample_sequences(n, 0.0, generator)
