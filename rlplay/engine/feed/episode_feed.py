"""SlabLayout whole episodes out of a feed of sticky fragments."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import nested
from ..core import Episode, Final, Fragment
from ..envs.environment_list import EnvironmentList
from .feed import Feed
from .stats import Stats
from .timeline import Trace

__all__ = ["EpisodeFeed"]

_PIECE = 16
"""Steps that are collected at a time. Fewer cost more snapshots, more cost more rows in which nobody plays."""

_KEPT_EPISODES = 100_000


class Turns(EnvironmentList):
    """Environments that play their shares of a batch, and then stand still until all have done so.

    In each fragment, which is to be sticky, an environment plays at most one episode to its end.
    """

    def __init__(self, batch_size: int, *args: Any) -> None:
        """Make and reset them, as any other environments; each stands at the beginning of an episode."""
        super().__init__(*args)
        self._batch_size, self._dealt = batch_size, 0
        self._left = [0] * self.n_envs
        self._stuck = dict.fromkeys(range(self.n_envs), (False, False))

    def release(self) -> None:
        """Let those go on that have episodes left to play. When nobody has, and all are done, deal out a new batch."""
        if len(self._stuck) == self.n_envs and not any(self._left):
            for number in range(self._dealt, self._dealt + self._batch_size):
                self._left[number % self.n_envs] += 1
            self._dealt += self._batch_size
        for j in [j for j in self._stuck if self._left[j]]:
            self._left[j] -= 1
            del self._stuck[j]


class _End(NamedTuple):
    """Where an episode ended: in the last of so many pieces, as number ``k`` of that one's ``env.final``."""

    episode: Episode
    n_pieces: int
    k: int


class EpisodeFeed(Iterator[list[Fragment]]):
    """An infinite iterator over lists of whole episodes, and a context manager. Made by :func:`rollout`.

    The episodes of a list are ordered by environment, and those of one environment by time. The module's docstring says
    what an episode looks like. This feed ends as any :class:`~rlplay.engine.feed.feed.Feed` does, and its ``next()``
    raises the same; a KeyboardInterrupt closes it. Only one thread may call ``next()`` at a time.
    """

    def __init__(self, feed: Feed, batch_size: int) -> None:
        """Cut the episodes out of a feed of sticky fragments with ``final``, whose environments take turns."""
        self._feed, self._batch_size = feed, batch_size
        # of the list under way: should an ask be refused, the next one goes on from here
        self._pieces: list[Fragment] = []
        self._ends: list[_End] = []
        self._episodes: deque[Episode] = deque(maxlen=_KEPT_EPISODES)
        self._version: int | None = None

    def __iter__(self) -> EpisodeFeed:
        """Return the feed itself: there is one stream of episodes."""
        return self

    def __next__(self) -> list[Fragment]:
        """Take a snapshot of the weights, and play a list of episodes with it. They are the caller's from then on."""
        try:
            with torch.inference_mode(False):  # what is cut is to outlive this call
                while len(self._ends) < self._batch_size:
                    self._pieces.append(next(self._feed))
                    ended = enumerate(self._feed.episodes())  # in the order of `env.final`
                    self._ends += [_End(episode, len(self._pieces), k) for k, episode in ended]
                ends = sorted(self._ends, key=lambda end: end.episode.env)
                batch = [_whole(self._pieces[: end.n_pieces], end.episode, end.k) for end in ends]
        except KeyboardInterrupt:  # a piece may have been lost
            self.close()
            raise
        self._pieces, self._ends = [], []
        self._episodes.extend(end.episode for end in ends)
        self._version = 0 if self._version is None else self._version + 1
        return batch

    def close(self) -> None:
        """End the feed, and close what its factories made; see :meth:`rlplay.engine.feed.feed.Feed.close`."""
        self._feed.close()

    def __enter__(self) -> EpisodeFeed:
        """Return the feed."""
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        """Close the feed."""
        self.close()

    def pause(self) -> AbstractContextManager[None]:
        """Let collection in another thread stand still; see :meth:`rlplay.engine.feed.feed.Feed.pause`."""
        return self._feed.pause()

    def trace(self, path: str | os.PathLike[str] | None = None) -> Trace:
        """Record what learner and collector do when; see :meth:`rlplay.engine.feed.feed.Feed.trace`."""
        return self._feed.trace(path)

    @property
    def open(self) -> bool:
        """Whether more episodes can be asked for."""
        return self._feed.open

    @property
    def version(self) -> int | None:
        """The number of the snapshot that played the last delivered list (list ``k``: ``k``). None before the first."""
        return self._version

    @property
    def steps(self) -> int:
        """The number of transitions so far, over all environments."""
        return self._feed.steps

    def episodes(self) -> list[Episode]:
        """Take what is known of the episodes delivered since this was last asked, in the order of delivery.

        At most the last 100 000 are kept.
        """
        taken = list(self._episodes)
        self._episodes.clear()
        return taken

    @property
    def stats(self) -> Stats:
        """Steps per second, and where the seconds went, since the first list was asked for."""
        return self._feed.stats


def _whole(pieces: Sequence[Fragment], episode: Episode, k: int) -> Fragment:
    """Put an episode together that began with a piece, and ended in the last one. The host knows all lengths."""
    b = slice(episode.env, episode.env + 1)
    before, t = divmod(episode.length - 1, _PIECE)  # it ended with transition t of the last piece
    pieces = pieces[-1 - before :]
    final = pieces[-1].env.final

    def rows(*xs: Tensor) -> Tensor:
        return torch.cat([*(x[:_PIECE, b] for x in xs[:-1]), xs[-1][: t + 2, b]])

    def steps(*xs: Tensor) -> Tensor:
        return torch.cat([*(x[:, b] for x in xs[:-1]), xs[-1][: t + 1, b]])

    state, actor = nested.map(rows, *((piece.state, piece.actor) for piece in pieces))
    env = nested.map(steps, *(piece.env._replace(final=()) for piece in pieces))
    for row, last in zip(nested.leaves((state.obs, actor)), nested.leaves((final.obs, final.actor)), strict=True):
        row[-1] = last[k]
    state.stepno[-1] = episode.length
    obs, reaction = nested.map(lambda x: x[-1], (state.obs, actor))
    end = torch.full_like(state.stepno[-1], episode.length - 1)
    hx = nested.map(lambda x: x[:, b].clone(), pieces[0].hx)
    return Fragment(state, actor, env._replace(final=Final(end, torch.zeros_like(end), obs, reaction)), hx)
