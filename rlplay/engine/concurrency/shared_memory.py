"""Shared memory without a name: nothing has to be removed, whichever process dies. Must not import torch."""

from __future__ import annotations

import mmap
import os
import tempfile

import numpy as np
import numpy.typing as npt

__all__ = ["map_memory", "new_memory", "receive_memory"]


def new_memory(size: int) -> int:
    """Create ``size`` bytes of zeroed shared memory; return its file descriptor, which the caller has to close."""
    if hasattr(os, "memfd_create"):
        fd = os.memfd_create("rlplay", os.MFD_CLOEXEC)
    else:
        with tempfile.TemporaryFile() as file:
            fd = os.dup(file.fileno())
    try:
        os.ftruncate(fd, size)
    except BaseException:
        os.close(fd)
        raise
    return fd


def map_memory(fd: int) -> npt.NDArray[np.uint8]:
    """Map shared memory for as long as the array or a view of it lives. The file descriptor may be closed."""
    return np.frombuffer(mmap.mmap(fd, 0), np.uint8)


def receive_memory(fd: int) -> npt.NDArray[np.uint8]:
    """Map shared memory whose file descriptor was received from another process, and close the descriptor."""
    try:
        return map_memory(fd)
    finally:
        os.close(fd)
