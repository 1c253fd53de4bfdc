"""Child processes: started as fresh interpreters, watched for their death, never left behind.

Nothing is forked, so neither threads nor locks nor the state of CUDA are copied, and the caller's script is not run
again; what a child needs of that script is sent by value (cloudpickle). Parent and child are connected by a socket
pair, which breaks when either of them dies.

Must not import torch. POSIX-only modules are imported only where a process is started.
"""

from __future__ import annotations

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
from typing import Any, Generic, TypeVar

import cloudpickle

from .link import Disconnected, Link

__all__ = ["Child", "Listener"]

K = TypeVar("K")

_END_TIMEOUT = 5.0
"""Seconds that a child has to end by itself once its link is closed."""


def require_posix() -> None:
    """Raise RuntimeError if the system lacks what child processes need."""
    try:
        import fcntl
    except ImportError:
        fcntl = None  # type: ignore[assignment]
    present = {
        "fcntl": fcntl is not None,
        "select.poll": hasattr(select, "poll"),
        "socket.send_fds": hasattr(socket, "send_fds"),
    }
    if not all(present.values()):
        lacking = ", ".join(name for name, there in present.items() if not there)
        raise RuntimeError(
            f"cannot start processes: this Python ({sys.platform}) lacks {lacking}, which only POSIX systems have. "
            "Collect with `same`, or with `threaded` without workers or with `worker='thread'`, and evaluate with "
            "`evaluate`: these start no processes."
        )


class Child:
    """A process that runs ``target(link, *args)``; this object is the parent's side of it.

    Parameters
    ----------
    target : callable
        Called in the child; its first argument is the child's :class:`Link`.
    args
        Sent by cloudpickle, so lambdas and classes that were defined in a notebook are allowed.
    name : str
        For messages.

    Raises
    ------
    RuntimeError
        The system is not POSIX.
    """

    def __init__(self, target: Callable[..., None], *args: Any, name: str) -> None:
        require_posix()
        self.name = name
        data = cloudpickle.dumps((target, args))
        ours, theirs = socket.socketpair()
        self.link = Link(ours)
        child_end, parent_end = os.pipe()
        self._fds = [parent_end]
        with theirs, os.fdopen(child_end) as pipe, tempfile.TemporaryFile() as arguments:
            arguments.write(data)
            arguments.seek(0)
            fds = theirs.fileno(), pipe.fileno(), arguments.fileno()
            boot = (
                f"import sys; sys.path[:] = {sys.path!r}; from rlplay.engine.concurrency.child import main; main{fds}"
            )
            try:
                self._process = subprocess.Popen(
                    [sys.executable, "-c", boot],
                    stdin=subprocess.DEVNULL,
                    pass_fds=fds,
                    start_new_session=True,  # so that Ctrl-C interrupts only the parent, from the very first moment
                    env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
                )
            except BaseException:
                self._release()
                raise
        self.exit_fd: int | None = None
        """Readable once the process has ended (Linux only), even if a program that it started keeps the link open."""
        if hasattr(os, "pidfd_open"):
            self.exit_fd = os.pidfd_open(self.pid)
            self._fds.append(self.exit_fd)

    @property
    def pid(self) -> int:
        """The number of the process."""
        return self._process.pid

    def describe_end(self) -> str:
        """Return how the process ended, for a message; wait a few seconds for its end."""
        try:
            code = self._process.wait(_END_TIMEOUT)
        except subprocess.TimeoutExpired:
            return f"{self.name} (process {self.pid}) has closed its end without ending"
        if code < 0:
            with suppress(ValueError):
                return f"{self.name} (process {self.pid}) was killed by {signal.Signals(-code).name}"
        return f"{self.name} (process {self.pid}) has ended with exit code {code}"

    def wait_readable(self, timeout: float) -> bool:
        """Wait until the link can be read or the process has died; return False if neither happens in time."""
        listener = Listener[None]()
        listener.add(self, None)
        return bool(listener.wait(timeout))

    def kill(self) -> None:
        """Kill the process. Reading from its link then raises :class:`Disconnected`. May be called in any thread."""
        with suppress(OSError):
            self._process.kill()

    def close(self, timeout: float = _END_TIMEOUT) -> None:
        """Close the link and wait for the process to end; kill it if it does not end within ``timeout`` seconds."""
        self.link.close()
        try:
            self._process.wait(timeout)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._release()

    def _release(self) -> None:
        self.link.close()
        while self._fds:
            os.close(self._fds.pop())


class Listener(Generic[K]):
    """Waits for several children at once: for data from any of them, and for the death of any.

    Each child is added with a key, such as the object that it belongs to. The constructor raises RuntimeError if the
    system is not POSIX.
    """

    def __init__(self) -> None:
        require_posix()
        self._poll, self._by_fd = select.poll(), dict[int, tuple[Child, K]]()

    def add(self, child: Child, key: K) -> None:
        """Wait for this child, too."""
        for fd in (child.link.fd, child.exit_fd):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)
                self._by_fd[fd] = child, key

    def wait(self, timeout: float | None = None) -> list[K]:
        """Wait, without the interpreter lock, until some children have sent data or died; return their keys.

        The list is empty if nothing happens within ``timeout`` seconds; None waits without a limit.
        """
        found: dict[K, None] = {}
        for fd, _ in self._poll.poll(None if timeout is None else 1e3 * max(0.0, timeout)):
            child, key = self._by_fd[fd]
            if fd == child.exit_fd:
                child.link.finish_reading()
            found[key] = None
        return list(found)


def main(link_fd: int, pipe_fd: int, arguments_fd: int) -> None:
    """Run the target in a child process, then end the process."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    for fd in (link_fd, pipe_fd):
        os.set_inheritable(fd, False)  # a program that an environment starts must not keep the link open
    link = Link(socket.socket(fileno=link_fd))
    _end_with_parent(link_fd, pipe_fd)
    with os.fdopen(arguments_fd, "rb") as file:
        target, args = pickle.load(file)
    with suppress(Disconnected):
        target(link, *args)
    sys.stdout.flush()
    os._exit(0)  # without waiting for threads that an environment may have left running


def _end_with_parent(link_fd: int, pipe_fd: int) -> None:
    """End this process when the parent closes its end of the link, or dies.

    A parent that only closes its end for writing does not end this process. On Linux the kernel sends SIGKILL when the
    parent's end of the pipe is closed; the thread alone would not suffice, since it cannot run while an environment
    holds the interpreter lock.
    """

    def watch() -> None:
        poll = select.poll()
        poll.register(link_fd, select.POLLHUP)
        poll.poll()
        os._exit(1)

    threading.Thread(target=watch, name="rlplay-orphan", daemon=True).start()
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(pipe_fd, fcntl.F_SETOWN, os.getpid())
        fcntl.fcntl(pipe_fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe_fd, fcntl.F_SETFL, os.O_ASYNC)
