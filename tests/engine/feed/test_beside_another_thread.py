"""A feed while another thread uses it, or in a fork; and feeds whose making or ending is disturbed."""

from __future__ import annotations

import gc
import os
import re
import shutil
import threading
import warnings
from collections import deque

import pytest

from rlplay.engine.concurrency.channel import Closed
from rlplay.engine.concurrency.gate import Gate
from rlplay.engine.rollout import same, single, threaded

from ...support.scripted import ActorWithSlowReset, Script, ScriptedActor, ScriptedEnv
from ...support.starting import timeout_counts_while
from ...support.threads import InThread, TellingLock, ThreadBlocker, until

T = 4
IN_THIS_PROCESS = pytest.mark.parametrize("rollout", [same.rollout, threaded.rollout], ids=["same", "threaded"])

PID = os.getpid()


class EnvWithState(ScriptedEnv):
    """Calls a function while it is saved."""

    def __init__(self, while_saved):
        super().__init__()
        self._while_saved = while_saved

    def get_state(self):
        self._while_saved()
        return self._now

    def set_state(self, state):
        self._now = state


class EnvThatFails(ScriptedEnv):
    def step(self, action):
        raise ArithmeticError


# --- saving beside another thread -------------------------------------------------------------------------------------


def test_a_save_that_waits_for_a_next_which_times_out_is_refused(monkeypatch):
    blocker = ThreadBlocker()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    feed = threaded.rollout([ScriptedEnv(Script().at("step", 2, blocker))], ScriptedActor(), T, timeout=0.5)
    feed._next_lock = lock = TellingLock()
    ask = InThread(lambda: next(feed))
    assert blocker.entered.wait(60)
    save = InThread(feed.state_dict)
    until(lambda: lock.awaited.is_set() or save.error)
    assert isinstance(ask.wait().error, TimeoutError)
    assert "closed, or has ended" in str(save.wait().error)
    blocker.release.set()
    feed.close()


def test_a_wait_for_a_collector_that_was_given_up_times_out(monkeypatch):
    blocker = ThreadBlocker()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    feed = threaded.rollout([ScriptedEnv(Script().at("step", 2, blocker))], ScriptedActor(), T, timeout=0.3)
    assert isinstance(InThread(lambda: next(feed)).wait().error, TimeoutError)
    assert isinstance(InThread(feed._driver.take).wait().error, TimeoutError)
    blocker.release.set()
    feed.close()


@IN_THIS_PROCESS
def test_a_pause_waits_for_a_save_as_for_a_step(rollout):
    blocker = ThreadBlocker()
    with rollout([EnvWithState(blocker)], ScriptedActor(), T) as feed:
        next(feed)
        save = InThread(feed.state_dict)
        blocker.entered.wait()
        with pytest.raises(TimeoutError, match="cannot pause"), feed._driver._gate.held(0.05, str):
            pass
        blocker.release.set()
        assert save.wait().value["asked"] == 1
        with feed.pause():
            assert not feed._driver._gate._collecting


@IN_THIS_PROCESS
def test_a_save_waits_for_the_end_of_a_pause_in_another_thread(rollout):
    saved = []
    with rollout([EnvWithState(lambda: saved.append(None))], ScriptedActor(), T) as feed:
        next(feed)
        with feed.pause():
            save = InThread(feed.state_dict)
            until(lambda: saved or feed._driver._gate._change._waiters)
            assert not saved
        assert save.wait().value["asked"] == 1
    assert saved


# --- pauses -----------------------------------------------------------------------------------------------------------


def test_a_pause_may_end_in_another_thread_than_it_began_in():
    with threaded.rollout([ScriptedEnv()], ScriptedActor(), T) as feed:
        pause = feed.pause()
        InThread(pause.__enter__).wait()
        pause.__exit__(None, None, None)
        assert not feed._driver._gate.shut
        next(feed)


def test_a_pause_that_is_interrupted_before_it_has_begun_leaves_the_gate_open():
    def interrupt(shut):
        gate.remove_change(interrupt)
        raise KeyboardInterrupt

    gate = Gate()
    gate.on_change(interrupt)
    with pytest.raises(KeyboardInterrupt), gate.held(1.0, str):
        pass
    assert not gate.shut
    assert not gate.is_held_by_this_thread()


def test_processes_that_end_after_an_error_stay_halted_where_a_pause_ends_meanwhile(monkeypatch):
    def end_a_pause():
        with feed._driver._gate.held(1.0, str):
            pass
        halted.append(process.progress.halted)
        request_end()

    halted = []
    feed = single.rollout(EnvThatFails, ScriptedActor(), T, 1)
    (process,) = feed._driver.collector._collectors
    request_end = process.service.request_end
    monkeypatch.setattr(process.service, "request_end", end_a_pause)
    with pytest.raises(ArithmeticError):
        next(feed)
    assert halted[0]


# --- traces -----------------------------------------------------------------------------------------------------------


