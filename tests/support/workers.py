"""Feeds over environments in workers that do something at chosen steps, and checks of how such feeds end.

Pickled by value: else each worker process would import PyTorch.
"""

from __future__ import annotations

import gc
import itertools
import os
import sys
import threading
from contextlib import contextmanager
from functools import partial

import cloudpickle
import numpy as np
import pytest
import torch

from rlplay.engine.concurrency.child import Child
from rlplay.engine.feed import driver
from rlplay.engine.rollout import threaded
from rlplay.engine.stepping import pool
from tests.support.actors import AddsWeight
from tests.support.processes import child_processes
from tests.support.threads import until

cloudpickle.register_pickle_by_value(sys.modules[__name__])

T, B = 5, 4
idle_worker_may_end_late = pytest.mark.filterwarnings("ignore:worker 0 .* ha[ds] not ended:RuntimeWarning")
"""For tests in which worker 1 hangs: on a busy machine worker 0, which is idle, may end later than the test allows."""

kinds = pytest.mark.parametrize("kind", ["process", "thread"])


class Space:
    """Has a shape, a dtype and equality, which is all that an engine needs of a space."""

    def __init__(self, dtype, shape=()):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __eq__(self, other):
        return (self.shape, self.dtype) == (other.shape, other.dtype)

    __hash__ = None


class WorkerEnv:
    """Counts its steps; calls a function at chosen steps (0: at reset) and at `close`; its info has its process id."""

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


def rollout(acts=None, *, n_envs=B, workers=2, worker="process", on_close=bool, **options):
    """Open a feed over workers; `acts` maps an environment to a dictionary from step to function."""
    envs = [partial(WorkerEnv, (acts or {}).get(j), on_close) for j in range(n_envs)]
    options = {"n_steps": T, "seed": 0, "info": {"pid": np.int64}, **options}
    return threaded.rollout(envs, AddsWeight(), workers=workers, worker=worker, **options)


def at_step(env, n, act):
    """Return the `acts` of `rollout` that call `act` at step `n` of one environment."""
    return {env: {n: act}}


def kill_own_process(how):
    """Return a function that sends a signal to its own process."""
    return partial(lambda how: os.kill(os.getpid(), how), how)


def raise_value_error():
    raise ValueError("cannot close")


def hold_interpreter_lock():
    all(itertools.repeat(True))


def loop_forever():
    while True:
        pass


def wait_forever():
    threading.Event().wait()


def shorten_closing(monkeypatch):
    """Shorten the time that closing waits for a step under way and for workers."""
    monkeypatch.setattr(driver.Driver, "stop_timeout", 1.0)
    monkeypatch.setattr(pool.WorkerPool, "close_timeout", 0.2)
    monkeypatch.setattr(Child, "grace", 0.2)


def is_worker_fragment(k, fragment):
    obs = torch.arange(k * T, (k + 1) * T + 1.0)[:, None]
    return torch.equal(fragment.state.obs, obs.expand_as(fragment.state.obs)) and bool(fragment.env.valid.all())


def worker_processes(fragment):
    """Return the process ids of two workers; that of environment 0 comes first."""
    pids = fragment.env.info["pid"][0].tolist()
    (other,) = set(pids) - {pids[0]}
    return [pids[0], other]


def count_resources():
    """Count what a process can leak: descriptors (each mapped shared memory has one), threads, children."""
    return len(os.listdir("/proc/self/fd")), threading.active_count(), len(child_processes())


@contextmanager
def no_resources_left():
    """Check that a block leaves no descriptor, thread, child process or shared memory."""
    before = count_resources()
    yield
    # a thread that is just ending may leave a reference cycle late: collect again until it is found
    until(lambda: _no_more_than(before) or (gc.collect(), _no_more_than(before))[1])


def _no_more_than(before):
    return all(now <= then for now, then in zip(count_resources(), before, strict=True))


def check_end(feed, error, match, k=0):
    """Check the first `k` fragments, that an error is raised in place of the next one, and that the feed has ended."""
    for number in range(k):
        assert is_worker_fragment(number, next(feed))
    with pytest.raises(error, match=match) as caught:
        next(feed)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(feed)
    feed.close()
    with pytest.raises(RuntimeError, match="closed"):
        next(feed)
    return caught.value
