"""Fragments of ledger environments in every dialect, compared with those of the slow twin."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor, make_ledger
from tests.support.slow_twin import assert_same, pages

DIALECTS = {"old": ("gym.spaces", "old"), "gym": ("gym.spaces", "new"), "gymnasium": ("gymnasium.spaces", "new")}


ENGINES = {
    "same": (same, 0),
    "threaded lag 0": (threaded, 0),
    "threaded": (threaded, 1),
    "threaded lag 2": (threaded, 2),
}


untold = pytest.mark.filterwarnings("ignore:.*no environment has told:RuntimeWarning")
"""For tests whose infos are asked for names that are never told, or not before the first episode has ended."""

ENTRIES = {
    "code": np.float64,
    "even": np.int64,
    "first": bool,
    "place": np.zeros(2, np.int32),
    "nested.deep.step": "float32",
    "nested.deep.over": np.bool_,
    "episode.r": float,
    "episode.l": np.int16,
    "TimeLimit.truncated": bool,
    "a.b": np.float32,
    "never": np.zeros((2, 2), np.uint8),
    "never.at.all": float,
}


def ledgers(dialect, n_envs=3, **options):
    module, api = DIALECTS[dialect]
    spaces = pytest.importorskip(module)
    return [make_ledger(spaces, j, api=api, **options) for j in range(n_envs)]


def collected(feed, actor, n_fragments):
    """Set the weight before each ask; yield each fragment with the episodes, steps and version of the feed."""
    for k in range(n_fragments):
        with torch.no_grad():
            actor.weight.fill_(k)
        fragment = next(feed)
        yield fragment, feed.episodes(), feed.steps, feed.version


def check_against_slow_twin(
    engine, dialect, n_envs=3, n_fragments=4, *, n_steps, groups=1, lag=None, seed=7, **options
):
    """Collect with an engine and with the slow twin; compare fragments, episodes, steps and versions."""
    module, its_lag = ENGINES[engine]
    lag = its_lag if lag is None else lag
    how = {name: options.pop(name) for name in ("sticky", "final", "info") if name in options}
    envs, others = (ledgers(dialect, n_envs, **options) for _ in range(2))
    kind = options.get("action", "discrete")
    actor = CountingActor(kind)
    with module.rollout(envs, actor, n_steps, groups=groups, lag=lag, seed=seed, **how) as feed:
        assert [env.resets for env in envs] == [1] * n_envs
        assert [env.stepno for env in envs] == [0] * n_envs
        seeds = [env.seeds[0] for env in envs]
        got = list(collected(feed, actor, n_fragments))
    expected = pages(others, n_fragments, n_steps=n_steps, seeds=seeds, action=kind, lag=lag, **how)
    for k, (one, page) in enumerate(zip(got, expected, strict=True)):
        assert_same(one[0], page.fragment, f"fragments[{k}]")
        assert one[1:] == page[1:]
    for (one, *_), (other, *_) in pairwise(got):
        last, first = (nested.map(lambda x, t=t: x[t], fragment.state) for fragment, t in ((one, -1), (other, 0)))
        assert_same(first, nested.map(torch.Tensor.numpy, last), "row 0")
    return [fragment for fragment, *_ in got]
