"""Fixtures of all tests: a test leaves no thread and no process behind; one torch thread; time for a busy machine."""

from __future__ import annotations

import gc
import multiprocessing
import threading
from contextlib import suppress
from multiprocessing import resource_tracker
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, settings
from tqdm import tqdm

from rlplay import sampling
from rlplay.engine.acting import noise
from rlplay.engine.cluster.ray_collectors import RayCollectors
from rlplay.engine.concurrency.child import Child
from rlplay.engine.feed.driver import Driver
from rlplay.engine.memory.cuda import CudaLane
from rlplay.engine.stepping.pool import WorkerPool
from tests.support.threads import LONG

# no test asserts that something is fast, and so hypothesis does not either: the machine may be busy
settings.register_profile("rlplay", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("rlplay")


@pytest.fixture(scope="session", autouse=True)
def one_torch_thread():
    torch.set_num_threads(1)


@pytest.fixture(scope="session", autouse=True)
def no_hurry():
    """Give threads and processes long to end: the machine may be busy. Tests of those that never end shorten this."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Driver, "stop_timeout", LONG)
        patch.setattr(WorkerPool, "close_timeout", LONG)
        patch.setattr(Child, "grace", LONG)
        patch.setattr(RayCollectors, "grace", LONG)
        yield


@pytest.fixture
def bfloat16_by_default():
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.bfloat16)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def no_stock(monkeypatch):
    """Draw noise call by call, on the host and on a device: so both draw the same numbers, on each processor."""
    monkeypatch.setattr(sampling, "_STOCK", 1)
    monkeypatch.setattr(noise, "BLOCK", 0)


@pytest.fixture
def no_monitor(monkeypatch):
    """Turn off the monitor of the progress bars of the compiler: its thread does not end."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.fixture
def captures(monkeypatch):
    """List what was captured; capturing that fails is an error here, as all warnings are."""
    found, really = [], CudaLane.capture
    monkeypatch.setattr(CudaLane, "capture", lambda *args: found.append(really(*args)) or found[-1])
    return found


@pytest.fixture(autouse=True)
def nothing_left_behind(request):
    threads, processes, failed = _threads(), _processes(), request.session.testsfailed
    yield
    if request.session.testsfailed > failed:
        return  # the traceback of a failed test may keep feeds alive
    if _threads() - threads or _processes() - processes:
        gc.collect()  # a reference cycle may keep a feed alive; slow, so only if there is something left
    for thread in _threads() - threads:
        thread.join(LONG)
    for process in multiprocessing.active_children():
        process.join(LONG)
    left = [thread.name for thread in _threads() - threads], _processes() - processes
    assert not any(left), f"the test has left threads {left[0]} and processes {left[1]} alive"


def _threads() -> set[threading.Thread]:
    """Return all Python threads except those that C++ code has started."""
    return {thread for thread in threading.enumerate() if not thread.name.startswith("Dummy-")}


def _processes() -> set[int]:
    """Return the ids of child processes, zombies among them, without Python's tracker of shared memory."""
    multiprocessing.active_children()  # waits for the processes of multiprocessing that have ended
    own = getattr(resource_tracker._resource_tracker, "_pid", None)
    found = set()
    for children in Path("/proc/self/task").glob("*/children"):
        with suppress(FileNotFoundError, ProcessLookupError):  # the thread has ended since
            found |= {int(pid) for pid in children.read_text().split()}
    return found - {own}
