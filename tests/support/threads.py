"""Threads that tests start, wait for and stop."""

from __future__ import annotations

import sys
import threading
from pathlib import Path

LONG = 100  # seconds until a test gives up waiting; the machine may be slow


class InThread(threading.Thread):
    """Calls a function at once in a daemon thread, and keeps its result or its exception."""

    def __init__(self, function):
        super().__init__(daemon=True)
        self.function, self.error, self.value = function, None, None
        self.start()

    def run(self):
        try:
            self.value = self.function()
        except BaseException as error:
            self.error = error

    def wait(self):
        """Wait for the end of the thread; return the thread."""
        self.join(LONG)
        assert not self.is_alive()
        return self


class PauseInThread(InThread):
    """Pauses a feed in a thread; `entered` is set inside of the pause, which ends once `leave` is set."""

    def __init__(self, feed):
        self.entered, self.leave = threading.Event(), threading.Event()
        super().__init__(lambda: self._pause(feed))

    def _pause(self, feed):
        with feed.pause():
            self.entered.set()
            assert self.leave.wait(LONG)


def interrupted(call, module, between):
    """Call a function; call ``between`` before every line that it runs in files whose path ends with ``module``."""

    def trace(frame, event, arg):
        if not Path(frame.f_code.co_filename).match(module):
            return None
        if event == "line":
            sys.settrace(None)
            between()
            sys.settrace(trace)
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        return call()
    finally:
        sys.settrace(before)


def until(condition):
    """Poll a condition, once a millisecond, until it is true: for changes in other threads or processes."""
    for _ in range(1000 * LONG):
        if condition():
            return
        threading.Event().wait(0.001)
    raise AssertionError("it never happened")


def all_tokens_used_up(feed):
    """Wait until a feed in the background has collected all that it may, so that nothing moves any more.

    What the collector does at one moment does not tell: it also waits between two tokens.
    """
    until(lambda: feed._driver._deliveries._queue.qsize() == feed._lag)


class TellingLock:
    """A reentrant lock; `awaited` is set once a thread has to wait for it."""

    def __init__(self):
        self._lock, self.awaited = threading.RLock(), threading.Event()

    def acquire(self, timeout=-1):
        if self._lock.acquire(blocking=False):
            return True
        self.awaited.set()
        return self._lock.acquire(timeout=timeout)

    def release(self):
        self._lock.release()

    def __enter__(self):
        self.acquire()

    def __exit__(self, *exception):
        self.release()


class ThreadBlocker:
    """A callable that sets `entered`, and blocks the calling thread until `release` is set."""

    def __init__(self) -> None:
        self.entered, self.release = threading.Event(), threading.Event()

    def __call__(self) -> None:
        self.entered.set()
        assert self.release.wait(LONG), "the blocker was not released"
