"""The episodes that ended in a fragment: found on the device, and brought down once, behind the fragment."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ... import nested
from ..core import Episode
from ..envs.rows import Array
from ..memory.lane import Lane, Place
from ..memory.slot import Blocks
from .action_checks import NONE_WRONG, ActionCheck

__all__ = ["Ends", "EndsOnDevice", "LateEnds", "find_ends"]


class Ends(NamedTuple):
    """What is known of the ends of a fragment, as tensors ``(T, B)``, but for those of shape ``(1,)``."""

    ended: Tensor
    """bool: an episode ended with the transition."""
    ret: Tensor
    """float64: the sum of the rewards of the episode so far. Meaningful for valid transitions."""
    length: Tensor
    """int64: the number of its steps so far. Meaningful for valid transitions."""
    n_valid: Tensor
    """int64 ``(1,)``: the number of transitions that were carried out."""
    wrong: Tensor
    """int64 ``(1,)``: ``t * B + b`` of the first action outside of its space, or ``NONE_WRONG``."""

    @classmethod
    def empty(cls, n_steps: int, n_envs: int, place: Place, lane: Lane) -> Ends:
        """Allocate the tensors."""
        shape, dtypes = (n_steps, n_envs), (torch.bool, torch.float64, torch.int64)
        ended, ret, length = (lane.empty(place, shape, dtype) for dtype in dtypes)
        n_valid, wrong = (lane.empty(place, (1,), torch.int64) for _ in range(2))
        return cls(ended, ret, length, n_valid, wrong)

    def episodes(self, first_env: int) -> EpisodeArrays:
        """Return the episodes, on the host. ``first_env`` is the number of column 0."""
        ended = self.ended.numpy()
        t, b = ended.nonzero()
        return EpisodeArrays(b + first_env, self.ret.numpy()[t, b], self.length.numpy()[t, b])


class EpisodeArrays(Collection[Episode]):
    """The episodes of a fragment in the order ``(t, env)``, as arrays: an object for each would take longer than steps.

    Parameters
    ----------
    env, ret, length : arrays, ``(K,)``
        The fields of each :class:`~rlplay.engine.core.Episode`: int64, float64 and int64.
    """

    def __init__(self, env: Array, ret: Array, length: Array) -> None:
        self._fields = env, ret, length

    def __len__(self) -> int:
        return len(self._fields[0])

    def __iter__(self) -> Iterator[Episode]:
        return map(Episode, *(field.tolist() for field in self._fields))

    def __contains__(self, episode: object) -> bool:
        return any(one == episode for one in self)


class EndsOnDevice:
    """Finds, on the device, the episodes that have ended in a fragment; keeps the returns of those under way."""

    def __init__(self, n_steps: int, n_envs: int, check: ActionCheck, lane: Lane) -> None:
        """Allocate memory on the actor's device."""
        self._check, self._n_envs = check, n_envs
        self.ends = Ends.empty(n_steps, n_envs, Place.ACTOR, lane)
        self._under_way = lane.empty(Place.ACTOR, (n_envs,), torch.float64)
        lane.launch(self._clear)

    def _clear(self) -> None:
        self._under_way.zero_()

    def find(self, turns: Sequence[tuple[Blocks, slice]]) -> None:
        """Find the ends in the rows of each turn, with its columns; inside ``lane.launch``."""
        self.ends.n_valid.zero_()
        self.ends.wrong.fill_(NONE_WRONG)
        numbers = torch.arange(self.ends.ended.numel(), device=self.ends.ended.device).view(-1, self._n_envs)
        for blocks, columns in turns:
            ended, ret, length = (x[:, columns] for x in self.ends[:3])
            into = Ends(ended, ret, length, self.ends.n_valid, self.ends.wrong)
            find_ends(blocks, self._under_way[columns], into)
            acts = [leaf[1:] for leaf in nested.leaves(blocks.state.act)]
            self._check.find(acts, numbers[:, columns], self.ends.wrong)


def find_ends(blocks: Blocks, under_way: Tensor, into: Ends) -> None:
    """Find the ends in the rows of one turn.

    Returns are sums in float64 over the rewards of one episode: infinities, NaN and large rewards of other episodes do
    not change them. Their last bits may differ from those of a sum from left to right, since rewards are added in pairs
    (:func:`_segmented_sums`). About eight operations for each doubling of ``T``, and no wait.

    Parameters
    ----------
    under_way : float64 tensor ``(b,)``
        The returns of the episodes under way at row 0. Those at row ``T`` are written into it.
    into : Ends
        Is written to; ``n_valid`` is added to.
    """
    valid = blocks.env.valid[1:]
    torch.logical_and(blocks.state.fin[1:], valid, out=into.ended)
    torch.add(blocks.state.stepno[:-1], 1, out=into.length)
    into.n_valid.add_(valid.sum())
    rewards = torch.where(valid, blocks.state.rew[1:], 0.0).double()
    rewards[0] += under_way
    begins = torch.zeros_like(into.ended)
    begins[1:] = into.ended[:-1]
    into.ret.copy_(_segmented_sums(rewards, begins))
    under_way.copy_(torch.where(into.ended[-1], 0.0, into.ret[-1]))


def _segmented_sums(x: Tensor, begins: Tensor) -> Tensor:
    """Return, for each row, the sum of the rows of its segment up to it; ``begins`` is True where a segment begins.

    Pairs of rows are added, then the same is done with these, so that the work is proportional to ``T`` and the number
    of operations to its logarithm. Only additions and selections of single elements are used, so the sums are the same,
    bit for bit, on every device. Rows of other segments are never added: a difference of two cumulative sums would be
    NaN after an infinite reward, and inexact after a large one.
    """
    if len(x) == 1:
        return x
    odd, odd_begins = x[1::2], begins[1::2]
    even, even_begins = x[: 2 * len(odd) : 2], begins[: 2 * len(odd) : 2]
    sums = torch.empty_like(x)
    pairs = torch.where(odd_begins, odd, even + odd)
    sums[1::2] = _segmented_sums(pairs, even_begins | odd_begins)
    sums[0] = x[0]
    later, later_begins = x[2::2], begins[2::2]
    sums[2::2] = torch.where(later_begins, later, sums[1:-1:2] + later)
    return sums


class LateEnds:
    """The ends of one fragment on their way down, behind the fragment. Made by the collector, read by the feed."""

    def __init__(
        self, ends: Ends, copied: object, lane: Lane, read: Callable[[Ends], tuple[EpisodeArrays, int]]
    ) -> None:
        """Take host memory, the event after which it is filled in, and what reads it then."""
        self._ends, self._copied, self._lane, self._read = ends, copied, lane, read

    def arrived(self) -> bool:
        """Return whether the copy is done, without a wait. Raises what work on the device has raised meanwhile."""
        return self._lane.reached(self._copied)

    def result(self) -> tuple[EpisodeArrays, int]:
        """Wait for the copy; return the episodes that ended, and the number of valid transitions. May be called once.

        Raises
        ------
        Exception
            What work on the device has raised meanwhile.
        ValueError
            An action was outside of its space.
        """
        if not self.arrived():
            self._lane.host_wait(self._copied)
        return self._read(self._ends)
