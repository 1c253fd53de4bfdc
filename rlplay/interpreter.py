"""Facts about the interpreter: whether a lock lets only one thread at a time run Python, and how many cores it may use.

The only module that asks for the lock. Imports nothing of ``rlplay``.
"""

from __future__ import annotations

import os
import sys
import sysconfig

__all__ = ["has_lock", "is_free_threaded_build", "options_for_children", "usable_cores"]


def has_lock() -> bool:
    """Return whether the interpreter lock is on. It can be off only in a free-threaded build.

    In a free-threaded build the import of an extension module may switch the lock on, for the rest of the process.
    """
    return bool(getattr(sys, "_is_gil_enabled", lambda: True)())


def is_free_threaded_build() -> bool:
    """Return whether this interpreter can run without the lock."""
    return bool(sysconfig.get_config_var("Py_GIL_DISABLED"))


def options_for_children() -> list[str]:
    """Return the command-line options by which a child interpreter makes the choice of ``-X gil=0`` or ``-X gil=1``.

    The environment variable ``PYTHON_GIL`` needs no option: children inherit it. (They read it even if this interpreter
    ignores the environment.)
    """
    choice = sys._xoptions.get("gil")
    return [] if choice is None else ["-X", "gil" if choice is True else f"gil={choice}"]


def usable_cores() -> int:
    """Return the number of cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
