"""Whole episodes, in lists: for algorithms that learn from complete returns, such as REINFORCE.

A list is collected on request, in the caller's own thread, and strictly on-policy: all its episodes begin after it was
asked for, and none is under way when it is handed over.

An episode is a :class:`~rlplay.engine.Fragment` with ``B = 1`` whose ``T`` is the episode's length, so that all of
:mod:`rlplay.algo` works on it. Here is one of three steps::

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

Only row ``T`` is unlike that of other fragments, which would show the beginning of the next episode: it holds the true
last observation, and the actor's virtual reaction to it, for which ``fin`` was False, and the recurrent state not yet
reset. The same two are ``env.final``, with ``K = 1``, from which losses bootstrap where a time limit cut the episode.
``hx`` is the recurrent state that the episode began with. As in any row with ``fin``, what stands at ``*`` is none of
this episode's: its return is ``state.rew[1:].sum()``.

Which episodes make a list is settled before they begin, or short ones would be preferred: episode number ``e`` of a
feed is played by environment ``e % B``, and who has played its share stands still until the next list.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch

from ..core import BaseActorModule
from ..envs.dialects import is_vector
from ..feed.build import open_feed
from ..feed.episode_feed import _PIECE, EpisodeFeed, Turns
from ..feed.options import Device, Info, at_least

__all__ = ["rollout"]


def rollout(
    envs: Any,
    actor: BaseActorModule,
    *,
    batch_size: int = 1,
    device: Device = None,
    actor_device: torch.device | str | None = None,
    seed: int | None = None,
    info: Info = (),
) -> EpisodeFeed:
    """Collect lists of ``batch_size`` whole episodes, each when it is asked for.

    Give episodes that might not end a time limit (gym's ``TimeLimit``): a list waits for the longest of its episodes.

    Parameters
    ----------
    envs : list of environments, or list of factories
        As in :func:`rlplay.engine.rollout.threaded.rollout`. Each is reset once, at the call, and then whenever its
        episode has ended. (A vector environment cannot stand still in part.)
    actor : BaseActorModule
        Copied at the call; parameters, buffers and the train/eval mode are followed from then on. They must not be
        changed while a list is waited for.
    batch_size : int
        The number of episodes in a list. Best is a multiple of the number of environments, or some stand still.
    device, actor_device, seed, info
        As in :func:`rlplay.engine.rollout.threaded.rollout`.

    Returns
    -------
    EpisodeFeed
        An iterator over lists of :class:`~rlplay.engine.Fragment`, to be closed when done (it is a context manager).

    Raises
    ------
    TypeError, ValueError
        At the call, if anything is not as described, as in :func:`rlplay.engine.rollout.threaded.rollout`.
    """
    at_least("batch_size", batch_size, 1)
    if is_vector(envs):
        raise ValueError("whole episodes need environments that can stand still: pass a list instead of a vector.")
    feed = open_feed(
        envs, actor, n_steps=_PIECE, sticky=True, device=device, actor_device=actor_device, lag=0, groups=1, seed=seed,
        final=True, info=info, compile=False, environments=partial(Turns, batch_size), background=None,
    )  # fmt: skip
    return EpisodeFeed(feed, batch_size)
