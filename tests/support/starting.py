"""The time limits of a rollout, counted from a moment that a test chooses: on a busy machine all else may be slow."""

from __future__ import annotations

from functools import partial

from rlplay.engine.concurrency.channel import Channel
from rlplay.engine.concurrency.watchdog import Watchdog
from rlplay.engine.feed import background, build
from tests.support.threads import until


class _Begun(Channel):
    """A channel whose `get(start_timeout)` counts from the moment at which `wait()` has returned.

    What it needs are attributes of the object, not variables around a class that is made for one test: Python 3.13t
    never releases a class that is made after the first thread has started, nor what the class refers to (here the
    shared memory of `progress`).
    """

    def __init__(self, wait, progress, start_timeout, **options):
        super().__init__(**options)
        self._wait, self._progress, self._start_timeout = wait, progress, start_timeout

    def get(self, timeout=None):
        if timeout == self._start_timeout:
            self._wait()
            until(lambda: self._progress.awaited)
        return super().get(timeout)


def start_timeout_begins_when(wait, monkeypatch):
    """Have the `start_timeout` of the next rollout begin when `wait()` returns and the collector waits for processes.

    For a short `start_timeout`: the start of a process may take longer than that on a busy machine.
    """
    make_background = build.Background

    def begin(make, progress, *, timeout, start_timeout):
        monkeypatch.setattr(background, "Channel", partial(_Begun, wait, progress, start_timeout))
        return make_background(make, progress, timeout=timeout, start_timeout=start_timeout)

    monkeypatch.setattr(build, "Background", begin)


def timeout_counts_while(condition, monkeypatch):
    """Have the `timeout` of all rollouts count only the time in which `condition()` is true."""
    check = Watchdog.check
    monkeypatch.setattr(Watchdog, "check", lambda self, *, paused=False: check(self, paused=paused or not condition()))
