"""Collects lists of whole episodes, for algorithms that learn from complete returns, such as REINFORCE.

A list is collected when it is asked for, in the caller's own thread, and strictly on-policy: all its episodes begin
after ``next()`` was called, and all have ended when it returns.

An episode is a :class:`~rlplay.engine.Fragment` with ``B = 1`` and ``T`` equal to the episode's length, so that every
function of :mod:`rlplay.algo` accepts it. An episode of three steps has these rows::

    row                 0       1       2       3 = T
    -------------------------------------------------
    state.stepno        0       1       2       3
    state.obs           x0      x1      x2      x3
    state.act           *       a0      a1      a2
    state.rew           *       r1      r2      r3
    state.fin           True    -       -       True
    -------------------------------------------------
    actor (reaction)    to x0   to x1   to x2   to x3, virtual
    carried out         a0      a1      a2      nothing
    -------------------------------------------------
    transition          0 -> 1  1 -> 2  2 -> 3
    env.terminated      -       -       the one or
    env.truncated       -       -       the other, or both
    env.valid           True    True    True

Row ``T`` differs from row ``T`` of other fragments, which holds the first observation of the next episode. Here it
holds the true last observation and the actor's virtual reaction to it, for which ``fin`` was False and the recurrent
state not yet reset. The same observation and reaction are in ``env.final``, with ``K = 1``; losses bootstrap from it
where a time limit cut the episode. ``hx`` is the recurrent state at the beginning of the episode. The values at ``*``
belong to the environment's previous episode, as in any row with ``fin``: the return is ``state.rew[1:].sum()``.

The episodes of a list are chosen before they begin, since a list of the episodes that end first would prefer short
ones: environment ``e % B`` plays episode number ``e`` of the feed. An environment that has played its episodes of a
list stands still until the next list.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..core import BaseActorModule
from ..envs.dialects import is_vector
from ..feed.build import open_feed
from ..feed.episode_feed import STEPS_PER_FRAGMENT, BatchOfEpisodes, EpisodeFeed
from ..feed.options import Device, Info, Options, at_least

__all__ = ["rollout"]


def rollout(
    envs: Any,
    actor: BaseActorModule,
    *,
    batch_size: int = 1,
    device: Device = None,
    actor_device: torch.device | str | None = None,
    seed: int | None = None,
    reseed: bool = True,
    info: Info = (),
) -> EpisodeFeed:
    """Collect lists of ``batch_size`` whole episodes, each when it is asked for.

    A list is complete when the longest of its episodes has ended. If an episode might never end, wrap the environment
    in a time limit (gym's ``TimeLimit``).

    Parameters
    ----------
    envs : list of environments, or list of factories
        As in :func:`rlplay.engine.rollout.threaded.rollout`. Each is reset once, at the call, and then whenever its
        episode has ended. (A vector environment is refused: its parts cannot stand still one by one.)
    actor : BaseActorModule
        Copied at the call. Each list is played with the parameters, buffers, train/eval modes and plain attributes of
        the moment at which it is asked for. They must not be changed during ``next()``.
    batch_size : int
        The number of episodes in a list. A multiple of the number of environments is best: otherwise some environments
        stand still while others play.
    device, actor_device, seed, reseed, info
        As in :func:`rlplay.engine.rollout.threaded.rollout`.

    Returns
    -------
    EpisodeFeed
        An iterator over lists of :class:`~rlplay.engine.Fragment`, and a context manager. Close it when done.

    Raises
    ------
    TypeError, ValueError
        At the call, if an argument is not as described, as in :func:`rlplay.engine.rollout.threaded.rollout`.
    """
    at_least("batch_size", batch_size, 1)
    if is_vector(envs):
        raise ValueError("whole episodes need environments that can stand still: pass a list instead of a vector.")
    options = Options(
        n_steps=STEPS_PER_FRAGMENT, sticky=True, device=device, actor_device=actor_device, lag=0, seed=seed,
        reseed=reseed, final=True, info=info,
    )  # fmt: skip
    feed = open_feed(envs, actor, options, make_list=partial(BatchOfEpisodes, batch_size))
    return EpisodeFeed(feed, batch_size)
