"""Workers that die, hang, raise and are forgotten: every time an error that says so, and nothing left behind."""

from __future__ import annotations

import gc
import itertools
import os
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from functools import partial
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from rlplay.engine import BaseActorModule, driver, team
from rlplay.engine.rollout import threaded

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else every worker process would import torch with it

T, B = 5, 4
LONG = 60  # seconds: for what must happen, however slow the machine
KINDS = ("process", "thread")
kinds = pytest.mark.parametrize("kind", KINDS)

pytestmark = pytest.mark.soak  # many processes are started and killed: minutes


class Space:
    """As little as a space can be: workers need no library of environments."""

    def __init__(self, dtype):
        self.shape, self.dtype = (), np.dtype(dtype)

    def __eq__(self, other):
        return self.dtype == other.dtype

    __hash__ = None


class Env:
    """Counts its steps, from reset on and for ever; does at the ``n``-th what it was told to; says where it lives."""

    observation_space, action_space = Space("float32"), Space("int64")

    def __init__(self, acts=None, on_close=bool):
        self.acts, self.on_close, self.n = acts or {}, on_close, 0

    def reset(self, *, seed=None):
        self.acts.get(0, bool)()
        return np.float32(0), {}

    def step(self, action):
        self.n += 1
        self.acts.get(self.n, bool)()
        return np.float32(self.n), 1.0, False, False, {"pid": os.getpid()}

    def close(self):
        self.on_close()


class Actor(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(()))

    def forward(self, obs, **ignored):
        return torch.zeros(obs.shape, dtype=torch.int64), (), obs + self.weight


def rollout(acts=None, *, n_envs=B, workers=2, worker="process", on_close=bool, **options):
    """Open a feed; ``acts`` has what is to happen, by environment and step."""
    envs = [partial(Env, (acts or {}).get(j), on_close) for j in range(n_envs)]
    options = {"n_steps": T, "seed": 0, "info": {"pid": np.int64}, **options}
    return threaded.rollout(envs, Actor(), workers=workers, worker=worker, **options)


def at(env, n, act):
    return {env: {n: act}}


def kill_me(how):
    return partial(lambda how: os.kill(os.getpid(), how), how)


def hold_the_lock():
    all(itertools.repeat(True))


def spin():
    while True:
        pass


def block():
    threading.Event().wait()


class Stop:
    """A place where a worker says that it has come, and stays until it is released, or killed."""

    def __init__(self, path):
        self.came, self.release = str(path / "came"), str(path / "release")
        for name in (self.came, self.release):
            os.mkfifo(name)

    def __call__(self):
        with open(self.came, "w") as file:
            file.write(str(os.getpid()))
        with open(self.release) as file:
            file.read()

    def entered(self):
        with open(self.came) as file:
            return int(file.read())

    def go_on(self):
        with open(self.release, "w"):
            pass


@pytest.fixture
def stop(tmp_path):
    return Stop(tmp_path)


@pytest.fixture
def impatient(monkeypatch):
    """Closing does not wait long for a step that is under way."""
    monkeypatch.setattr(driver, "_PATIENCE", 1.0)
    monkeypatch.setattr(team, "_PATIENCE", 0.2)


class InThread(threading.Thread):
    """Calls a function elsewhere, and keeps what it raised."""

    def __init__(self, function):
        super().__init__(daemon=True)
        self.function, self.error = function, None
        self.start()

    def run(self):
        try:
            self.function()
        except BaseException as error:
            self.error = error

    def wait(self):
        self.join(LONG)
        assert not self.is_alive()
        return self


def until(condition):
    """Wait for something that another process is about to do, and cannot announce."""
    for _ in range(100 * LONG):
        if condition():
            return
        threading.Event().wait(0.01)
    raise AssertionError("it never happened")


def is_fragment(k, fragment):
    obs = torch.arange(k * T, (k + 1) * T + 1.0)[:, None]
    return torch.equal(fragment.state.obs, obs.expand_as(fragment.state.obs)) and bool(fragment.env.valid.all())


def workers_of(fragment):
    """List the processes of two workers of four environments."""
    pids = fragment.env.info["pid"][0].tolist()
    assert pids[0] == pids[1] != pids[2] == pids[3]
    return pids[::2]


