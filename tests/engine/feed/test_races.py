"""What one thread does between two lines of another: each interleaving is made to happen, at every line."""

from __future__ import annotations

from collections import deque
from contextlib import suppress
from itertools import pairwise

import numpy as np
import pytest

from rlplay.engine.concurrency.channel import Closed
from rlplay.engine.concurrency.clock import INFERENCE, STEPPING, TRAINING, WAITING, Clock
from rlplay.engine.concurrency.gate import Gate
from rlplay.engine.concurrency.progress import Progress
from rlplay.engine.core import Episode
from rlplay.engine.feed import episode_log
from rlplay.engine.feed.driver import Inline
from rlplay.engine.feed.episode_log import EpisodeLog
from rlplay.engine.feed.timeline import Recorder
from rlplay.engine.memory.cuda import lane_between
from rlplay.engine.rollout import episodic, same, threaded
from rlplay.engine.tensors.ends import EpisodeArrays

from ...support.scripted import ScriptedActor, ScriptedEnv
from ...support.threads import InThread, interrupted


def envs():
    return [ScriptedEnv(length=2), ScriptedEnv(length=2)]


OPEN = {
    "same": lambda: same.rollout(envs(), ScriptedActor(), 4),
    "threaded": lambda: threaded.rollout(envs(), ScriptedActor(), 4),
    "worker threads": lambda: threaded.rollout(envs(), ScriptedActor(), 4, workers=2, worker="thread"),
    "episodic": lambda: episodic.rollout(envs(), ScriptedActor(), batch_size=4),
}


@pytest.mark.parametrize("open_feed", OPEN.values(), ids=OPEN)
def test_no_episode_is_lost_or_told_twice_if_another_thread_calls_next_meanwhile(open_feed):
    asked = []

    def ask_in_another_thread():
        if len(asked) < 20:
            asked.append(InThread(lambda: next(feed)).wait())

    with open_feed() as feed:
        next(feed)
        taken = interrupted(feed.episodes, "rlplay/engine/feed/*.py", ask_in_another_thread)
        told = taken + feed.episodes()
        n = 1 + len(asked)
    assert asked
    assert not any(thread.error for thread in asked)
    assert [episode.env for episode in told].count(0) == [episode.env for episode in told].count(1) == 2 * n
    assert [episode.ret for episode in told if episode.env == 0] == [4.0 * k + 3 for k in range(2 * n)]


def test_two_threads_that_take_episodes_share_them():
    log, others = EpisodeLog(), []
    log.add([Episode(0, float(k), 1) for k in range(9)])
    mine = interrupted(log.take, "rlplay/engine/feed/*.py", lambda: others.append(InThread(log.take).wait().value))
    assert [episode.ret for part in (*others, mine) for episode in part] == list(range(9))


def test_the_episodes_of_a_log_can_be_saved_while_another_thread_takes_them():
    class TakenMeanwhile(deque):  # what may happen between any two entries, without the interpreter lock
        def __iter__(self):
            for k, episode in enumerate(super().__iter__()):
                if k == 2 and not taken:
                    taken.extend(InThread(log.take).wait().value)
                yield episode

    log, taken = EpisodeLog(), []
    log._kept = TakenMeanwhile()
    log.add([Episode(0, float(k), 1) for k in range(5)])
    assert log.kept() == []
    assert [episode.ret for episode in taken] == list(range(5))


def test_the_log_keeps_the_last_episodes_if_it_overflows_while_they_are_taken(monkeypatch):
    monkeypatch.setattr(episode_log, "_KEPT_EPISODES", 1000)
    log = EpisodeLog()
    many = [Episode(0, float(k), 1) for k in range(600)]
    log.add(many)
    added = []

    def overflow_once():
        if not added:
            added.append(InThread(lambda: log.add(many)).wait())

    told = interrupted(log.take, "rlplay/engine/feed/*.py", overflow_once)
    assert len(told) == 1000
    assert told[-1].ret == 599


def test_the_log_drops_no_later_fragment_if_the_oldest_is_taken_at_any_line_of_an_addition(monkeypatch):
    def fragment(start):
        rets = np.arange(start, start + 60, dtype=np.float64)
        return EpisodeArrays(np.zeros(60, np.int64), rets, np.ones(60, np.int64))

    def take_the_oldest_at_a_line():
        passed.append(None)
        if len(passed) == line + 1:
            taken.extend(log._arrays.popleft()[1])  # what `take` begins with

    monkeypatch.setattr(episode_log, "_KEPT_EPISODES", 100)
    line, passed = 0, [None]
    while line < len(passed):
        log, taken, passed = EpisodeLog(), [], []
        log.add(fragment(0))
        log.add(fragment(60))
        interrupted(lambda log=log: log.add(fragment(120)), "feed/episode_log.py", take_the_oldest_at_a_line)
        told = {episode.ret for episode in [*taken, *log.take()]}
        assert told.issuperset(range(80, 180)), f"taken before line {line}"
        line += 1
    assert line > 5


