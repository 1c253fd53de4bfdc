"""What a child process runs: its target, under the watch of what ends it together with its parent.

A child ends as a Python program does: the interpreter waits for threads that are not daemonic, calls the functions of
``atexit``, ends the daemonic processes of ``multiprocessing`` and flushes files. Must not import torch.
"""

from __future__ import annotations

import atexit
import gc
import io
import os
import pickle
import select
import signal
import socket
import sys
import threading
from contextlib import closing, suppress

from ...interpreter import cover_closed_streams
from .link import Disconnected, Link

__all__ = ["main"]


def main(link_fd: int, pipe_fd: int, arguments_fd: int, parent: int) -> None:
    """Run the target in a child process of the process ``parent``; returning ends the child."""
    signal.signal(signal.SIGINT, _do_nothing)
    signal.siginterrupt(signal.SIGINT, False)
    cover_closed_streams()
    atexit.register(_flush_files)  # the first one registered is the last one called
    for fd in (link_fd, pipe_fd):
        os.set_inheritable(fd, False)  # a program that an environment starts must not keep the link open
    link = Link(socket.socket(fileno=link_fd))
    _end_with_parent(link_fd, pipe_fd, parent)
    with os.fdopen(arguments_fd, "rb") as file:
        sys.argv[:] = pickle.load(file)
        target, args = pickle.load(file)
    gc.freeze()  # else each collection at the end searches all of torch, if it has been imported: seconds under load
    with suppress(Disconnected), closing(link):  # the watch has a descriptor of its own, so the parent sees no end yet
        target(link, *args)


def _do_nothing(number: int, frame: object) -> None:
    """Handle SIGINT. If the signal were ignored, the programs that an environment starts would ignore it, too."""


def _flush_files() -> None:
    """Flush all files: the garbage collector may close a file in a reference cycle before its buffer is written."""
    for thing in gc.get_objects():
        if issubclass(type(thing), io.IOBase):
            with suppress(Exception):  # it is closed, or not open for writing
                thing.flush()


def _end_with_parent(link_fd: int, pipe_fd: int, parent: int) -> None:
    """Kill this process and its process group when the parent dies.

    The parent closes its end of the link only after this process has ended. On Linux the kernel sends SIGKILL to the
    group when the parent's end of the pipe is closed; the thread alone would not suffice, since it cannot run while an
    environment holds the interpreter lock. The pipe alone would not suffice either: a process that the parent has
    forked keeps the parent's end open.
    """
    poll = select.poll()
    poll.register(os.dup(link_fd), select.POLLHUP)  # a descriptor of its own, open until the process has ended
    if hasattr(os, "pidfd_open"):
        with suppress(OSError):  # the parent has died already: then the link is closed, or getppid tells
            poll.register(os.pidfd_open(parent), select.POLLIN)

    def watch() -> None:
        if os.getppid() == parent:
            poll.poll()
        os.killpg(os.getpgrp(), signal.SIGKILL)

    threading.Thread(target=watch, name="rlplay-orphan", daemon=True).start()
    if sys.platform == "linux":
        import fcntl

        fcntl.fcntl(pipe_fd, fcntl.F_SETOWN, -os.getpgrp())  # negative: the process group
        fcntl.fcntl(pipe_fd, fcntl.F_SETSIG, signal.SIGKILL)
        fcntl.fcntl(pipe_fd, fcntl.F_SETFL, os.O_ASYNC)
