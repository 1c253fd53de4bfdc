"""What environments have started in child processes ends with them, however the program ends that uses rlplay."""

from __future__ import annotations

import os
import signal

import pytest

from tests.support.processes import is_alive
from tests.support.scripts import start_script
from tests.support.threads import LONG, until

pytestmark = pytest.mark.soak  # each case starts a program with four feeds in processes

SCRIPT = """
import multiprocessing, os, subprocess
from pathlib import Path
from rlplay.engine.rollout import evaluate, multi, single

FOLDER = Path(os.environ["FOLDER"])


class Starts(Env):
    "Has a program that `close` ends, a daemonic process, a log in a reference cycle, and a lock file until exit."

    def __init__(self):
        super().__init__()
        self.n, self.itself, name = 0, self, f"{os.getpid()}-{id(self)}"
        self.program = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(1000)"])
        self.helper = multiprocessing.get_context("fork").Process(target=threading.Event().wait, daemon=True)
        self.helper.start()
        self.log, lock = open(FOLDER / f"log-{name}", "w"), FOLDER / f"lock-{name}"
        lock.touch()
        atexit.register(os.remove, lock)
        for pid in (os.getpid(), self.program.pid, self.helper.pid):
            (FOLDER / f"pid-{pid}").touch()

    def step(self, action):
        self.n += 1
        self.log.write("a line")
        return np.float32(1), 1.0, self.n % 3 == 0, False, {}

    def close(self):
        self.program.kill()
        self.program.wait()


class Raises(Starts):
    "Raises an exception in its 12th step."

    def step(self, action):
        if self.n == 12:
            raise ZeroDivisionError("in the environment")
        return super().step(action)


def open_all(env):
    return [
        threaded.rollout([env] * 2, Actor(), 5, workers=2),
        single.rollout(env, Actor(), 5, 2),
        multi.rollout(env, Actor(), 5, 2, 1),
        evaluate.background(env, Actor(), 2),
    ]


"""

OPEN = """
feeds = open_all(Starts)
for feed in feeds:
    next(feed)
"""

N_PROCESSES = 6 + 5 + 6 + 5
"""Of the four engines: two or one, and two programs or helpers for each of two environments."""

WAYS = {
    "close": (OPEN + "for feed in feeds: feed.close()", 0),
    "falling off the end": (OPEN, 0),
    "an exception": (OPEN + "raise ValueError('of the learner')", 1),
    "dropped": (OPEN + "del feed, feeds[:]", 0),
    "an interrupt in next": (
        OPEN
        + "threading.Timer(0.2, signal.raise_signal, [signal.SIGINT]).start()\nwhile True: [next(f) for f in feeds]",
        -signal.SIGINT,
    ),
    "an error of an environment": (
        """
for feed in open_all(Raises):
    try:
        while True:
            next(feed)
    except ZeroDivisionError:
        pass
""",
        0,
    ),
}

KILLED = {
    "SIGKILL": (OPEN + "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL),
    "SIGKILL, with a fork of the parent's": (
        OPEN
        + "os.fork() or (print('fork', os.getpid(), flush=True), signal.pause())\nos.kill(os.getpid(), signal.SIGKILL)",
        -signal.SIGKILL,
    ),
    "os._exit": (OPEN + "os._exit(4)", 4),
}


def named(folder, kind):
    return sorted(path for path in folder.iterdir() if path.name.startswith(f"{kind}-"))


def pids(folder):
    return [int(path.name.split("-")[1]) for path in named(folder, "pid")]


def start(script, folder, monkeypatch):
    monkeypatch.setenv("FOLDER", str(folder))
    return start_script(f"{SCRIPT}\n{script}")


@pytest.mark.parametrize("way", WAYS)
def test_child_processes_end_as_python_programs_do(way, tmp_path, monkeypatch):
    script, code = WAYS[way]
    process = start(script, tmp_path, monkeypatch)
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == code, err
    assert "Warning" not in err
    assert len(pids(tmp_path)) == N_PROCESSES
    assert not [pid for pid in pids(tmp_path) if is_alive(pid)]
    assert not named(tmp_path, "lock")
    assert all(path.read_text() for path in named(tmp_path, "log"))


@pytest.mark.parametrize("way", KILLED)
def test_a_parent_that_is_killed_leaves_no_process(way, tmp_path, monkeypatch):
    script, code = KILLED[way]
    process = start(script, tmp_path, monkeypatch)
    fork = process.stdout.readline() if "fork" in way else ""
    assert process.wait(LONG) == code
    try:
        until(lambda: not any(is_alive(pid) for pid in pids(tmp_path)))
        assert len(pids(tmp_path)) == N_PROCESSES
    finally:
        if fork:
            os.kill(int(fork.split()[1]), signal.SIGKILL)
        process.communicate()
