"""Workers that die, hang and raise: every time an error that says so, at once."""

from __future__ import annotations

import itertools
import os
import random
import signal
import sys
import threading
import time
from functools import partial

import cloudpickle
import pytest

from rlplay.engine.rollout import threaded
from tests.support.working import (
    LONG,
    Actor,
    B,
    Env,
    InThread,
    Space,
    Stop,
    alive,
    at,
    be_impatient,
    block,
    ends,
    grumble,
    hold_the_lock,
    is_fragment,
    kill_me,
    kinds,
    nothing_held,
    rollout,
    spin,
    until,
    workers_of,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture
def stop(tmp_path):
    return Stop(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    be_impatient(monkeypatch)


@pytest.fixture(autouse=True)
def nothing_is_held():
    with nothing_held():
        yield


# --- a worker that dies -----------------------------------------------------------------------------------------------

DEATHS = {
    "SIGKILL": (kill_me(signal.SIGKILL), "was killed by SIGKILL"),
    "SIGTERM": (kill_me(signal.SIGTERM), "was killed by SIGTERM"),
    "SIGSEGV": (kill_me(signal.SIGSEGV), "was killed by SIGSEGV"),
    "exit": (partial(os._exit, 3), "has ended with exit code 3"),
}


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize(("act", "says"), DEATHS.values(), ids=DEATHS)
def test_a_worker_that_dies_in_a_step_is_named_after_all_fragments_before_it(act, says, lag):
    error = ends(rollout(at(2, 8, act), lag=lag), RuntimeError, rf"worker 1 \(environments 2 to 3\).*{says}", k=1)
    assert "environment 2, in env.step, at step 2 of fragment 1" in error.__notes__[0]


@pytest.mark.parametrize(("act", "says"), DEATHS.values(), ids=DEATHS)
def test_a_worker_that_dies_before_the_first_step_is_named_at_the_call(act, says):
    with pytest.raises(RuntimeError, match=rf"worker 1 \(environments 2 to 3\).*{says}") as caught:
        rollout(at(3, 0, act))
    assert "environment 3, in env.reset" in caught.value.__notes__[0]


def test_a_worker_that_is_killed_in_the_middle_of_a_step_is_named(stop):
    feed = rollout(at(3, 3, stop))
    consumer = InThread(lambda: ends(feed, RuntimeError, r"worker 1 \(environments 2 to 3\).*SIGKILL"))
    os.kill(stop.entered(), signal.SIGKILL)
    assert consumer.wait().error is None


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("which", [0, 1])
def test_a_worker_that_is_killed_while_it_is_idle_or_the_learner_is_busy_is_named(which, lag):
    feed = rollout(lag=lag)
    fragment = next(feed)
    os.kill(workers_of(fragment)[which], signal.SIGKILL)
    seen = []
    with pytest.raises(RuntimeError, match=rf"worker {which} .*SIGKILL"):
        seen.extend(feed)
    assert len(seen) <= lag
    assert all(itertools.starmap(is_fragment, enumerate(seen, 1)))
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
        pids += workers_of(seen[0])
        go.set()
        with pytest.raises(RuntimeError, match=rf"worker {which} .*SIGKILL"):
            seen.extend(feed)
        assert all(itertools.starmap(is_fragment, enumerate(seen)))
        feed.close()
        assert killer.wait().error is None
        assert not any(alive(pid) for pid in pids)


def test_a_worker_that_dies_behind_one_that_is_slow_is_named_before_that_has_made_its_step(stop, impatient):
    ends(rollout({0: {3: stop}, 3: {3: partial(os._exit, 3)}}), RuntimeError, r"worker 1 .*exit code 3")


def test_a_worker_that_is_outlived_by_a_fork_of_its_own_is_named_all_the_same(tmp_path):
    def fork_and_die():
        if not (pid := os.fork()):
            signal.pause()  # with everything that the worker has had open
        (tmp_path / "pid").write_text(str(pid))
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        ends(rollout(at(0, 2, fork_and_die), timeout=LONG), RuntimeError, "worker 0 .*SIGKILL")
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


# --- a worker that hangs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("act", [block, spin, hold_the_lock])
def test_a_worker_that_hangs_is_named_and_killed(act, groups):
    feed = rollout(at(3, 8, act), timeout=0.5, groups=groups)
    error = ends(feed, TimeoutError, r"worker 1 \(environments .*3\): environment 3, in env.step, at step 2 of", k=1)
    assert str(error).count("worker 1") == 1


def test_a_factory_that_hangs_is_named_at_the_call(impatient):
    with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.reset"):
        rollout(at(3, 0, block), start_timeout=0.5)


def test_an_environment_that_does_not_close_is_named_and_its_worker_killed(impatient):
    for on_close in (block, hold_the_lock):
        feed = rollout(on_close=on_close)
        next(feed)
        with pytest.warns(RuntimeWarning, match=r"worker \d .*was killed") as caught:
            feed.close()
        assert len(caught) == 2


def test_a_worker_thread_that_hangs_is_named_and_left_behind(stop, impatient, monkeypatch):
    feed = rollout(at(3, 8, stop), worker="thread", timeout=0.5)
    assert is_fragment(0, next(feed))
    with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.step"):
        next(feed)
    with pytest.warns(RuntimeWarning, match=r"worker 1 .*left behind.*environment 3"):
        feed.close()
    stop.entered()
    stop.go_on()
    until(lambda: not any(thread.name.startswith("rlplay") for thread in threading.enumerate()))


@kinds
def test_the_watchdog_does_not_fire_while_workers_make_slow_progress(kind):
    def slow():
        time.sleep(0.1)

    acts = {j: {1: slow} for j in range(8)}
    with rollout(acts, n_envs=8, workers=1, worker=kind, timeout=0.4) as feed:
        assert is_fragment(0, next(feed))


# --- a worker that raises ---------------------------------------------------------------------------------------------


class Broken(Exception):
    """An exception that cannot be made again from its arguments."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


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
        "mine": lambda: Broken("one", 2),
        "holding": lambda: Holding("one and 2"),
        "local": lambda: Local("one and 2"),
        "system": lambda: FileNotFoundError(2, "one and 2"),
        "unicode": lambda: UnicodeDecodeError("utf-8", b"x", 0, 1, "one and 2"),
        "exit": lambda: SystemExit("one and 2"),
        "interrupt": lambda: KeyboardInterrupt("one and 2"),
    }


@pytest.mark.parametrize("what", failing())
@kinds
def test_an_error_keeps_its_type_its_words_and_its_traceback(kind, what):
    make = failing()[what]
    error = ends(rollout(at(3, 8, partial(explode, make)), worker=kind), BaseException, "one and 2", k=1)
    assert type(error).__qualname__ == type(make()).__qualname__
    assert kind == "thread" or type(error) is type(make()) or what == "local"
    shown = str(error.__cause__) if kind == "process" else ""
    assert kind == "thread" or ("in explode" in shown and "one and 2" in shown)
    (note,) = error.__notes__
    assert "worker 1 (environments 2 to 3): environment 3, in env.step, at step 2 of fragment 1" in note


@kinds
def test_an_error_does_not_wait_for_another_worker_that_is_slow(kind, stop, impatient):
    error = ends(rollout({0: {3: stop}, 3: {3: grumble}}, worker=kind), ValueError, "cannot close")
    assert "environment 3, in env.step" in error.__notes__[0]
    if kind == "thread":
        stop.entered()
        stop.go_on()
        until(lambda: not any(thread.name.startswith("rlplay") for thread in threading.enumerate()))


@kinds
def test_an_error_in_a_factory_keeps_its_type_at_the_call(kind):
    def factory():
        raise Broken("one", 2)

    with pytest.raises(Broken, match="one and 2") as caught:
        threaded.rollout([Env, Env, factory], Actor(), workers=2, worker=kind)
    assert "environment 2, in env.make" in caught.value.__notes__[0]
    assert kind == "thread" or "in factory" in str(caught.value.__cause__)


@pytest.mark.parametrize("groups", [1, 2])
@kinds
def test_what_goes_wrong_with_closing_is_noted_on_an_error_in_another_worker(kind, groups):
    feed = rollout(at(0, 3, partial(explode, KeyError)), worker=kind, on_close=grumble, groups=groups)
    with pytest.raises(KeyError) as caught:
        next(feed)
    assert len([note for note in caught.value.__notes__ if "cannot close" in note]) == B


def test_what_goes_wrong_with_closing_is_noted_on_a_refusal_and_workers_are_silent(capfd):
    class Other(Env):
        observation_space = Space("float64")

    envs = [partial(Env, None, grumble)] * 2 + [partial(Other, None, grumble)]
    with pytest.raises(ValueError, match="environment 2 has the observation_space") as caught:
        threaded.rollout(envs, Actor(), workers=3)
    assert len([note for note in caught.value.__notes__ if "cannot close" in note]) == 3
    assert capfd.readouterr() == ("", "")
