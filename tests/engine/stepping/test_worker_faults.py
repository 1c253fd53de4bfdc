"""Workers that die, hang or raise: an error that names the worker comes at once."""

from __future__ import annotations

import itertools
import os
import random
import re
import signal
import sys
import threading
from functools import partial

import cloudpickle
import pytest

from rlplay.engine.rollout import threaded
from tests.support.actors import AddsWeight
from tests.support.errors import TwoArgumentError
from tests.support.processes import ProcessBlocker, is_alive
from tests.support.starting import TimeInSteps, start_timeout_begins_when, timeout_counts_while
from tests.support.threads import LONG, InThread, until
from tests.support.workers import (
    B,
    Space,
    WorkerEnv,
    at_step,
    check_end,
    hold_interpreter_lock,
    idle_worker_may_end_late,
    is_worker_fragment,
    kill_own_process,
    kinds,
    loop_forever,
    no_resources_left,
    raise_value_error,
    rollout,
    shorten_closing,
    wait_forever,
    worker_processes,
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


# --- a worker that dies -----------------------------------------------------------------------------------------------

DEATHS = {
    "SIGKILL": (kill_own_process(signal.SIGKILL), "was killed by SIGKILL"),
    "SIGTERM": (kill_own_process(signal.SIGTERM), "was killed by SIGTERM"),
    "SIGSEGV": (kill_own_process(signal.SIGSEGV), "was killed by SIGSEGV"),
    "exit": (partial(os._exit, 3), "has ended with exit code 3"),
}


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize(("act", "says"), DEATHS.values(), ids=DEATHS)
def test_a_worker_that_dies_in_a_step_is_named_after_all_fragments_before_it(act, says, lag):
    error = check_end(
        rollout(at_step(2, 8, act), lag=lag), RuntimeError, rf"worker 1 \(environments 2 to 3\).*{says}", k=1
    )
    assert "environment 2, in env.step, at step 2 of fragment 1" in error.__notes__[0]


@pytest.mark.parametrize(("act", "says"), DEATHS.values(), ids=DEATHS)
def test_a_worker_that_dies_before_the_first_step_is_named_at_the_call(act, says):
    with pytest.raises(RuntimeError, match=rf"worker 1 \(environments 2 to 3\).*{says}") as caught:
        rollout(at_step(3, 0, act))
    assert "environment 3, in env.reset" in caught.value.__notes__[0]


def test_a_worker_that_is_killed_in_the_middle_of_a_step_is_named(blocker):
    feed = rollout(at_step(3, 3, blocker))
    consumer = InThread(lambda: check_end(feed, RuntimeError, r"worker 1 \(environments 2 to 3\).*SIGKILL"))
    os.kill(blocker.wait_until_entered(), signal.SIGKILL)
    assert consumer.wait().error is None


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_is_killed_while_it_is_idle_or_the_learner_is_busy_is_named(which, lag):
    feed = rollout(lag=lag)
    fragment = next(feed)
    os.kill(worker_processes(fragment)[which], signal.SIGKILL)
    seen = []
    with pytest.raises(RuntimeError, match=rf"worker {which} .*SIGKILL"):
        seen.extend(feed)
    assert len(seen) <= lag
    assert all(itertools.starmap(is_worker_fragment, enumerate(seen, 1)))
    feed.close()


@pytest.mark.parametrize("n_kills", [12, pytest.param(200, marks=(pytest.mark.soak, pytest.mark.timeout(600)))])
def test_a_worker_that_is_killed_at_any_moment_is_never_missed(n_kills):
    dice = random.Random(0)
    for _ in range(n_kills):
        which, after, lag, groups = (dice.randrange(n) for n in (2, 5, 3, 2))
        feed, go, pids = rollout(lag=lag, groups=1 + groups), threading.Event(), []
        delay = dice.random() * 0.003

        def kill(which=which, go=go, pids=pids, delay=delay):
            assert go.wait(LONG)
            threading.Event().wait(delay)  # to come at any moment whatever
            os.kill(pids[which], signal.SIGKILL)

        killer, seen = InThread(kill), list(itertools.islice(feed, 1 + after))
        pids += worker_processes(seen[0])
        go.set()
        with pytest.raises(RuntimeError, match=rf"worker {which} .*SIGKILL"):
            seen.extend(feed)
        assert all(itertools.starmap(is_worker_fragment, enumerate(seen)))
        feed.close()
        assert killer.wait().error is None
        assert not any(is_alive(pid) for pid in pids)


def test_a_worker_that_dies_is_named_although_a_worker_before_it_is_slow(blocker, impatient):
    check_end(rollout({0: {3: blocker}, 3: {3: partial(os._exit, 3)}}), RuntimeError, r"worker 1 .*exit code 3")


def test_a_worker_whose_own_fork_outlives_it_is_named_and_the_fork_is_killed(tmp_path):
    def fork_and_die():
        if not (pid := os.fork()):
            signal.pause()  # with everything that the worker has had open
        (tmp_path / "pid").write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)

    check_end(rollout(at_step(0, 2, fork_and_die), timeout=LONG), RuntimeError, "worker 0 .*SIGKILL")
    pid = int((tmp_path / "pid").read_text())
    until(lambda: not is_alive(pid))  # it belonged to the process group of the worker


