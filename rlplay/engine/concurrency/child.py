"""Child processes: told what to do once, then by a few bytes at a time; seen to die; never left behind.

A child is a fresh interpreter, never a fork: so neither threads and locks nor CUDA are copied halfway, the caller's
script is not run a second time (what of it is needed travels by value, by cloudpickle), and there is no server of any
kind behind it. It is on the other end of a socket pair, which is as cheap to wake somebody by as anything that blocks,
and breaks when either end dies.

Shared memory has no name, so there is nothing to be cleaned up, whoever dies how. Knows no reinforcement learning.
"""

from __future__ import annotations

import fcntl
import os
import pickle
import select
import signal
import socket
import subprocess
import sys
import tempfile
import threading
from collections.abc import Callable
from contextlib import suppress
from time import monotonic
from typing import Any

import cloudpickle

from .link import Gone, Link

__all__ = ["Child", "Listener"]

_PATIENCE = 5.0
"""Seconds that a child has to end by itself, once it has been told."""


class Child:
    """A process that runs ``target(link, *args)``, and this side's end of the link to it.

    Parameters
    ----------
    target : callable
        Its first argument is the child's :class:`Link`.
    args
        Sent by cloudpickle: lambdas, and what was defined in a notebook, may be among them.
    name : str
        For messages.
    """

    def __init__(self, target: Callable[..., None], *args: Any, name: str) -> None:
        self.name = name
        data = cloudpickle.dumps((target, args))
        ours, theirs = socket.socketpair()
        self.link = Link(ours)
        held, leash = os.pipe()
        self._fds = [leash]
        with theirs, os.fdopen(held) as end, tempfile.TemporaryFile() as told:
            told.write(data)
            told.seek(0)
            fds = theirs.fileno(), end.fileno(), told.fileno()
            boot = (
                f"import sys; sys.path[:] = {sys.path!r}; from rlplay.engine.concurrency.child import main; main{fds}"
            )
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", boot],
                    stdin=subprocess.DEVNULL,
                    pass_fds=fds,
                    start_new_session=True,  # Ctrl-C is the caller's, from the very first moment
                    env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                )
            except BaseException:
                self._let_go()
                raise
        self.death: int | None = None
        """Readable once the process has ended, even if a program that it has started keeps its end of the link."""
        if hasattr(os, "pidfd_open"):
            self.death = os.pidfd_open(self.pid)
            self._fds.append(self.death)

    @property
    def pid(self) -> int:
        """The process's number."""
        return self._process.pid

    def epitaph(self) -> str:
        """Say how the process ended; it is given a moment to do so."""
        try:
            code = self._process.wait(_PATIENCE)
        except subprocess.TimeoutExpired:
            return f"{self.name} (process {self.pid}) has closed its end without ending"
        if code < 0:
            with suppress(ValueError):
                return f"{self.name} (process {self.pid}) was killed by {signal.Signals(-code).name}"
        return f"{self.name} (process {self.pid}) has ended with exit code {code}"

    def speaks(self, patience: float) -> bool:
        """Wait until there is something to read, or nobody to write it any more; False if that takes too long."""
        return bool(Listener(self).heard(patience))

    def last_words(self, patience: float = _PATIENCE) -> Any:
        """Wait for the last thing that the process sends; None if it does not end in time, or sends nothing."""
        words, deadline = None, monotonic() + patience
        with suppress(Gone):
            while self.speaks(deadline - monotonic()):
                words, _ = self.link.receive()
        return words

    def kill(self) -> None:
        """Kill the process. Whoever waits for it finds it :class:`Gone`. Safe in any thread."""
        with suppress(OSError):
            self._process.kill()

    def close(self, patience: float = _PATIENCE) -> None:
        """Close the link, and see to it that the process ends: by itself if it does so in time."""
        self.link.close()
        try:
            self._process.wait(patience)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._let_go()

    def _let_go(self) -> None:
        self.link.close()
        while self._fds:
            os.close(self._fds.pop())


class Listener:
    """Listens to several children at once: to what they say, and to whether they live."""

    def __init__(self, *children: Child) -> None:
        self._poll, self._whose = select.poll(), dict[int, Child]()
        for child in children:
            self.add(child)

    def add(self, child: Child) -> None:
        """Listen to one more."""
        for fd in (child.link.fd, child.death):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)
                self._whose[fd] = child

    def heard(self, patience: float | None = None) -> list[Child]:
        """Wait, without the interpreter lock, until there is something to read from some, or they have died.

        Nobody if that takes more than ``patience`` seconds; None waits for as long as it takes.
        """
        found: dict[Child, None] = {}
        for fd, _ in self._poll.poll(None if patience is None else 1e3 * max(0.0, patience)):
            child = self._whose[fd]
            if fd == child.death:
                child.link.expect_no_more()
            found[child] = None
        return list(found)


def main(fd: int, leash: int, told: int) -> None:
    """Do, in a child, what it was started for."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for inherited in (fd, leash):
        os.set_inheritable(inherited, False)  # a program that an environment starts must not keep the link open
    link = Link(socket.socket(fileno=fd))
    _end_with_parent(fd, leash)
    with os.fdopen(told, "rb") as file:
        target, args = pickle.load(file)
    with suppress(Gone):
        target(link, *args)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that an environment may have left


def _end_with_parent(fd: int, leash: int) -> None:
    """Let the process end when the other end of the link is closed, not only finished, whatever it is busy with."""

    def watch() -> None:
        poll = select.poll()
        poll.register(fd, select.POLLHUP)
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="rlplay-orphan", daemon=True).start()
    if sys.platform == "linux":  # the thread has no turn while an environment holds the interpreter lock
        fcntl.fcntl(leash, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(leash, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(leash, fcntl.F_SETFL, os.O_ASYNC)
