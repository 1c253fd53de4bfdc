"""Child processes: started as fresh interpreters, watched for their death, never left behind.

Nothing is forked, so neither threads nor locks nor the state of CUDA are copied, and the caller's script is not run
again; what a child needs of that script is sent by value (cloudpickle). A child has the interpreter lock on or off as
the parent's options say (``-X gil``, ``PYTHON_GIL``). Parent and child are connected by a socket pair, which breaks
when either of them dies.

Must not import torch. POSIX-only modules are imported only where a process is started.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Callable
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any, Generic, TypeVar

import cloudpickle

from ...interpreter import cover_closed_streams, options_for_children, preamble_of_children
from .channel import Closed
from .link import Link
from .shared_memory import new_memory

__all__ = ["Child", "Listener"]

K = TypeVar("K")


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

    The process leads a process group of its own, to which the programs belong that it starts. The group is killed if
    the process does not end in time, or if it ends otherwise than a Python program that succeeds.

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

    grace = 5.0
    """Seconds that a child has to end by itself, from the request on."""

    def __init__(self, target: Callable[..., None], *args: Any, name: str) -> None:
        require_posix()
        self.name = name
        self._killed = self._end_told = False
        self._reaping = threading.RLock()  # reentrant: a finalizer may call `kill` in any thread
        data = cloudpickle.dumps(getattr(sys, "argv", [])) + cloudpickle.dumps((target, args))
        # the first stack closes what only the child needs, at any rate; the second one all else, if something fails
        with ExitStack() as childs, ExitStack() as on_error:
            for fd in cover_closed_streams():
                childs.callback(os.close, fd)
            ours, theirs = socket.socketpair()
            on_error.enter_context(ours)
            childs.enter_context(theirs)
            child_end, parent_end = os.pipe()
            childs.callback(os.close, child_end)
            on_error.callback(os.close, parent_end)
            arguments = childs.enter_context(os.fdopen(new_memory(len(data)), "wb"))
            arguments.write(data)
            arguments.seek(0)
            fds = theirs.fileno(), child_end, arguments.fileno()
            main = f"from rlplay.engine.concurrency.child_main import main; main{(*fds, os.getpid())}"
            self._process = subprocess.Popen(
                [sys.executable, *options_for_children(), "-c", preamble_of_children() + main],
                stdin=subprocess.DEVNULL,
                pass_fds=fds,
                start_new_session=True,  # so that Ctrl-C interrupts only the parent, from the very first moment
                env={**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"},
            )
            on_error.callback(self._kill_and_wait)
            self.exit_fd: int | None = None
            """Readable once the process has ended, even if what it has started keeps the link open; may be None."""
            self._fds = [parent_end]
            with suppress(AttributeError, OSError):  # only Linux has it, and a sandbox may forbid it
                self.exit_fd = os.pidfd_open(self.pid)
                self._fds.append(self.exit_fd)
            on_error.pop_all()
        self.link = Link(ours)

    @property
    def pid(self) -> int:
        """The number of the process, and of its process group."""
        return self._process.pid

    @property
    def released(self) -> bool:
        """Whether :meth:`close` has waited for the end of the process."""
        return not self._fds

    def describe_end(self) -> str:
        """Return how the process ended, for a message; wait a few seconds for its end."""
        self._end_told = True
        code = self._exit_code(self.grace)
        if code is None:
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
        """Kill the process and its process group; a read from its link then ends. May be called in any thread."""
        if not self._reaping.acquire(blocking=False):
            return  # the thread that has the lock kills the process as well, and may wait for a process that cannot end
        try:
            if self._process.returncode is None:  # else the number may belong to another process by now
                self._killed = self._killed or self._exit_code(0.0) is None
                self._kill_group()
        finally:
            self._reaping.release()

    def request_end(self) -> None:
        """Request that the process ends, by closing the link for writing. May be called repeatedly."""
        self.link.finish_writing()

    def close(self, deadline: float | None = None, *, doing: Callable[[], str] = str) -> list[str]:
        """Request the end of the process and wait for it; kill its process group if it does not end in time.

        Parameters
        ----------
        deadline : float, optional
            When ``monotonic()`` reaches it, the group is killed. By default in ``grace`` seconds.
        doing : callable
            Returns what keeps the process from ending, for the message.

        Returns
        -------
        list of str
            What went wrong in ending the process, to be shown to the user as warnings.
        """
        try:
            self.request_end()
            reason = ""
            code = self._exit_code(self.grace if deadline is None else deadline - monotonic())
            if code is None:
                reason = doing()
                self.kill()
            elif code != 0:
                self._kill_group()  # it had no opportunity to end what it has started
        finally:
            self._kill_and_wait()
            self._release()
        if self._killed:
            return [
                f"{self.name} (process {self.pid}) had not ended {self.grace:g} s after it was requested to, and was "
                f"killed, with its process group (the programs that it had started){': ' if reason else ''}{reason}."
            ]
        return [f"{self.describe_end()}, after it was requested to end."] if code and not self._end_told else []

    def _exit_code(self, timeout: float) -> int | None:
        """Wait for the end of the process; return its exit code, negative for a signal, or None if it does not end.

        Where possible the process remains a zombie, so that no other process or group can get its number.
        """
        if self.exit_fd is None or self._process.returncode is not None:
            with suppress(subprocess.TimeoutExpired):
                return self._process.wait(max(0.0, timeout))
            return None
        poll = select.poll()
        poll.register(self.exit_fd, select.POLLIN)
        if not poll.poll(1e3 * max(0.0, timeout)):
            return None
        try:
            end = os.waitid(os.P_PID, self.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
        except ChildProcessError:  # somebody else has waited for the process
            end = None
        if end is None:
            return self._process.wait()
        return int(end.si_status) if end.si_code == os.CLD_EXITED else -int(end.si_status)

    def _kill_group(self) -> None:
        with suppress(OSError):
            os.killpg(self.pid, signal.SIGKILL)

    def _kill_and_wait(self) -> None:
        """Wait for the process, which is killed first if it has not ended."""
        with self._reaping:  # meanwhile no other thread may send a signal to the process's number
            if self._exit_code(0.0) is None:
                self._kill_group()
            self._process.wait()

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
        self._wakers: tuple[socket.socket, ...] = ()
        self._ended = False
        self._waking = threading.RLock()  # reentrant: a finalizer may wake in any thread

    def add(self, child: Child, key: K) -> None:
        """Wait for this child, too."""
        for fd in (child.link.fd, child.exit_fd):
            if fd is not None:
                self._poll.register(fd, select.POLLIN)
                self._by_fd[fd] = child, key

    def allow_waking(self) -> Callable[[], None]:
        """Return a function that ends all waiting, now and later, by :class:`Closed`; any thread may call it.

        :meth:`close` is to be called then.
        """
        self._wakers = awaited, waker = socket.socketpair()
        waker.setblocking(False)
        self._poll.register(awaited.fileno(), select.POLLIN)

        def end() -> None:
            self._ended = True
            self.wake()

        return end

    def wake(self) -> None:
        """Make :meth:`wait` return: the call under way, else the next. In any thread, after :meth:`allow_waking`."""
        with self._waking, suppress(OSError):  # with the lock, so that `close` does not free the number meanwhile
            self._wakers[1].send(b"\0")

    def wait(self, timeout: float | None = None) -> list[K]:
        """Wait, without the interpreter lock, until some children have sent data or died; return their keys.

        The list is empty if nothing happens within ``timeout`` seconds (None waits without a limit), or after
        :meth:`wake`.
        """
        found: dict[K, None] = {}
        if self._ended:
            raise Closed
        for fd, _ in self._poll.poll(None if timeout is None else 1e3 * max(0.0, timeout)):
            if fd not in self._by_fd:
                self._wakers[0].recv(4096)
                if self._ended:  # it is set before the byte is sent, so a byte that is received here is not missed
                    raise Closed
                continue
            child, key = self._by_fd[fd]
            if fd == child.exit_fd:
                child.link.finish_reading()
            found[key] = None
        return list(found)

    def close(self) -> None:
        """Close what :meth:`allow_waking` has opened. May be called repeatedly."""
        with self._waking:
            for waker in self._wakers:
                waker.close()
