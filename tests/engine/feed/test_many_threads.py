"""Many threads use one feed at once: nothing is lost, nothing is told twice, and every feed ends.

Threads switch as often as the interpreter can switch them. All loops are bounded by counts.
"""

from __future__ import annotations

import select
import sys
import threading
from collections import Counter, deque
from contextlib import contextmanager
from functools import partial
from itertools import pairwise

import pytest

from rlplay.engine.concurrency.gate import Gate
from rlplay.engine.core import Episode
from rlplay.engine.feed.driver import Inline
from rlplay.engine.feed.episode_log import EpisodeLog
from rlplay.engine.feed.feed import Feed
from rlplay.engine.rollout import episodic, same, single, threaded

from ...support.scripted import Script, ScriptedActor, ScriptedEnv
from ...support.threads import InThread

T, LENGTH, B = 4, 2, 2  # steps of a fragment and of an episode; environments
LAG = 1  # of the feeds that save


@pytest.fixture(autouse=True)
def threads_switch_often():
    before = sys.getswitchinterval()
    sys.setswitchinterval(1e-6)
    yield
    sys.setswitchinterval(before)


class Opened:
    """A feed, the scripts of its environments, and what went wrong in the threads that use it."""

    def __init__(self, engine):
        self.scripts = []
        self.feed = ENGINES[engine](self._make)
        feed = getattr(self.feed, "_feed", self.feed)
        self.gate = feed._driver._gate
        self.gate._holders = ListReadInPython()
        feed._episodes._kept = DequeReadInPython()
        if isinstance(feed._driver, Inline):
            feed._driver._tokens = DequeReadInPython()
        self.told, self.saved, self.delivered, self.consumed = [], [], 0, False

    def _make(self):
        script = Script()
        self.scripts.append(script)
        return ScriptedEnv(script, length=LENGTH)

    # what a thread does with the feed, `n` times or until it has been consumed

    def consume(self, n):
        try:
            with allowed("the feed is closed"):
                for _ in range(n):
                    next(self.feed)
                    self.delivered += 1
        finally:
            self.consumed = True

    def take_episodes(self):
        moment = threading.Event()
        while not self.consumed:
            self.told += self.feed.episodes()
            moment.wait(1e-4)  # else these threads alone would keep two cores busy

    def pause(self, n):
        for _ in range(n):
            with self.feed.pause():
                if self.feed.open:
                    with pytest.raises(RuntimeError, match=r"paused by this very thread|is closed"):
                        next(self.feed)
                with self.feed.pause():
                    assert self.gate.is_held_by_this_thread()
                assert self.gate.is_held_by_this_thread()
            assert not self.gate.is_held_by_this_thread()

    def trace(self, n):
        for _ in range(n):
            with allowed("is closed", "already"):
                with self.feed.trace() as trace:
                    repr(self.feed)
                assert_no_gap(trace)

    def read(self, n):
        last = self.feed.stats
        for _ in range(n):
            stats = self.feed.stats
            assert stats.steps >= last.steps
            assert stats.seconds >= last.seconds
            assert stats.steps == last.steps or stats.learner != last.learner  # they are those of one moment
            assert min(stats.collector) >= 0
            assert "Feed" in repr(self.feed)
            str(stats)
            last = stats

    def save(self, n):
        if not isinstance(self.feed, Feed):  # a feed of episodes has no state
            return
        with allowed("the feed is closed"):
            for _ in range(n):
                self.saved.append(self.feed.state_dict())

    def close(self):
        self.feed.close()

    def finish(self):
        """Close the feed, and check what holds however the threads have run."""
        at_once(self.close, self.close)
        self.told += self.feed.episodes()
        assert not self.feed.open
        assert all(script.counts["close"] == 1 for script in self.scripts)

    def check_saved(self):
        """Check that each saved stream goes on where it was saved, with the snapshot that is due."""
        for state in self.saved:
            n_rows = state["delivered"]["steps"] // B
            envs = [ScriptedEnv(length=LENGTH) for _ in range(B)]
            with same.rollout(envs, ScriptedActor(), T, lag=LAG, state=state) as feed:
                assert next(feed).state.obs[0].tolist() == [[n_rows // LENGTH, n_rows % LENGTH]] * B
                assert feed.version == max(0, n_rows // T - LAG)


@contextmanager
def allowed(*messages):
    """Allow a RuntimeError with any of these messages."""
    try:
        yield
    except RuntimeError as error:
        if not any(message in str(error) for message in messages):
            raise


class ReadInPython:
    """Reading lets other threads run between two entries, as it does without the interpreter lock."""

    def __iter__(self):
        for item in super().__iter__():
            select.select((), (), (), 0)  # gives the interpreter lock away for a moment
            yield item


class ListReadInPython(ReadInPython, list): ...


class DequeReadInPython(ReadInPython, deque): ...


def assert_no_gap(trace):
    spans = [
        (event["ts"], event["ts"] + event["dur"])
        for event in trace.events
        if (event.get("cat"), event["tid"]) == ("collector", 2)
    ]
    assert all(abs(one[1] - other[0]) < 0.01 for one, other in pairwise(spans)), spans


ENGINES = {
    "same": lambda make: same.rollout([make] * B, ScriptedActor(), T, lag=LAG),
    "threaded": lambda make: threaded.rollout([make] * B, ScriptedActor(), T),
    "worker threads": lambda make: threaded.rollout([make] * B, ScriptedActor(), T, workers=2, worker="thread"),
    "episodic": lambda make: episodic.rollout([make] * B, ScriptedActor(), batch_size=2 * B),
    "single": lambda make: single.rollout(partial(ScriptedEnv, length=LENGTH), ScriptedActor(), T, B),
}


def at_once(*uses):
    """Run all these at once, each in a thread of its own; raise the first error."""
    barrier = threading.Barrier(len(uses))
    threads = [InThread(lambda use=use: barrier.wait() is None or use()) for use in uses]
    for thread in threads:
        thread.wait()
    for thread in threads:
        if thread.error is not None:
            raise thread.error


def test_a_log_that_two_threads_empty_while_a_third_one_fills_it_loses_nothing():
    def fill():
        for k in range(30_000):
            log.add([Episode(0, 2.0 * k, 1), Episode(1, 2.0 * k + 1, 1)])
        filled.append(True)

    def empty(told):
        while not filled:
            told += log.take()

    log, filled, parts = EpisodeLog(), [], ([], [])
    at_once(fill, *(partial(empty, part) for part in parts))
    told = [episode.ret for part in (*parts, log.take()) for episode in part]
    assert sorted(told) == list(range(60_000))


def test_a_thread_that_has_paused_knows_it_while_others_pause_and_go_on():
    def pause():
        for _ in range(2000):
            with gate.held(100.0, str), gate.held(100.0, str):
                assert all(gate.is_held_by_this_thread() for _ in range(5))
            assert not gate.is_held_by_this_thread()

    gate = Gate()
    gate._holders = ListReadInPython()
    at_once(pause, pause, pause)
    assert not gate.shut


@pytest.mark.parametrize("engine", ENGINES)
def test_each_episode_is_told_once_and_each_pause_holds(engine):
    opened = Opened(engine)
    others = [partial(opened.pause, 100)] * 3 + [partial(opened.trace, 50)] * 2 + [partial(opened.read, 300)]
    others += [opened.take_episodes] * 2
    at_once(partial(opened.consume, 100), partial(opened.save, 40), *others)
    opened.finish()
    opened.check_saved()
    assert opened.delivered == 100
    assert len(opened.saved) == (40 if isinstance(opened.feed, Feed) else 0)
    if engine != "single":  # whose environments are in another process
        assert len(opened.scripts) == B
    expected = {env: 100 * (T // LENGTH) for env in range(B)}
    assert Counter(episode.env for episode in opened.told) == expected
    returns = Counter((episode.env, episode.ret) for episode in opened.told)
    assert set(returns.values()) == {1}


@pytest.mark.parametrize("engine", [engine for engine in ENGINES if engine != "single"])
def test_a_feed_that_is_closed_in_the_midst_ends_once(engine):
    for k in range(8):
        opened = Opened(engine)
        others = [partial(opened.pause, 3), partial(opened.trace, 5), partial(opened.read, 5)]
        late = [partial(opened.consume, 1 + 2 * k), partial(opened.save, 4), opened.take_episodes]
        at_once(*late, opened.close, opened.close, *others)
        opened.finish()
        opened.check_saved()
        returns = Counter((episode.env, episode.ret) for episode in opened.told)
        assert set(returns.values()) <= {1}
        assert len(returns) == opened.delivered * B * T // LENGTH
