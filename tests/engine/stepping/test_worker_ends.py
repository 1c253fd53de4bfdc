"""Closing, pausing and counting a feed with workers; no worker is left, however its parent ends."""

from __future__ import annotations

import gc
import os
import re
import signal
import subprocess
import sys
import threading

import cloudpickle
import pytest

from tests.support.processes import ProcessBlocker, is_alive, resident
from tests.support.threads import LONG, InThread, until
from tests.support.workers import (
    B,
    T,
    at_step,
    check_end,
    count_resources,
    idle_worker_may_end_late,
    is_worker_fragment,
    kinds,
    no_resources_left,
    raise_value_error,
    rollout,
    shorten_closing,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def blocker(tmp_path):
    return ProcessBlocker(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    shorten_closing(monkeypatch)


@pytest.fixture(autouse=True)
def no_resources_are_left():
    with no_resources_left():
        yield


# --- closing, pausing, counting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@kinds
def test_close_from_another_thread_ends_a_waiting_next_and_warns_of_errors_in_closing(kind, groups, blocker):
    feed = rollout(at_step(2, 8, blocker), worker=kind, groups=groups, on_close=raise_value_error)
    assert is_worker_fragment(0, next(feed))
    consumer = InThread(feed.__next__)
    blocker.wait_until_entered()
    with pytest.warns(RuntimeWarning, match="cannot close") as caught:  # noqa: PT031
        closer = InThread(feed.close)
        assert "closed" in str(consumer.wait().error)  # before the environment returns
        blocker.release()
        assert closer.wait().error is None
    assert len(caught) == B


@idle_worker_may_end_late
def test_close_kills_a_worker_that_does_not_return_from_its_step(blocker, impatient):
    feed = rollout(at_step(2, 8, blocker))
    next(feed)
    pid = blocker.wait_until_entered()
    with pytest.warns(RuntimeWarning, match=r"worker 1 \(environments 2 to 3\) \(process \d+\) .*was killed"):
        feed.close()
    assert not is_alive(pid)


def test_an_interrupt_at_the_call_ends_the_workers(blocker, impatient):
    main = threading.main_thread().ident
    interrupter = InThread(lambda: (blocker.wait_until_entered(), signal.pthread_kill(main, signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            rollout(at_step(3, 0, blocker))
    finally:
        signal.signal(signal.SIGINT, before)
    interrupter.wait()


@pytest.mark.parametrize("groups", [1, 2])
@kinds
def test_workers_of_a_paused_collector_stand_still(kind, groups, tmp_path):
    log = tmp_path / "steps"

    def noted():
        with open(log, "a") as file:
            file.write(".")

    acts = {j: dict.fromkeys(range(1, 401), noted) for j in range(B)}
    with rollout(acts, worker=kind, groups=groups, n_steps=200) as feed:
        for _ in range(3):
            consumer = InThread(feed.__next__)
            until(lambda: feed._progress.row > 20)
            with feed.pause():
                seen = log.read_text()
                threading.Event().wait(0.05)
                assert log.read_text() == seen
            assert consumer.wait().error is None


@kinds
def test_stats_include_the_time_of_workers(kind):
    with rollout(worker=kind) as feed:
        for _ in range(20):
            next(feed)
        stats = feed.stats
    assert stats.steps == 20 * T * B
    assert 0 < stats.collector.stepping < stats.seconds
    assert 0 < stats.collector.inference < stats.seconds
    assert sum(stats.collector) < 1.5 * stats.seconds


@pytest.mark.parametrize("n_feeds", [5, pytest.param(50, marks=pytest.mark.soak)])
@pytest.mark.parametrize("forgotten", [False, True])
@kinds
def test_many_feeds_with_workers_leave_no_resources(kind, forgotten, n_feeds):
    def one():
        feed = rollout(worker=kind, workers=1, n_envs=1)
        next(feed)
        if not forgotten:
            feed.close()

    for _ in range(3):
        one()
    before, memory = count_resources(), resident()
    for _ in range(n_feeds):
        one()
    gc.collect()
    until(lambda: all(now <= then for now, then in zip(count_resources(), before, strict=True)))
    assert resident() < memory + 5


def test_an_environment_in_a_worker_thread_that_calls_next_is_refused():
    feeds = []
    acts = at_step(1, 8, lambda: next(feeds[0]))
    with rollout(acts, worker="thread") as feed:
        feeds.append(feed)
        check_end(feed, RuntimeError, "called by one of the feed's own environments", k=1)


# --- a parent that dies -----------------------------------------------------------------------------------------------

PARENT = """
import itertools, os, signal, sys, threading
import numpy as np
import torch
from rlplay.engine import BaseActorModule
from rlplay.engine.feed import driver
from rlplay.engine.concurrency.child import Child
from rlplay.engine.rollout import threaded

signal.signal(signal.SIGINT, signal.default_int_handler)  # shells start background jobs with it ignored


class Space:
    def __init__(self, dtype):
        self.shape, self.dtype = (), np.dtype(dtype)

    def __eq__(self, other):
        return self.dtype == other.dtype


class Env:
    observation_space, action_space = Space("float32"), Space("int64")
    n = 0

    def reset(self, *, seed=None):
        return np.float32(0), {}

    def step(self, action):
        self.n += 1
        if self.n == HANGS:
            os.write(1, f"hangs {os.getpid()}\\n".encode())  # at once, so that lines do not mix
            all(itertools.repeat(True)) if LOCKS else threading.Event().wait()
        return np.float32(0), 1.0, False, False, {"pid": os.getpid()}


class Actor(BaseActorModule):
    def forward(self, obs, **ignored):
        return torch.zeros(obs.shape, dtype=torch.int64), (), obs


THEN, HANGS = sys.argv[1], int(sys.argv[2].rstrip("!"))
LOCKS = sys.argv[2].endswith("!")  # holds the interpreter lock meanwhile
driver.Driver.stop_timeout = Child.grace = 0.3
feed = threaded.rollout([Env, Env], Actor(), 5, workers=2, lag=int(sys.argv[3]), info={"pid": np.int64})
pids = next(feed).env.info["pid"][0].tolist()
os.write(1, f"workers {pids[0]} {pids[1]}\\n".encode())  # at once: workers write to this pipe as well
exec(THEN)
"""

WAYS = {
    "SIGKILL": ("os.kill(os.getpid(), 9)", 0, -signal.SIGKILL),
    "SIGKILL while workers hang": ("os.kill(os.getpid(), 9)", 8, -signal.SIGKILL),
    "sys.exit": ("sys.exit(3)", 0, 3),
    "an exception": ("raise ValueError", 0, 1),
    "os._exit while workers hang": ("os._exit(4)", 8, 4),
    "falling off": ("", 0, 0),
    "falling off while workers hang": ("", 8, 0),
}


def parent(then, hangs=0, lag=1):
    """Start a script with a feed; return it, and the processes of its workers; those may hang before they are told."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, then, str(hangs), str(lag)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    process.hanging = 0
    lines = []
    for line in iter(process.stdout.readline, ""):
        lines.append(line)
        what, *pids = line.split()
        if what == "workers":
            return process, [int(pid) for pid in pids]
        process.hanging += 1
    out, err = process.communicate(timeout=LONG)
    raise AssertionError(process.returncode, lines, out, err)


def until_they_hang(process, pids):
    """Wait until all workers are in the step that does not return."""
    for _ in pids[process.hanging :]:
        process.stdout.readline()


def finish(process):
    """Wait for the end of the process and of whoever holds its output."""
    try:
        return process.communicate(timeout=LONG)
    finally:
        process.kill()


@pytest.mark.parametrize(("then", "hangs", "code"), WAYS.values(), ids=WAYS)
def test_however_the_parent_ends_no_worker_is_left(then, hangs, code):
    process, pids = parent(then, hangs)
    finish(process)
    assert process.returncode == code
    until(lambda: not any(map(is_alive, pids)))


def test_workers_that_hold_the_interpreter_lock_end_with_a_parent_that_is_killed():
    process, pids = parent("threading.Event().wait()", hangs="8!")
    until_they_hang(process, pids)
    process.kill()
    finish(process)
    until(lambda: not any(map(is_alive, pids)))


def interrupt_a_program():
    """Raise an error that says how the program has ended. The interrupt does not end the process that calls this."""
    os.kill(os.getpid(), signal.SIGINT)
    with subprocess.Popen(["sleep", "5"]) as program:
        program.send_signal(signal.SIGINT)
    raise ValueError(f"ended by {program.returncode}")


def test_an_environment_in_a_worker_can_interrupt_a_program_that_it_has_started():
    ended = f"ended by {-signal.SIGINT}"
    with rollout(at_step(0, 1, interrupt_a_program)) as feed, pytest.raises(ValueError, match=ended):
        next(feed)


def test_ctrl_c_inside_next_ends_parent_and_workers_with_one_traceback():
    process, pids = parent("next(feed)", hangs=8, lag=0)
    until_they_hang(process, pids)  # in a fragment that the parent has asked for, so it is inside of `next`
    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    raised, first, second = err.splitlines()[-3:]
    assert raised == "KeyboardInterrupt"
    assert re.match(r"rlplay: worker 0 \(environment 0\) .* was killed", first)
    assert re.match(r"rlplay: worker 1 \(environment 1\) .* was killed", second)
    until(lambda: not any(map(is_alive, pids)))
