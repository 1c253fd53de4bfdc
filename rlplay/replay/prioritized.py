"""The replay buffer that draws in proportion to priorities."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from .batches import Batch, Sequences
from .buffer import Buffer, check_fraction

__all__ = ["Prioritized"]

Array: TypeAlias = npt.NDArray[Any]


class Prioritized(Buffer):
    """A replay buffer that draws items in proportion to priorities, which are powers of the learner's errors on them.

    An item's probability is ``P(i) = p_i / sum_k p_k`` with ``p_i = (|delta_i| + epsilon)^alpha``. New items get the
    largest ``p`` so far, which is 1 at first. Batches are stratified by ``p``, and otherwise like those of
    :class:`Uniform`.

    Parameters
    ----------
    capacity, sequences, device, keep
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
        keep: str | Sequence[str] = (),
    ) -> None:
        super().__init__(capacity, sequences, device, keep)
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

    @torch.inference_mode(False)  # what is kept must not be an inference tensor
    @torch.no_grad()
    def update(self, ids: Tensor | Array, priorities: Tensor | Array) -> None:
        """Set the priorities of some items from the learner's errors. The host does not wait for the device.

        Items that have been evicted meanwhile, or are not valid, are ignored. If an id is repeated, the largest of its
        priorities is stored.

        Parameters
        ----------
        ids : int64 tensor, ``(N,)``
            The ``ids`` of a sample; or a NumPy array of integers.
        priorities : float tensor or NumPy array, ``(N,)``
            ``|delta_i|``, the magnitudes of the temporal differences. For a column, reduce the magnitudes of its
            steps to one number in any way (:func:`rlplay.algo.r2d2.priority` is one).

        Raises
        ------
        RuntimeError
            Nothing has been committed.
        TypeError
            ``ids`` are no integers, or ``priorities`` no numbers.
        ValueError
            The shapes differ, or a priority is negative, not finite, or so large that the sum of such priorities would
            not be finite. Values are checked only if ``priorities`` is on the CPU, since the host would have to wait
            for another device. On another device, such a priority is ignored, and the item keeps its present one.
        """
        if self._store_and_sampler is None:
            raise RuntimeError("There is nothing to update: the buffer is empty; `commit` a fragment first.")
        ids, priorities = _as_ids(ids), _as_numbers(priorities)
        if ids.ndim != 1 or ids.shape != priorities.shape:
            raise ValueError(
                f"`ids` and `priorities` must both be (N,), got {tuple(ids.shape)} and {tuple(priorities.shape)}."
            )
        store, sampler = self._store_and_sampler
        accepted = (priorities >= 0) & priorities.isfinite()
        if accepted.device.type == "cpu" and not accepted.all():
            raise ValueError(
                f"`priorities` must be finite and not negative, got {priorities[~accepted][0].item()}; they are the "
                f"magnitudes of temporal differences, `delta.abs()`."
            )
        on_host = priorities.device.type == "cpu"
        powers = (priorities if on_host else priorities.to(store.device)).to(torch.float64)
        powers = (powers + self._epsilon) ** self._alpha
        fits = powers <= sampler.limit
        if on_host and not fits.all():
            raise ValueError(
                f"`(priorities + epsilon) ** alpha` must be at most {sampler.limit:.3g}, so that the sum over the "
                f"buffer is finite; got a priority of {priorities[~fits][0].item()}. The learner has diverged."
            )
        powers = torch.where(accepted.to(powers.device) & fits, powers, -1)
        sampler.update(ids.to(store.device), powers.to(store.device))

    def _arguments(self) -> dict[str, Any]:
        return {**super()._arguments(), "alpha": self._alpha, "epsilon": self._epsilon}


def _as_ids(ids: Any) -> Tensor:
    """Convert ids, a tensor or what NumPy makes an array of, to an int64 tensor."""
    if not isinstance(ids, Tensor):
        array = np.asarray(ids)
        if array.dtype.kind not in "iu" and array.size:
            raise TypeError(f"`ids` must be integers, those of `batch.ids`; got an array of dtype {array.dtype}.")
        return torch.from_numpy(array.astype(np.int64))
    if ids.dtype == torch.bool or ids.is_floating_point() or ids.is_complex():
        raise TypeError(
            f"`ids` must be integers, those of `batch.ids`; got a tensor of dtype {ids.dtype}. (A float cannot hold "
            "every id exactly.)"
        )
    return ids.to(torch.int64)


def _as_numbers(priorities: Any) -> Tensor:
    """Convert priorities, a tensor or what NumPy makes an array of, to a tensor of numbers."""
    if not isinstance(priorities, Tensor):
        array = np.asarray(priorities)
        if array.dtype.kind not in "iuf":
            raise TypeError(f"`priorities` must be numbers, got an array of dtype {array.dtype}.")
        return torch.from_numpy(array.astype(np.float64))
    if priorities.dtype == torch.bool or priorities.is_complex():
        raise TypeError(f"`priorities` must be numbers, got a tensor of dtype {priorities.dtype}.")
    return priorities if priorities.is_floating_point() else priorities.to(torch.float64)