def test_whether_a_thread_has_paused_is_read_while_no_other_thread_can_change_it():
    could_change = []

    class Watched(list):
        def __iter__(self):
            could_change.append(InThread(lambda: gate._lock.acquire(blocking=False)).wait().value)
            return super().__iter__()

    gate = Gate()
    gate._holders = Watched()
    assert not gate.is_held_by_this_thread()
    with gate.held(1.0, str):
        assert gate.is_held_by_this_thread()
    assert could_change == [False, False]


@pytest.mark.parametrize("n_pauses", [1, 2])
def test_a_gate_that_is_closed_at_any_line_of_the_end_of_a_pause_stays_shut(n_pauses):
    tried = 0
    while True:
        gate, told, passed = Gate(), [], []
        gate.on_change(told.append)

        def close_at_a_line(gate=gate, passed=passed, line=tried):
            passed.append(None)
            if len(passed) == line + 1:
                gate.close()

        blocks = [gate.held(1.0, str) for _ in range(n_pauses)]
        for block in blocks:
            block.__enter__()
        for block in reversed(blocks):
            interrupted(lambda block=block: block.__exit__(None, None, None), "concurrency/gate.py", close_at_a_line)
        if not gate.closed:
            break
        assert gate.shut, f"closed before line {tried}"
        assert told[-1] is True, f"closed before line {tried}"
        tried += 1
    assert tried > 5


def test_a_callback_that_is_removed_while_others_are_called_makes_none_of_them_left_out():
    gate, called = Gate(), []

    def first():
        called.append("first")
        gate.remove_give_up(first)

    gate.on_give_up(first)
    gate.on_give_up(lambda: called.append("second"))
    gate.give_up()
    assert called == ["first", "second"]


# the end of a feed that collects in the consumer's thread


class Collector:
    """Counts how often it is closed."""

    def __init__(self):
        self.n_closed = 0

    def serve(self, token):
        return token

    def close(self):
        self.n_closed += 1
        return []


def inline_driver():
    driver = Inline(lambda gate: Collector(), Progress())
    driver.stop_timeout = 0.0  # `stop` gives up at once if another thread is inside `take`
    driver.give("a token")
    return driver


def at_each_line(make, call, between):
    """Call `between(thing)` once, before line 0, 1, ... that `call(thing)` runs in the driver; yield each `thing`."""
    line = 0
    while True:
        thing, passed = make(), []

        def at_the_line(thing=thing, passed=passed, line=line):
            passed.append(None)
            if len(passed) == line + 1:
                between(thing)

        interrupted(lambda thing=thing: call(thing), "feed/driver.py", at_the_line)
        if len(passed) <= line:
            break
        yield thing
        line += 1
    assert line > 5


def test_a_collector_is_closed_once_if_another_thread_stops_it_at_any_line_of_the_last_take():
    def take(driver):
        with suppress(Closed):  # stopped before it began
            driver.take()

    complaints = []
    drivers = at_each_line(inline_driver, take, lambda driver: complaints.append(InThread(driver.stop).wait().value))
    for driver in drivers:
        assert driver.collector.n_closed == 1, complaints[-1]
        assert driver.ended
    assert any("left behind" in said for told in complaints for said in told)


def test_a_collector_is_closed_once_and_no_token_is_left_out_if_another_thread_stops_it_at_any_line_of_a_call():
    def call(driver):
        with suppress(Closed):  # stopped before it began
            answers.append(driver.call(lambda collector: collector.n_closed))

    answers = []
    for driver in at_each_line(inline_driver, call, lambda driver: InThread(driver.stop).wait()):
        assert driver.collector.n_closed == 1
        assert driver.ended
    assert set(map(str, answers)) == {"(0, [], ['a token'])"}


def test_a_collector_is_closed_once_if_another_thread_stops_it_at_any_line_of_a_stop():
    drivers = at_each_line(inline_driver, lambda driver: driver.stop(), lambda driver: InThread(driver.stop).wait())
    for driver in drivers:
        assert driver.collector.n_closed == 1


