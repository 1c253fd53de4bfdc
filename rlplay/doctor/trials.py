"""The trials of the doctor: each uses one thing of this machine for a moment, and describes the result in a few words.

A trial raises if something is broken; :func:`attempt` makes a failed check of it.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from importlib import metadata
from time import perf_counter
from typing import Any

import torch

from ..engine import BaseActorModule
from ..engine.concurrency.child import Child
from ..engine.concurrency.link import Disconnected
from ..engine.concurrency.shared_memory import map_memory, new_memory
from ..engine.rollout import multi, same, single, threaded
from ..interpreter import options_for_children
from .in_processes import make_environment, send_hello
from .verdicts import FAIL, OK, Check, bandwidth, memory, no_cuda

__all__ = [
    "ENGINES",
    "attempt",
    "check_cuda",
    "collect_same",
    "find_lock_switch",
    "installed_version",
    "share_memory",
    "start_child",
]

_COPY_BYTES = 64 * 2**20


def attempt(name: str, trial: Callable[[], str], remedy: str, verdict_if_broken: str = FAIL) -> Check:
    """Run a trial, without its warnings, and make a check of what it returns or raises."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Check(name, OK, trial())
    except Exception as error:
        return _broken(name, error, remedy, verdict_if_broken)


def _broken(name: str, error: Exception, remedy: str, verdict: str = FAIL) -> Check:
    return Check(name, verdict, f"{type(error).__name__}: {error}", remedy)


def installed_version(name: str) -> str | None:
    """Return the version of an installed package; None if the package is not installed."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def find_lock_switch(packages: Iterable[str]) -> str:
    """Return the extension module that switches the interpreter lock on when the packages are imported, or ``""``.

    The packages are imported one after another in an interpreter of their own, which warns of such a module and names
    it; without the warning the name is that of the package.
    """
    command = [sys.executable, *options_for_children(), "-c", _FIND_LOCK_SWITCH, *packages]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120.0, check=False)
    return done.stdout.rpartition("switched on by ")[2].strip()


_FIND_LOCK_SWITCH = """
import importlib, re, sys, warnings
has_lock = lambda: getattr(sys, "_is_gil_enabled", lambda: True)()
with warnings.catch_warnings(record=True) as told:
    warnings.simplefilter("always")
    for name in sys.argv[1:] if not has_lock() else ():
        try:
            importlib.import_module(name)
        except Exception:
            continue
        if has_lock():
            modules = [re.search("load module '([^']+)'", str(one.message)) for one in told]
            print("switched on by", next((module[1] for module in modules if module), name))
            break
"""


# CUDA


def check_cuda() -> Iterator[Check]:
    """Check each CUDA device: its memory, page-locked host memory, and the speed of copies from the host."""
    if not torch.cuda.is_available():
        yield no_cuda(torch.version.cuda, os.path.exists("/proc/driver/nvidia/version"))
        return
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        remedy = f"check that `torch.zeros(1, device='{device}')` works, and that the device is not full"
        try:
            name, found = torch.cuda.get_device_name(index), torch.cuda.mem_get_info(index)
        except Exception as error:
            yield _broken(device, error, remedy)
            continue
        yield Check(device, OK, f"{name}; torch is built for CUDA {torch.version.cuda}, driver {_driver_version()}")
        yield memory(device, *found)
        yield attempt(
            f"{device}, pinned memory", _pin_memory, "raise the limit of locked memory: `ulimit -l unlimited`"
        )
        try:
            rates = [_copy_rate(device, pinned=pinned) for pinned in (True, False)]
        except Exception as error:
            yield _broken(f"{device}, host to device", error, remedy)
        else:
            yield bandwidth(device, *rates)


def _driver_version() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return next(word for word in file.readline().split() if word[0].isdigit())
    except (OSError, StopIteration):
        return "unknown"


def _pin_memory() -> str:
    torch.empty(_COPY_BYTES, dtype=torch.uint8, device="cpu", pin_memory=True)
    return "works"


def _copy_rate(device: str, *, pinned: bool) -> float:
    """Return the bytes per second of the fastest of four copies from the host to the device."""
    target = torch.empty(_COPY_BYTES, dtype=torch.uint8, device=device)
    source = torch.zeros(_COPY_BYTES, dtype=torch.uint8, device="cpu", pin_memory=pinned)
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize(device)
        started = perf_counter()
        target.copy_(source, non_blocking=True)
        torch.cuda.synchronize(device)
        best = min(best, perf_counter() - started)
    return _COPY_BYTES / best


# processes and shared memory


def share_memory() -> str:
    """Map shared memory twice, and check that both mappings show what was written."""
    fd = new_memory(_COPY_BYTES)
    try:
        one, other = map_memory(fd), map_memory(fd)
    finally:
        os.close(fd)
    one[-1] = 7
    if other[-1] != 7:
        raise RuntimeError("one mapping does not show what was written through the other")
    return "works"


def start_child() -> str:
    """Start a child process, and wait for its message."""
    started = perf_counter()
    child = Child(send_hello, name="the doctor's child")
    try:
        message = child.link.read_object() if child.wait_readable(timeout=60.0) else None
    except Disconnected:
        message = None
    finally:
        child.close()
    if message != "hello":
        raise RuntimeError(f"the child process sent {message!r} instead of 'hello'")
    return f"starts in {perf_counter() - started:.1f} s"


# engines


class _ConstantActor(BaseActorModule):
    """Always takes action 0."""

    def forward(self, obs: torch.Tensor, **ignored: Any) -> tuple[torch.Tensor, tuple[()], tuple[()]]:
        return torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device), (), ()


def collect_same(library: str) -> str:
    """Collect a fragment with ``same``, from environments of a library (``gym`` or ``gymnasium``)."""
    return _collect(partial(same.rollout, [partial(make_environment, library)] * 2))


def _collect_threaded(library: str, **options: Any) -> str:
    return _collect(partial(threaded.rollout, [partial(make_environment, library)] * 2, **options))


def _collect_in_processes(rollout: Callable[..., Any], library: str, **options: Any) -> str:
    return _collect(partial(rollout, partial(make_environment, library), **options))


def _collect(open_feed: Callable[..., Any]) -> str:
    started = perf_counter()
    with open_feed(actor=_ConstantActor(), n_steps=4, seed=0) as feed:
        steps = next(feed).env.valid.sum()
    return f"{int(steps)} steps in {perf_counter() - started:.1f} s"


ENGINES: Mapping[str, Callable[[str], str]] = {
    "threaded": _collect_threaded,
    "threaded, worker threads": partial(_collect_threaded, workers=2, worker="thread"),
    "threaded, worker processes": partial(_collect_threaded, workers=2),
    "single": partial(_collect_in_processes, single.rollout, n_envs=2),
    "multi": partial(_collect_in_processes, multi.rollout, n_actors=2, n_per_actor=1),
}
"""A trial of each engine but ``same``; its argument is the library that makes the environments."""
