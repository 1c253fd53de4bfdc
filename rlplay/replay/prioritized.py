"""The replay buffer that draws in proportion to priorities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batches import Batch, Sequences
from .buffer import Buffer, check_fraction

__all__ = ["Prioritized"]


class Prioritized(Buffer):
    """A replay buffer that draws items in proportion to priorities, which are powers of the learner's errors on them.

    An item's probability is ``P(i) = p_i / sum_k p_k`` with ``p_i = (|delta_i| + epsilon)^alpha``. New items get the
    largest ``p`` so far, which is 1 at first. Batches are stratified by ``p``, and otherwise like those of
    :class:`Uniform`.

    Parameters
    ----------
    capacity, sequences, device
        As for :class:`Uniform`.
    alpha : float in [0, 1]
        The exponent of the priorities; 0: all items are drawn with the same probability.
    epsilon : float > 0
        Added to each error, so that items with error zero are still drawn. With the defaults, an item with error zero
        is drawn 16 times less often than an item with error 1.

    Notes
    -----
    Schaul et al. (2016), "Prioritized Experience Replay": the proportional variant, eq. 1 and section 3.3, with
    algorithm 1, line 6 for new items, importance weights as in section 3.4, and appendix B.2.1 for drawing a batch.
    """

    def __init__(
        self,
        capacity: int,
        *,
        alpha: float = 0.6,
        epsilon: float = 1e-2,
        sequences: bool = False,
        device: torch.device | str | None = None,
    ) -> None:
        super().__init__(capacity, sequences, device)
        check_fraction("alpha", alpha)
        if not 0 < epsilon < float("inf"):
            raise ValueError(f"`epsilon` must be a positive number, got {epsilon}.")
        self._alpha, self._epsilon = float(alpha), float(epsilon)

    def sample(
        self, n: int, *, gamma: float, beta: float, n_steps: int = 1, generator: torch.Generator | None = None
    ) -> Batch:
        """Draw ``n`` transitions, with importance weights. The host does not wait for the device.

        Parameters
        ----------
        n, gamma, n_steps, generator
            As for :meth:`Uniform.sample`.
        beta : float in [0, 1]
            The exponent of the importance weights, ``w_i = (N P(i))^-beta``, which are divided by the largest weight of
            the batch. 0: no correction of the bias; 1: full correction. The paper raises it to 1 during training.

        Raises
        ------
        RuntimeError
            As for :meth:`Uniform.sample`.
        """
        return self._sample_transitions(n, beta, generator, n_steps, gamma)

    def sample_sequences(self, n: int, *, beta: float, generator: torch.Generator | None = None) -> Sequences:
        """Draw ``n`` columns, with importance weights. If fragments have ``final``, the host waits for the device.

        Parameters
        ----------
        n, generator
            As for :meth:`Uniform.sample_sequences`.
        beta : float in [0, 1]
            As for :meth:`sample`.

        Raises
        ------
        RuntimeError
            As for :meth:`Uniform.sample_sequences`.
        """
        return self._sample_sequences(n, beta, generator)

    @torch.no_grad()
    def update(self, ids: Tensor, priorities: Tensor) -> None:
        """Set the priorities of some items from the learner's errors. The host does not wait for the device.

        Items that have been evicted meanwhile, or are not valid, are ignored. If an id is repeated, the largest of its
        priorities is stored.

        Parameters
        ----------
        ids : int64 tensor, ``(N,)``
            The ``ids`` of a sample.
        priorities : float tensor, ``(N,)``
            ``|delta_i|``, the magnitudes of the temporal differences. For a column, reduce the magnitudes of its
            steps to one number in any way (:mod:`rlplay.algo.dqn` has an example).

        Raises
        ------
        RuntimeError
            Nothing has been committed.
        ValueError
            The shapes differ, or a priority is negative or not finite. Values are checked only if ``priorities`` is on
            the CPU, since the host would have to wait for another device. On another device, a priority that is
            negative or not finite is ignored, and the item keeps its present one.
        """
        if self._store_and_sampler is None:
            raise RuntimeError("There is nothing to update: the buffer is empty; `commit` a fragment first.")
        if ids.ndim != 1 or ids.shape != priorities.shape:
            raise ValueError(
                f"`ids` and `priorities` must both be (N,), got {tuple(ids.shape)} and {tuple(priorities.shape)}."
            )
        accepted = (priorities >= 0) & priorities.isfinite()
        if accepted.device.type == "cpu" and not accepted.all():
            raise ValueError(
                f"`priorities` must be finite and not negative, got {priorities[~accepted][0].item()}; they are the "
                f"magnitudes of temporal differences, `delta.abs()`."
            )
        store, sampler = self._store_and_sampler
        errors = priorities.to(store.device, torch.float64)
        sampler.update(ids.to(store.device), torch.where(errors >= 0, (errors + self._epsilon) ** self._alpha, -1))

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "alpha": self._alpha, "epsilon": self._epsilon}
