"""Facts about the interpreter (its lock, its cores, closed standard streams), and what child interpreters are given.

The only module that asks whether a lock lets only one thread at a time run Python. Imports nothing of ``rlplay``.
"""

from __future__ import annotations

import os
import subprocess
import sys
import sysconfig
from multiprocessing.process import ORIGINAL_DIR  # type: ignore[attr-defined]

__all__ = [
    "cover_closed_streams",
    "has_lock",
    "is_free_threaded_build",
    "options_for_children",
    "preamble_of_children",
    "usable_cores",
]


def has_lock() -> bool:
    """Return whether the interpreter lock is on. It can be off only in a free-threaded build.

    In a free-threaded build the import of an extension module may switch the lock on, for the rest of the process.
    """
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def is_free_threaded_build() -> bool:
    """Return whether this interpreter can run without the lock."""
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def options_for_children() -> list[str]:
    """Return the command-line options of this interpreter, such as ``-O`` and ``-W error``, for a child interpreter.

    They are those that ``multiprocessing`` gives to its children, and ``-X gil=0`` or ``-X gil=1``. The environment
    variable ``PYTHON_GIL`` needs no option: children inherit it, and ignore it (``-E``) if this interpreter does.
    """
    options: list[str] = subprocess._args_from_interpreter_flags()  # type: ignore[attr-defined]
    choice = sys._xoptions.get("gil")
    lock = "gil" if choice is True else f"gil={choice}"
    return options if choice is None or lock in options else [*options, "-X", lock]


def preamble_of_children() -> str:
    """Return the statements by which a child interpreter gets the search path of this one.

    As for the children of ``multiprocessing``, the entry ``''`` is the folder that the program was started in: it may
    have changed its folder since. Entries that are no strings are left out: Python ignores them, too.
    """
    path = [one or ORIGINAL_DIR or "" for one in sys.path if isinstance(one, str)]
    return f"import sys; sys.path[:] = {path!r}; "


def cover_closed_streams() -> list[int]:
    """Open the null device in place of each standard stream that is closed; return the numbers of these descriptors.

    What is opened afterwards gets no number of a standard stream, to which libraries in other languages write.
    """
    covered = list[int]()
    while (fd := os.open(os.devnull, os.O_RDWR)) <= 2:
        covered.append(fd)
    os.close(fd)
    return covered


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
