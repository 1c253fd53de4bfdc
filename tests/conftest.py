"""What holds for every test: it leaves nothing running, and it does not spread over the cores."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import torch

from rlplay import sampling

_GRACE = 5.0  # seconds within which what is ending anyway must have ended


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture
def no_stock(monkeypatch):
    """Let the host draw noise call by call, as is done for a device; some processors draw other numbers in stock."""
    monkeypatch.setattr(sampling, "_STOCK", 1)


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    threads, processes, failed = _threads(), _processes(), request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        return  # its traceback may hold what it has left
    if _threads() - threads or _processes() - processes:
        gc.collect()  # takes a while, and only matters if something is there that a reference cycle may hold
    for thread in _threads() - threads:
        thread.join(_GRACE)
    for process in multiprocessing.active_children():
        process.join(_GRACE)
    left = [thread.name for thread in _threads() - threads], _processes() - processes
    assert not any(left), f"the test has left threads {left[0]} and processes {left[1]} alive"


def _threads() -> set[threading.Thread]:
    """All threads that Python knows, but those that C++ code only lent to it."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Dummy-")}


def _processes() -> set[int]:
    """Child processes, also those that ended and nobody waited for; not Python's own tracker of shared memory."""
    multiprocessing.active_children()  # waits for those that it started
    own = getattr(resource_tracker._resource_tracker, "_pid", None)
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError):  # a thread that has ended since
            found |= {int(pid) for pid in children.read_text().split()}
    return found - {own}
