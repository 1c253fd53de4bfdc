"""What one thread does between two lines of another: each interleaving is made to happen, at every line."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

from rlplay.engine.concurrency.gate import Gate
from rlplay.engine.core import Episode
from rlplay.engine.feed.episode_log import EpisodeLog
from rlplay.engine.rollout import episodic, same, threaded

from ...support.scripted import ScriptedActor, ScriptedEnv
from ...support.threads import InThread


def interrupted(call, module, between):
    """Call a function; call ``between`` before every line that it runs in files whose path ends with ``module``."""

    def trace(frame, event, arg):
        if not Path(frame.f_code.co_filename).match(module):
            return None
        if event == "line":
            sys.settrace(None)
            between()
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)


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


def test_the_log_keeps_the_last_episodes_if_it_overflows_while_they_are_taken():
    log = EpisodeLog()
    many = [Episode(0, float(k), 1) for k in range(60_000)]
    log.add(many)
    added = []

    def overflow_once():
        if not added:
            added.append(InThread(lambda: log.add(many)).wait())

    told = interrupted(log.take, "rlplay/engine/feed/*.py", overflow_once)
    assert len(told) == 100_000
    assert told[-1].ret == 59_999


def test_whether_a_thread_has_paused_is_read_while_no_other_thread_can_change_it():
    could_change = []

    class Watched(list):
        def __contains__(self, item):
            could_change.append(InThread(lambda: gate._change.acquire(blocking=False)).wait().value)
            return super().__contains__(item)

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
        gate.remove_callbacks(first, changed)

    def changed(shut):
        called.append(("changed", shut))

    gate.on_give_up(first)
    gate.on_change(changed)
    gate.on_give_up(lambda: called.append("second"))
    gate.give_up()
    assert called == ["first", "second"]