# --- a worker that hangs ----------------------------------------------------------------------------------------------


@idle_worker_may_end_late
@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("hang", [wait_forever, loop_forever, hold_interpreter_lock])
def test_a_worker_that_hangs_is_named_and_killed(hang, groups, impatient, tmp_path, monkeypatch):
    hangs = tmp_path / "hangs"
    timeout_counts_while(hangs.exists, monkeypatch)
    feed = rollout(at_step(3, 8, lambda: (hangs.touch(), hang())), timeout=0.5, groups=groups)
    with pytest.warns(RuntimeWarning, match=r"worker 1 .*was killed.*environment 3, in env.step"):
        error = check_end(
            feed, TimeoutError, r"worker 1 \(environments .*3\): environment 3, in env.step, at step 2 of", k=1
        )
    assert str(error).count("worker 1") == 1


def test_a_factory_that_hangs_is_named_at_the_call(impatient, blocker, monkeypatch):
    start_timeout_begins_when(blocker.wait_until_entered, monkeypatch)
    with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.reset") as caught:
        rollout(at_step(3, 0, blocker), start_timeout=0.5)
    assert any(re.search(r"worker 1 .*was killed", note) for note in caught.value.__notes__)


def test_an_environment_that_does_not_close_is_named_and_its_worker_killed(impatient):
    for on_close in (wait_forever, hold_interpreter_lock):
        feed = rollout(on_close=on_close)
        next(feed)
        with pytest.warns(RuntimeWarning, match=r"worker \d .*was killed") as caught:
            feed.close()
        assert len(caught) == 2


@idle_worker_may_end_late
def test_a_worker_thread_that_hangs_is_named_and_left_behind(blocker, impatient, monkeypatch):
    timeout_counts_while(blocker.has_begun, monkeypatch)
    feed = rollout(at_step(3, 8, blocker), worker="thread", timeout=0.5)
    assert is_worker_fragment(0, next(feed))
    with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.step"):
        next(feed)
    with pytest.warns(RuntimeWarning, match=r"worker 1 .*left behind.*environment 3"):
        feed.close()
    blocker.wait_until_entered()
    blocker.release()
    until(lambda: not any(thread.name.startswith("rlplay") for thread in threading.enumerate()))


@kinds
def test_the_watchdog_does_not_fire_while_workers_make_slow_progress(kind, tmp_path, monkeypatch):
    clock = TimeInSteps(tmp_path, 0.3, monkeypatch)
    acts = {j: {1: clock.step} for j in range(8)}  # all of them take longer than `timeout`, one does not
    with rollout(acts, n_envs=8, workers=1, worker=kind, timeout=0.4) as feed:
        try:
            assert is_worker_fragment(0, next(feed))
        finally:
            clock.give_up()
    assert clock.shared[0] == 8


