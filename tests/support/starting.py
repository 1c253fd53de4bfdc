"""The time limits of a rollout, counted from a moment that a test chooses: on a busy machine all else may be slow.

Pickled by value: else worker processes would import PyTorch.
"""

from __future__ import annotations

import sys
from functools import partial

import cloudpickle
import numpy as np

from rlplay.engine.concurrency import watchdog
from rlplay.engine.concurrency.channel import Channel
from rlplay.engine.concurrency.watchdog import Watchdog
from rlplay.engine.feed import background, build
from tests.support.threads import until

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class _Begun(Channel):
    """A channel whose `get(start_timeout)` counts from the moment at which `wait(progress)` has returned.

    What it needs are attributes of the object, not variables around a class that is made for one test: Python 3.13t
    never releases a class that is made after the first thread has started, nor what the class refers to (here the
    shared memory of `progress`).
    """

    def __init__(self, wait, progress, start_timeout, **options):
        super().__init__(**options)
        self._wait, self._progress, self._start_timeout = wait, progress, start_timeout

    def get(self, timeout=None):
        if timeout == self._start_timeout:
            self._wait(self._progress)
        return super().get(timeout)


def start_timeout_begins_when(wait, monkeypatch, *, processes=True):
    """Have the `start_timeout` of the next rollout begin when `wait()` returns and the collector waits for processes.

    For a short `start_timeout`: the start of a process or, if ``processes`` is False, of a thread may take longer than
    that on a busy machine.
    """
    make_background = build.Background

    def wait_for_both(progress):
        wait()
        until(lambda: progress.awaited or not processes)

    def begin(make, progress, *, timeout, start_timeout):
        monkeypatch.setattr(background, "Channel", partial(_Begun, wait_for_both, progress, start_timeout))
        return make_background(make, progress, timeout=timeout, start_timeout=start_timeout)

    monkeypatch.setattr(build, "Background", begin)


def timeout_counts_while(condition, monkeypatch):
    """Have the `timeout` of all rollouts count only the time in which `condition()` is true."""
    check = Watchdog.check
    monkeypatch.setattr(Watchdog, "check", lambda self, *, paused=False: check(self, paused=paused or not condition()))


class TimeInSteps:
    """A clock of the watchdogs by which each step of an environment takes the same time, whatever it really takes.

    A step lasts until the consumer has looked at the clock meanwhile, or has given up. The number of steps that have
    begun, the number that the consumer has seen last, and whether it has given up, are in a file: steps may be those of
    another process.
    """

    def __init__(self, folder, step_seconds, monkeypatch):
        self.path, self.step_seconds = folder / "clock", step_seconds
        np.zeros(3, np.int64).tofile(self.path)
        monkeypatch.setattr(watchdog, "perf_counter", self.seconds)

    @property
    def shared(self):
        return np.memmap(self.path, np.int64, "r+")

    def step(self):
        shared = self.shared
        shared[0] += 1
        until(lambda: shared[1] >= shared[0] or shared[2])

    def seconds(self):
        shared = self.shared
        shared[1] = begun = int(shared[0])
        return begun * self.step_seconds

    def give_up(self):
        self.shared[2] = 1
