"""Environments that workers keep, in which at chosen steps things happen; and what is asked of such a feed."""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
from contextlib import contextmanager, suppress
from functools import partial
from pathlib import Path

import cloudpickle
import numpy as np
import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.feed import driver
from rlplay.engine.rollout import threaded
from rlplay.engine.stepping import pool

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else every worker process would import torch with it

T, B = 5, 4
LONG = 60  # seconds: for what must happen, however slow the machine
kinds = pytest.mark.parametrize("kind", ["process", "thread"])


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


def grumble():
    raise ValueError("cannot close")


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


def be_impatient(monkeypatch):
    """Let closing not wait long for a step that is under way."""
    monkeypatch.setattr(driver.Driver, "stop_timeout", 1.0)
    monkeypatch.setattr(pool, "_CLOSE_TIMEOUT", 0.2)


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
    """List the processes of two workers, the first of which has environment 0."""
    pids = fragment.env.info["pid"][0].tolist()
    (other,) = set(pids) - {pids[0]}
    return [pids[0], other]


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


@contextmanager
def nothing_held():
    """See that nothing is held afterwards, besides what ``conftest`` sees to."""
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