def test_a_trace_that_another_thread_begins_inside_next_numbers_the_fragments_as_they_are():
    script, traces = Script(), []
    with same.rollout([ScriptedEnv(script)], ScriptedActor(), T) as feed:
        next(feed)
        script.at("step", 2, lambda: traces.append(InThread(feed.trace).wait().value))
        next(feed)
        next(feed)
        traces[0].close()
    spans = [(event["name"], event["args"]["fragment"]) for event in traces[0].events if event.get("cat") == "learner"]
    assert spans == [("waiting", 1), ("training", 1), ("waiting", 2)]


@pytest.fixture
def feed_with_lost_trace(tmp_path):
    def open_feed(script):
        folder = tmp_path / "gone"
        folder.mkdir()
        feed = threaded.rollout([lambda: ScriptedEnv(script)], ScriptedActor(), T)
        next(feed)
        feed.trace(folder / "trace.json")
        shutil.rmtree(folder)
        return feed

    return open_feed


@pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")
def test_a_forgotten_feed_ends_though_its_trace_cannot_be_written(feed_with_lost_trace):
    script = Script()
    feed = feed_with_lost_trace(script)
    del feed
    gc.collect()
    assert script.counts["close"] == 1


def test_a_trace_that_cannot_be_written_is_told_by_a_warning_when_its_feed_ends(
    feed_with_lost_trace,
):
    script = Script()
    feed = feed_with_lost_trace(script)
    with pytest.warns(RuntimeWarning, match="the trace could not be written: .*trace.json"):
        feed.close()
    assert script.counts["close"] == 1


def test_a_trace_that_cannot_be_written_does_not_hide_the_error_that_ended_the_feed(feed_with_lost_trace):
    def fail():
        raise ArithmeticError

    script = Script()
    feed = feed_with_lost_trace(script)
    script.at("step", 3 * T, fail)
    with pytest.raises(ArithmeticError) as caught:
        deque(feed, 0)
    assert any("the trace could not be written" in note for note in caught.value.__notes__)


# --- making and ending ------------------------------------------------------------------------------------------------


@IN_THIS_PROCESS
def test_a_warning_at_the_call_that_is_an_error_leaves_nothing_behind(rollout):
    script, n_threads = Script(), threading.active_count()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with pytest.raises(RuntimeWarning):
            rollout([lambda: ScriptedEnv(script)], ActorWithSlowReset(), T)
    assert script.counts["close"] == 1
    assert threading.active_count() == n_threads


def test_an_interrupt_while_the_thread_is_started_leaves_no_thread(monkeypatch):
    def start_and_interrupt(thread):
        start(thread)
        raise KeyboardInterrupt

    start, script, n_threads = threading.Thread.start, Script(), threading.active_count()
    with monkeypatch.context() as patch:
        patch.setattr(threading.Thread, "start", start_and_interrupt)
        with pytest.raises(KeyboardInterrupt):
            threaded.rollout([lambda: ScriptedEnv(script)], ScriptedActor(), T)
    assert threading.active_count() == n_threads
    assert script.counts["close"] == script.counts["reset"]


def test_a_feed_that_is_closed_while_a_snapshot_is_taken_says_so(monkeypatch):
    def snapshot(actor):
        raise Closed

    with threaded.rollout([ScriptedEnv()], ScriptedActor(), T) as feed:
        monkeypatch.setattr(feed._driver.collector, "snapshot", snapshot)
        with pytest.raises(RuntimeError, match=re.escape("the feed is closed.")):
            next(feed)


@pytest.mark.parametrize("engine", ["threaded", "single"])
@pytest.mark.parametrize("what", [next, lambda feed: feed.state_dict(), lambda feed: feed.pause().__enter__()])
def test_a_fork_that_uses_a_feed_is_told_so_at_once_and_the_feed_goes_on(engine, what, monkeypatch):
    """The child's `getpid` is all that differs here: a real fork would copy the threads of the tests."""
    if engine == "single":
        feed = single.rollout(ScriptedEnv, ScriptedActor(), T, 1)
    else:
        feed = threaded.rollout([ScriptedEnv()], ScriptedActor(), T)
    with feed:
        next(feed)
        with monkeypatch.context() as in_fork:
            in_fork.setattr(os, "getpid", lambda: -1)
            with pytest.raises(RuntimeError, match=rf"belongs to process {PID}, and this is a fork of it"):
                what(feed)
        for _ in range(3):
            next(feed)


@pytest.mark.parametrize("engine", ["same", "threaded", "single"])
def test_a_fork_that_leaves_the_block_of_a_feed_does_not_end_the_feed(engine, monkeypatch):
    if engine == "single":
        feed = single.rollout(ScriptedEnv, ScriptedActor(), T, 1)
    else:
        feed = {"same": same, "threaded": threaded}[engine].rollout([ScriptedEnv()], ScriptedActor(), T)
    with feed:
        next(feed)
        with monkeypatch.context() as in_fork, feed:
            in_fork.setattr(os, "getpid", lambda: -1)
            feed.__exit__(None, None, None)
            feed.close()
        for _ in range(3):
            next(feed)
