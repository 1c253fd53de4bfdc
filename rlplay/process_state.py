"""State that belongs to the whole process, changed for a while by one thread at a time.

A thread that saves such state, changes it and puts it back undoes what another thread has changed meanwhile: a global
random generator would give the same numbers twice, and warnings would stay ignored. So the threads of rlplay exclude
each other here. What the user's threads do to that state at the same moment cannot be guarded.

A thread that needs both locks takes that of the generators first, then PyTorch's compile lock. All locks are reentrant,
since a finalizer may run in a thread that has one.
"""

from __future__ import annotations

import gc
import threading
import warnings
from collections.abc import Iterator
from functools import cache
from typing import Any

import torch

from .contexts import contextmanager

__all__ = ["compiling", "draw_seed", "garbage_collector_off", "generators_held", "global_generator_kept"]

_PATIENCE = 60.0
"""Seconds to wait for the lock of the generators. A thread that is stuck in an actor's step has it for ever."""

_generators, _importing, _counting = threading.RLock(), threading.RLock(), threading.RLock()


@contextmanager
def generators_held() -> Iterator[None]:
    """Keep other threads of rlplay from drawing, saving or restoring the global generators of torch, NumPy and Python.

    Waits at most 60 seconds for another thread, then goes on all the same: a thread that has been stuck for so long
    hardly puts anything back.
    """
    held = _generators.acquire(timeout=_PATIENCE)
    try:
        yield
    finally:
        if held:
            _generators.release()


@contextmanager
def global_generator_kept(device: torch.device) -> Iterator[None]:
    """Restore torch's global random generators (of the CPU, and of ``device``) at the end of the block."""
    with generators_held():
        kept = torch.random.fork_rng([device] if device.type == "cuda" else [])
        kept.__enter__()
        try:
            yield
        finally:
            kept.__exit__(None, None, None)  # without the exception: `contexts.contextmanager` says why


def draw_seed() -> int:
    """Draw a seed from torch's global generator of the CPU."""
    with generators_held():
        return int(torch.randint(2**63 - 1, (), device="cpu"))


@contextmanager
def compiling() -> Iterator[None]:
    """Hold PyTorch's compile lock, since tracing and compiling change state of the whole process; ignore warnings.

    The compiler also saves and restores the global generators.
    """
    with _importing:
        compile_lock = _compile_lock()
    with generators_held(), compile_lock, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


@cache
def _compile_lock() -> Any:
    """Import PyTorch's compiler, which takes seconds and may warn."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        from torch._dynamo.convert_frame import compile_lock

    return compile_lock


_n_off, _was_on = 0, True


@contextmanager
def garbage_collector_off() -> Iterator[None]:
    """Turn the garbage collector off until the last of the blocks that overlap in several threads has ended."""
    global _n_off, _was_on
    with _counting:
        if not _n_off:
            _was_on = gc.isenabled()
        _n_off += 1
        gc.disable()
    try:
        yield
    finally:
        with _counting:
            _n_off -= 1
            if not _n_off and _was_on:
                gc.enable()