# --- a worker that raises ---------------------------------------------------------------------------------------------


class Holding(Exception):
    """An exception that holds what cannot be pickled."""

    def __init__(self, text):
        super().__init__(text)
        self.lock = threading.Lock()


def explode(make):
    raise make()


def failing():
    class Local(Exception):
        pass

    return {
        "plain": lambda: ValueError("one and 2"),
        "mine": lambda: TwoArgumentError("one", 2),
        "holding": lambda: Holding("one and 2"),
        "local": lambda: Local("one and 2"),
        "system": lambda: FileNotFoundError(2, "one and 2"),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "one and 2"),
        "exit": lambda: SystemExit("one and 2"),
        "interrupt": lambda: KeyboardInterrupt("one and 2"),
    }


@pytest.mark.parametrize("what", failing())
@kinds
def test_an_error_in_a_worker_keeps_its_type_its_message_and_its_traceback(kind, what):
    make = failing()[what]
    error = check_end(rollout(at_step(3, 8, partial(explode, make)), worker=kind), BaseException, "one and 2", k=1)
    assert type(error).__qualname__ == type(make()).__qualname__
    assert kind == "thread" or type(error) is type(make()) or what == "local"
    shown = str(error.__cause__) if kind == "process" else ""
    assert kind == "thread" or ("in explode" in shown and "one and 2" in shown)
    (note,) = error.__notes__
    assert "worker 1 (environments 2 to 3): environment 3, in env.step, at step 2 of fragment 1" in note


@kinds
def test_an_error_in_a_worker_does_not_wait_for_a_slow_worker(kind, blocker, impatient):
    def raise_once_the_other_worker_is_blocked():
        blocker.wait_until_entered()
        raise_value_error()

    acts = {0: {3: blocker}, 3: {3: raise_once_the_other_worker_is_blocked}}
    error = check_end(rollout(acts, worker=kind), ValueError, "cannot close")
    assert "environment 3, in env.step" in error.__notes__[0]
    if kind == "thread":
        blocker.release()
        until(lambda: not any(thread.name.startswith("rlplay") for thread in threading.enumerate()))


@kinds
def test_an_error_of_a_factory_in_a_worker_keeps_its_type_at_the_call(kind):
    def factory():
        raise TwoArgumentError("one", 2)

    with pytest.raises(TwoArgumentError, match="one and 2") as caught:
        threaded.rollout([WorkerEnv, WorkerEnv, factory], AddsWeight(), workers=2, worker=kind)
    assert "environment 2, in env.make" in caught.value.__notes__[0]
    assert kind == "thread" or "in factory" in str(caught.value.__cause__)


@pytest.mark.parametrize("groups", [1, 2])
@kinds
def test_errors_in_closing_are_noted_on_an_error_in_another_worker(kind, groups):
    feed = rollout(at_step(0, 3, partial(explode, KeyError)), worker=kind, on_close=raise_value_error, groups=groups)
    with pytest.raises(KeyError) as caught:
        next(feed)
    assert len([note for note in caught.value.__notes__ if "cannot close" in note]) == B


def test_errors_in_closing_are_noted_on_a_refusal_and_workers_print_nothing(capfd):
    class Other(WorkerEnv):
        observation_space = Space("float64")

    envs = [partial(WorkerEnv, None, raise_value_error)] * 2 + [partial(Other, None, raise_value_error)]
    with pytest.raises(ValueError, match="environment 2 has the observation_space") as caught:
        threaded.rollout(envs, AddsWeight(), workers=3)
    assert len([note for note in caught.value.__notes__ if "cannot close" in note]) == 3
    assert capfd.readouterr() == ("", "")
