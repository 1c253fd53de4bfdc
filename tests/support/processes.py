"""Processes that tests wait for, block and count.

Pickled by value: else each worker process would import this package.
"""

from __future__ import annotations

import os
import sys
from contextlib import suppress
from pathlib import Path

import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class ProcessBlocker:
    """A callable that reports its process, and blocks until this is released or killed: two FIFOs in a folder."""

    def __init__(self, folder):
        folder.mkdir(exist_ok=True)
        self._begun = folder / "begun"
        self._entered, self._release = str(folder / "entered"), str(folder / "release")
        for name in (self._entered, self._release):
            os.mkfifo(name)

    def __call__(self):
        self._begun.touch()
        with open(self._entered, "w") as file:
            file.write(str(os.getpid()))
        with open(self._release) as file:
            file.read()

    def has_begun(self):
        """Return whether a process has made the call."""
        return self._begun.exists()

    def wait_until_entered(self):
        """Wait until a process has made the call; return its process id."""
        with open(self._entered) as file:
            return int(file.read())

    def release(self):
        """Let the blocked process go on."""
        with open(self._release, "w"):
            pass


def is_alive(pid):
    """Return whether a process runs. A zombie, which has ended and was not waited for, does not."""
    with suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def child_processes():
    """Return the process ids of all children of this process, zombies among them."""
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since
            found |= {int(pid) for pid in children.read_text().split()}
    return found


def resident():
    """Return how much of this process is in memory, in MiB."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGESIZE") / 2**20
