"""Cuts whole episodes out of a feed of sticky fragments. :mod:`rlplay.engine.rollout.episodic` shows their rows."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from functools import partial
from types import TracebackType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ... import nested
from ...dtypes import move
from ..core import Episode, Final, Fragment
from ..envs.environment_list import EnvironmentList
from .episode_log import EpisodeLog
from .feed import Feed
from .stats import Stats
from .timeline import Trace

__all__ = ["STEPS_PER_FRAGMENT", "BatchOfEpisodes", "EpisodeFeed"]

STEPS_PER_FRAGMENT = 16
"""The length of the fragments that episodes are cut out of.

Shorter fragments cost more snapshots; longer ones cost more rows in which environments stand still."""


class BatchOfEpisodes(EnvironmentList):
    """Environments that play a fixed number of episodes each, and then stand still until the whole batch is played.

    Fragments must be sticky: in each fragment an environment ends at most one episode.
    """

    def __init__(self, batch_size: int, *args: Any, **options: Any) -> None:
        """Make and reset the environments as :class:`EnvironmentList` does; all of them stand still at first."""
        super().__init__(*args, **options)
        self._batch_size, self._n_assigned = batch_size, 0
        self._episodes_left = [0] * self.n_envs
        self._stopped = dict.fromkeys(range(self.n_envs), (False, False))

    def release(self) -> None:
        """Begin an episode in each environment that stands still and has episodes left to play.

        If all environments stand still and none has an episode left, first assign the episodes of the next batch.
        """
        if len(self._stopped) == self.n_envs and not any(self._episodes_left):
            for number in range(self._n_assigned, self._n_assigned + self._batch_size):
                self._episodes_left[number % self.n_envs] += 1
            self._n_assigned += self._batch_size
        for j in [j for j in self._stopped if self._episodes_left[j]]:
            self._episodes_left[j] -= 1
            del self._stopped[j]


class _EndedEpisode(NamedTuple):
    """An episode of the list under way that has ended, and where it ended."""

    episode: Episode
    n_fragments: int
    """It ended in the last of this many fragments of the list."""
    k: int
    """Its index in ``env.final`` of that fragment."""


class EpisodeFeed(Iterator[list[Fragment]]):
    """An infinite iterator over lists of whole episodes, and a context manager. Returned by ``episodic.rollout``.

    The episodes of a list are ordered by environment, and those of one environment by time. The docstring of
    :mod:`rlplay.engine.rollout.episodic` shows the rows of an episode. This feed ends as a
    :class:`~rlplay.engine.feed.feed.Feed` does, and its ``next()`` raises the same errors. A KeyboardInterrupt inside
    ``next()`` closes it. Of several threads that call ``next()``, one collects and the others wait.
    """

    def __init__(self, feed: Feed, batch_size: int) -> None:
        """Cut episodes out of ``feed``: its fragments are sticky and have ``final``; see :class:`BatchOfEpisodes`."""
        self._feed, self._batch_size = feed, batch_size
        self._next_lock = threading.RLock()
        # State of the list under way, with the lock. If an ask is refused, the next call of next() continues from here.
        self._fragments: list[Fragment] = []
        self._ended: list[_EndedEpisode] = []
        self._episodes = EpisodeLog()
        self._version: int | None = None

    def __iter__(self) -> EpisodeFeed:
        """Return the feed itself: there is one stream of episodes."""
        return self

    def __next__(self) -> list[Fragment]:
        """Take a snapshot of the weights, and return a list of episodes played with it. The caller owns them."""
        self._feed.check_asking()
        with self._next_lock:
            try:
                return self._next_batch()
            except KeyboardInterrupt:  # a fragment may have been lost between the feed and this list
                self.close()
                raise

    def _next_batch(self) -> list[Fragment]:
        with torch.inference_mode(False):  # the tensors of the episodes outlive this call
            while len(self._ended) < self._batch_size:
                self._fragments.append(next(self._feed))
                ended = enumerate(self._feed.episodes())  # in the order of `env.final`
                self._ended += [_EndedEpisode(episode, len(self._fragments), k) for k, episode in ended]
            ends = sorted(self._ended, key=lambda end: end.episode.env)
            batch = [_join(self._fragments[: end.n_fragments], end.episode, end.k) for end in ends]
        self._fragments, self._ended = [], []
        self._episodes.add([end.episode for end in ends])
        self._version = 0 if self._version is None else self._version + 1
        return batch

    def close(self) -> None:
        """End the feed, as :meth:`rlplay.engine.feed.feed.Feed.close` does."""
        self._feed.close()

    def __enter__(self) -> EpisodeFeed:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self.close()

    def pause(self) -> AbstractContextManager[None]:
        """Keep a ``next()`` of another thread standing still; see :meth:`rlplay.engine.feed.feed.Feed.pause`."""
        return self._feed.pause()

    def trace(self, path: str | os.PathLike[str] | None = None) -> Trace:
        """Record what learner and collector do, and when; see :meth:`rlplay.engine.feed.feed.Feed.trace`."""
        return self._feed.trace(path)

    @property
    def open(self) -> bool:
        """True until the feed is closed or has ended: more episodes can be asked for."""
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
        """Return the summaries of the episodes delivered since the last call, in the order of delivery.

        At most the last 100 000 are kept between calls. Another thread may call ``next()`` meanwhile.
        """
        return self._episodes.take()

    @property
    def stats(self) -> Stats:
        """Steps per second, and how both sides spent their time, since the first list was asked for."""
        return self._feed.stats


def _join(fragments: Sequence[Fragment], episode: Episode, k: int) -> Fragment:
    """Join the rows of one episode, which began at row 0 of a fragment and ended in the last fragment.

    All slices follow from the episode's length, which the host knows, so that no device is waited for.

    Parameters
    ----------
    fragments : sequence of Fragment
        May begin with fragments before the episode.
    episode : Episode
        Has the environment and the length.
    k : int
        The episode's index in ``env.final`` of the last fragment.
    """
    b = slice(episode.env, episode.env + 1)
    n_before, t = divmod(episode.length - 1, STEPS_PER_FRAGMENT)  # ended with transition t of the last fragment
    fragments = fragments[-1 - n_before :]
    final = fragments[-1].env.final

    def join_rows(*xs: Tensor) -> Tensor:
        return torch.cat([*(x[:STEPS_PER_FRAGMENT, b] for x in xs[:-1]), xs[-1][: t + 2, b]])

    def join_transitions(*xs: Tensor) -> Tensor:
        return torch.cat([*(x[:, b] for x in xs[:-1]), xs[-1][: t + 1, b]])

    state, actor = nested.map(partial(move, join_rows), *((fragment.state, fragment.actor) for fragment in fragments))
    env = nested.map(partial(move, join_transitions), *(fragment.env._replace(final=()) for fragment in fragments))
    for row, last in zip(nested.leaves((state.obs, actor)), nested.leaves((final.obs, final.actor)), strict=True):
        row[-1] = last[k]
    state.stepno[-1] = episode.length
    last_obs, last_info = nested.map(lambda x: x[-1], (state.obs, actor))
    last_t = torch.full_like(state.stepno[-1], episode.length - 1)
    hx = nested.map(lambda x: x[:, b].clone(), fragments[0].hx)
    return Fragment(state, actor, env._replace(final=Final(last_t, torch.zeros_like(last_t), last_obs, last_info)), hx)