def alive(pid):
    """Whether a process runs; one that has ended, and nobody has waited for, does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def belongings():
    """Count what a process can leak: descriptors, threads, children, entries of shared memory."""
    children = 0
    for task in Path("/proc/self/task").iterdir():
        with suppress(FileNotFoundError):  # a thread that has ended since
            children += len((task / "children").read_text().split())
    return len(os.listdir("/proc/self/fd")), threading.active_count(), children, len(os.listdir("/dev/shm"))


@pytest.fixture(autouse=True)
def nothing_held():
    """Besides what ``conftest`` sees to."""
    before = belongings()
    yield
    # what a reference cycle holds goes when it is found, and it may come late, from a thread that is just ending
    until(lambda: not_more_than(before) or (gc.collect(), not_more_than(before))[1])


def not_more_than(before):
    return all(now <= then for now, then in zip(belongings(), before, strict=True))


def ends(feed, error, match, k=0):
    """Take the fragments up to the ``k``-th, which must be right, and the error that comes in its place."""
    for number in range(k):
        assert is_fragment(number, next(feed))
    with pytest.raises(error, match=match) as caught:
        next(feed)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(feed)
    feed.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(feed)
    return caught.value


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


def test_a_worker_that_is_outlived_by_a_program_that_it_started_is_named_all_the_same(tmp_path):
    def start_and_die():
        os.system(f"sleep 100 > /dev/null 2>&1 & echo $! > {tmp_path}/pid")
        os.kill(os.getpid(), signal.SIGKILL)

    try:
        ends(rollout(at(0, 2, start_and_die)), RuntimeError, "worker 0 .*SIGKILL")
    finally:
        os.kill(int((tmp_path / "pid").read_text()), signal.SIGKILL)


# --- a worker that hangs ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("act", [block, spin, hold_the_lock])
def test_a_worker_that_hangs_is_named_and_killed(act, groups):
    feed = rollout(at(3, 8, act), timeout=0.5, groups=groups)
    error = ends(feed, TimeoutError, r"worker 1 \(environments 2 to 3\): environment 3, in env.step, at step 2 of", k=1)
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
def test_an_error_in_a_factory_keeps_its_type_at_the_call(kind):
    def factory():
        raise Broken("one", 2)

    with pytest.raises(Broken, match="one and 2") as caught:
        threaded.rollout([Env, Env, factory], Actor(), workers=2, worker=kind)
    assert "environment 2, in env.make" in caught.value.__notes__[0]
    assert kind == "thread" or "in factory" in str(caught.value.__cause__)


def grumble():
    raise ValueError("cannot close")


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


# --- closing, pausing, counting ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2])
@kinds
def test_close_from_another_thread_ends_a_next_that_waits_and_tells_what_goes_wrong_with_it(kind, groups, stop):
    feed = rollout(at(2, 8, stop), worker=kind, groups=groups, on_close=grumble)
    assert is_fragment(0, next(feed))
    consumer = InThread(feed.__next__)
    stop.entered()
    with pytest.warns(RuntimeWarning, match="cannot close") as caught:  # noqa: PT031
        closer = InThread(feed.close)
        assert "closed" in str(consumer.wait().error)  # before the environment returns
        stop.go_on()
        assert closer.wait().error is None
    assert len(caught) == B


def test_close_kills_a_worker_that_does_not_return_from_its_step(stop, impatient):
    feed = rollout(at(2, 8, stop))
    next(feed)
    pid = stop.entered()
    with suppress(RuntimeWarning):  # told or not, as the collector stood
        feed.close()
    assert not alive(pid)


def test_an_interrupt_at_the_call_ends_what_was_started(stop, impatient):
    main = threading.main_thread().ident
    interrupter = InThread(lambda: (stop.entered(), signal.pthread_kill(main, signal.SIGINT)))
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            rollout(at(3, 0, stop))
    finally:
        signal.signal(signal.SIGINT, before)
    interrupter.wait()


@pytest.mark.parametrize("groups", [1, 2])
@kinds
def test_a_paused_collector_stands_still_and_so_do_its_workers(kind, groups, tmp_path):
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
def test_stats_tell_of_the_work_of_workers(kind):
    with rollout(worker=kind) as feed:
        for _ in range(20):
            next(feed)
        stats = feed.stats
    assert stats.steps == 20 * T * B
    assert 0 < stats.collector.stepping < stats.seconds
    assert 0 < stats.collector.inference < stats.seconds
    assert sum(stats.collector) < 1.5 * stats.seconds


@pytest.mark.parametrize("forgotten", [False, True])
@kinds
def test_fifty_feeds_leave_nothing(kind, forgotten):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20

    def one():
        feed = rollout(worker=kind, workers=1, n_envs=1)
        next(feed)
        if not forgotten:
            feed.close()

    for _ in range(3):
        one()
    before, memory = belongings(), resident()
    for _ in range(50):
        one()
    gc.collect()
    assert belongings() == before
    assert resident() < memory + 5


# --- a parent that dies -----------------------------------------------------------------------------------------------

PARENT = """
import os, signal, sys, threading
import numpy as np
import torch
from rlplay.engine import BaseActorModule, driver, team
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
            print("hangs", os.getpid(), flush=True)
            threading.Event().wait()
        return np.float32(0), 1.0, False, False, {"pid": os.getpid()}


class Actor(BaseActorModule):
    def forward(self, obs, **ignored):
        return torch.zeros(obs.shape, dtype=torch.int64), (), obs


THEN, HANGS = sys.argv[1], int(sys.argv[2])
driver._PATIENCE = team._PATIENCE = 0.3
feed = threaded.rollout([Env, Env], Actor(), 5, workers=2, info={"pid": np.int64})
print("workers", *next(feed).env.info["pid"][0].tolist(), flush=True)
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


def parent(then, hangs=0):
    """Start a script with a feed; return it, and the processes of its workers."""
    process = subprocess.Popen(
        [sys.executable, "-c", PARENT, then, str(hangs)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    line = process.stdout.readline().split()
    if line[:1] != ["workers"]:
        process.kill()
        raise AssertionError(process.communicate())
    return process, [int(pid) for pid in line[1:]]


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
    until(lambda: not any(map(alive, pids)))


def test_ctrl_c_inside_next_ends_parent_and_workers_with_one_traceback():
    process, pids = parent("next(feed), next(feed)", hangs=8)
    for _ in pids:
        process.stdout.readline()  # both are in the step that does not return, and the parent waits for them
    os.killpg(process.pid, signal.SIGINT)
    _, err = finish(process)
    assert process.returncode == -signal.SIGINT
    assert err.count("Traceback") == 1
    assert err.splitlines()[-1] == "KeyboardInterrupt"
    until(lambda: not any(map(alive, pids)))
