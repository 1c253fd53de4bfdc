"""The replay buffer that draws in proportion to priorities."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .batches import Batch, Sequences
from .buffer import Buffer, check_fraction

__all__ = ["Prioritized"]


class Prioritized(Buffer):
    """A replay buffer that draws items in proportion to priorities, made of how wrong the learner was about them.

    An item's probability is ``P(i) = p_i / sum_k p_k`` with ``p_i = (|delta_i| + epsilon)^alpha``. New items get the
    largest ``p`` there has been so far, 1 at first. Batches are stratified, and otherwise as those of :class:`Uniform`.

    Parameters
    ----------
    capacity, sequences, device
        As for :class:`Uniform`.
    alpha : float in [0, 1]
        How much priorities count; 0: not at all.
    epsilon : float > 0
        Keeps items whose error is zero in play. With the defaults they are drawn 16 times less often than those whose
        error is 1.

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
            How much of the bias is corrected for: ``w_i = (N P(i))^-beta``, divided by the largest in the batch. The
            paper raises it to 1 while training.

        Raises
        ------
        RuntimeError
            As for :meth:`Uniform.sample`.
        """
        return self._transitions(n, beta, generator, n_steps, gamma)

    def sample_sequences(self, n: int, *, beta: float, generator: torch.Generator | None = None) -> Sequences:
        """Draw ``n`` columns, with importance weights. If there is ``final``, the host waits for the device, once.

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
        return self._columns(n, beta, generator)

    @torch.no_grad()
    def update(self, ids: Tensor, priorities: Tensor) -> None:
        """Tell how wrong the learner was about some items. The host does not wait for the device.

        Items that have been evicted meanwhile, or are not valid, are ignored. Where an id is repeated, the largest of
        its priorities is taken.

        Parameters
        ----------
        ids : int64 tensor, ``(N,)``
            Of a sample.
        priorities : float tensor, ``(N,)``
            ``|delta_i|``, the magnitudes of the temporal differences; what to make of those of a column is up to you.

        Raises
        ------
        RuntimeError
            Nothing has been committed.
        ValueError
            The shapes differ, or a priority is negative or not finite. The latter is noticed if ``priorities`` are on
            the CPU; elsewhere, since the host would have to wait, such a priority is ignored, and the item keeps its
            own.
        """
        if self._parts is None:
            raise RuntimeError("There is nothing to update: the buffer is empty; `commit` a fragment first.")
        if ids.ndim != 1 or ids.shape != priorities.shape:
            raise ValueError(
                f"`ids` and `priorities` must both be (N,), got {tuple(ids.shape)} and {tuple(priorities.shape)}."
            )
        fits = (priorities >= 0) & priorities.isfinite()
        if fits.device.type == "cpu" and not fits.all():
            raise ValueError(
                f"`priorities` must be finite and not negative, got {priorities[~fits][0].item()}; they are the "
                f"magnitudes of temporal differences, `delta.abs()`."
            )
        store, sampler = self._parts
        delta = priorities.to(store.device, torch.float64)
        sampler.update(ids.to(store.device), torch.where(delta >= 0, (delta + self._epsilon) ** self._alpha, -1))

    def _made_with(self) -> dict[str, Any]:
        return {**super()._made_with(), "alpha": self._alpha, "epsilon": self._epsilon}