# traces and statistics


def recorder_and_clocks():
    learner, collector = Clock(), Progress()
    learner.switch_to(TRAINING)
    collector.switch_to(STEPPING)
    return Recorder(learner, collector, lane_between("cpu", "cpu", "cpu")), learner, collector


def assert_no_gap(trace):
    """Check that the spans of each thread follow upon each other from the beginning of the trace to its end."""
    spans = {}
    for event in trace.events:
        if event["ph"] == "X":
            spans.setdefault(event["cat"], []).append((event["ts"], event["ts"] + event["dur"]))
    ends = []
    for found in spans.values():
        assert found[0][0] == 0
        assert all(abs(one[1] - other[0]) < 0.01 for one, other in pairwise(found)), found
        ends.append(found[-1][1])
    assert max(ends) - min(ends) < 0.01


@pytest.mark.parametrize("n_switches", [1, 2, 3])
def test_a_trace_loses_no_span_if_a_clock_switches_at_any_line_of_its_end(n_switches):
    def switch_at_a_line():
        passed.append(None)
        if len(passed) == line + 1:
            for k in range(n_switches):
                for clock, kinds in ((collector, (INFERENCE, STEPPING)), (learner, (WAITING, TRAINING))):
                    clock.switch_to(kinds[k % 2])

    line, passed = 0, [None]
    while line < len(passed):
        recorder, learner, collector = recorder_and_clocks()
        trace, passed = recorder.begin(None, 0, 0), []
        collector.switch_to(INFERENCE)
        collector.switch_to(STEPPING)
        interrupted(lambda trace=trace: trace.__exit__(None, None, None), "feed/timeline.py", switch_at_a_line)
        assert_no_gap(trace)
        line += 1
    assert line > 20


def test_a_trace_that_ends_at_any_line_of_a_switch_loses_no_span():
    def end_at_a_line():
        passed.append(None)
        if len(passed) == line + 1:
            InThread(lambda: trace.__exit__(None, None, None)).wait()

    line, passed = 0, [None]
    while line < len(passed):
        recorder, _, collector = recorder_and_clocks()
        trace, passed = recorder.begin(None, 0, 0), []
        collector.switch_to(INFERENCE)
        interrupted(lambda clock=collector: clock.switch_to(WAITING), "concurrency/clock.py", end_at_a_line)
        trace.__exit__(None, None, None)
        assert_no_gap(trace)
        line += 1
    assert line > 5


def test_a_trace_may_end_at_any_line_of_the_end_of_a_fragment():
    def end_at_a_line():
        passed.append(None)
        if len(passed) == line + 1:
            trace.close()

    line, passed = 0, [None]
    while line < len(passed):
        recorder, _, progress = recorder_and_clocks()
        trace, passed = recorder.begin(None, 0, 0), []
        interrupted(progress.finish_fragment, "concurrency/progress.py", end_at_a_line)
        assert progress.doing == "waiting for the learner"
        line += 1
    assert line > 3


def test_while_a_trace_begins_no_other_thread_can_begin_one():
    could_begin = []

    def look():
        could_begin.append(InThread(try_the_lock).wait().value)

    def try_the_lock():
        got = recorder._lock.acquire(blocking=False)
        if got:
            recorder._lock.release()
        return got

    recorder, _, progress = recorder_and_clocks()
    trace = interrupted(lambda: recorder.begin(None, 0, 0), "feed/timeline.py", look)
    assert len(could_begin) > 20
    assert could_begin[0]  # the line that takes the lock
    assert not any(could_begin[1:-1])  # the last one is where it is released
    with pytest.raises(RuntimeError, match="already"):
        recorder.begin(None, 0, 0)
    trace.close()
    assert not progress.traced


def test_a_feed_that_is_closed_begins_no_trace():
    recorder, learner, _ = recorder_and_clocks()
    recorder.close()
    with pytest.raises(RuntimeError, match="closed"):
        recorder.begin(None, 0, 0)
    assert learner.log is None


@pytest.mark.parametrize("engine", ["same", "threaded", "worker threads"])
def test_statistics_are_those_of_one_moment_if_another_thread_reads_them_during_next(engine):
    with OPEN[engine]() as feed:
        next(feed)
        before, read = feed.stats, []
        interrupted(lambda: next(feed), "feed/feed.py", lambda: read.append(InThread(lambda: feed.stats).wait().value))
        after = feed.stats
    assert before.steps < after.steps
    assert len(read) > 10
    assert all(stats in (before, after) for stats in read)
