"""The time that a rollout has to start, counted from a moment that a test chooses."""

from __future__ import annotations

from rlplay.engine.concurrency.channel import Channel
from rlplay.engine.feed import background, build
from tests.support.threads import until


def start_timeout_begins_when(wait, monkeypatch):
    """Have the `start_timeout` of the next rollout begin when `wait()` returns and the collector waits for processes.

    For a short `start_timeout`: the start of a process may take longer than that on a busy machine.
    """

    class Begins(background.Background):
        def __init__(self, make, progress, *, timeout, start_timeout):
            class Begun(Channel):
                def get(self, timeout=None):
                    if timeout == start_timeout:
                        wait()
                        until(lambda: progress.awaited)
                    return super().get(timeout)

            monkeypatch.setattr(background, "Channel", Begun)
            super().__init__(make, progress, timeout=timeout, start_timeout=start_timeout)

    monkeypatch.setattr(build, "Background", Begins)
