"""At most `lag + 1` fragments are in memory besides those that the user keeps, and memory does not grow."""

from __future__ import annotations

import weakref
from collections import deque
from itertools import product

import numpy as np
import pytest

from rlplay.engine.collector.collector import Collector
from rlplay.engine.remote.remote_collector import RemoteCollector
from rlplay.engine.rollout import same, single, threaded
from tests.support.processes import resident
from tests.support.scripted import ScriptedActor, ScriptedEnv

FEEDS = {
    "same": lambda **options: same.rollout([ScriptedEnv(), ScriptedEnv()], ScriptedActor(), 4, **options),
    "threaded": lambda **options: threaded.rollout([ScriptedEnv(), ScriptedEnv()], ScriptedActor(), 4, **options),
    "single": lambda **options: single.rollout(ScriptedEnv, ScriptedActor(), 4, 2, **options),
}


@pytest.mark.parametrize(
    ("engine", "lag", "n_kept"), [*product(["same", "threaded"], [0, 1, 3], [0, 2]), ("single", 1, 2)]
)
def test_fragments_in_memory_are_those_under_way_and_those_kept(engine, lag, n_kept, monkeypatch):
    alive = weakref.WeakSet()
    for kind in (Collector, RemoteCollector):

        def blank(self, made=kind.blank):
            fragment = made(self)
            alive.add(fragment.state.rew)
            return fragment

        monkeypatch.setattr(kind, "blank", blank)
    kept = deque(maxlen=n_kept)
    with FEEDS[engine](lag=lag, seed=0) as feed:
        for k in range(20):
            fragment = next(feed)
            assert len(alive) <= lag + 1 + min(k, n_kept)
            kept.append(fragment)
            del fragment
    kept.clear()
    assert not alive  # and nobody has had to look for cycles


@pytest.mark.soak
@pytest.mark.timeout(900)
@pytest.mark.parametrize("rollout", FEEDS.values(), ids=FEEDS)
def test_memory_does_not_grow_over_ten_thousand_fragments(rollout):
    used = []
    with rollout(lag=1, final=True, seed=0) as feed:
        for k in range(1, 10_001):
            next(feed)
            feed.episodes()  # they are kept until they are taken
            if k >= 1000 and k % 500 == 0:
                used.append(resident())
    per_sample, _ = np.polyfit(range(len(used)), used, 1)
    assert per_sample * (len(used) - 1) < 3  # MB over 9000 fragments: an allocator may take some more at any time
