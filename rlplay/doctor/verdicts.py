"""The verdicts of the doctor: pure functions from facts about the machine to a :class:`Check`.

Must not look at the machine itself: the facts are arguments, so that any machine can be tested.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

__all__ = [
    "FAIL",
    "NEEDED",
    "OK",
    "WARN",
    "Check",
    "bandwidth",
    "cores",
    "environments",
    "memory",
    "no_cuda",
    "package",
    "python",
]

OK, WARN, FAIL = "ok", "warn", "fail"

NEEDED = "rlplay needs it"
"""Purpose of the packages that rlplay cannot work without."""


class Check(NamedTuple):
    """The result of one check."""

    name: str
    verdict: str
    """``ok``; ``warn``: something is slow or missing; ``fail``: something that rlplay needs is broken."""
    found: str
    remedy: str = ""


def python(version: tuple[int, ...], *, free_threaded: bool, has_lock: bool, switched_on_by: str = "") -> Check:
    """Judge the interpreter.

    Parameters
    ----------
    version : tuple of int
    free_threaded : bool
        Whether it is a free-threaded build, which can run without the interpreter lock.
    has_lock : bool
        Whether the interpreter lock is on.
    switched_on_by : str
        In a free-threaded build with the lock: the extension module whose import has switched the lock on; an empty
        string if the user has, or if that cannot be told.
    """
    found = ".".join(map(str, version))
    if version < (3, 10):
        return Check("python", FAIL, found, "rlplay needs Python 3.10 or newer")
    if not free_threaded:
        return Check("python", OK, f"{found}, with the interpreter lock")
    if not has_lock:
        return Check("python", OK, f"{found}, free-threaded: the interpreter lock is off, threads run side by side")
    found += ", free-threaded, but the interpreter lock is on"
    if not switched_on_by:
        return Check(
            "python", WARN, found, "leave out `-X gil=1` and `PYTHON_GIL=1`, if you have not set them on purpose"
        )
    remedy = (
        f"install a version of {switched_on_by.split('.')[0]} that declares that it needs no lock, or at your own risk "
        "keep the lock off: PYTHON_GIL=0"
    )
    return Check("python", WARN, f"{found}: the import of {switched_on_by} has switched it on", remedy)


def package(name: str, version: str | None, least: tuple[int, ...], purpose: str) -> Check:
    """Judge the version of a package.

    Parameters
    ----------
    name : str
        For ``pip install``.
    version : str or None
        The installed version; None if the package is not installed.
    least : tuple of int
        The oldest version that works; all zeros if any version does.
    purpose : str
        What the package is for; :data:`NEEDED` if rlplay cannot work without it.
    """
    needed, wanted = purpose == NEEDED, ".".join(map(str, least))
    install = f"{purpose}: pip install " + (f'"{name}>={wanted}"' if any(least) else name)
    if version is None:
        return Check(name, FAIL, "not there", install) if needed else Check(name, OK, f"not there ({purpose})")
    if _major_minor(version) < least:
        return Check(name, FAIL if needed else WARN, f"{version}, older than {wanted}", install)
    return Check(name, OK, version)


def _major_minor(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2])


def cores(usable: int, threads: int) -> Check:
    """Judge the number of usable cores, and the number of threads that torch uses for one operation."""
    found = f"{usable} usable, torch works with {threads} thread{'s' * (threads != 1)}"
    if usable == 1:
        return Check("cores", WARN, found, "on one core only waiting can overlap: use `same`, or more cores")
    if threads > usable:
        return Check("cores", WARN, found, f"more threads than cores are slow: torch.set_num_threads({usable})")
    if threads > 1:
        found += "; small networks on the CPU are faster with one: torch.set_num_threads(1)"
    return Check("cores", OK, found)


def no_cuda(built_for: str | None, driver: bool) -> Check:
    """Judge a machine on which torch finds no CUDA device.

    Parameters
    ----------
    built_for : str or None
        The CUDA version that torch is built for; None if torch is built for the CPU only.
    driver : bool
        Whether an NVIDIA driver is installed.
    """
    if not driver:
        return Check("CUDA", OK, "no device: everything runs on the host")
    if built_for is None:
        remedy = "this torch is built for the CPU only: install one with CUDA, see https://pytorch.org/get-started"
        return Check("CUDA", WARN, "a driver, but torch cannot use it", remedy)
    remedy = f"torch needs CUDA {built_for}: check that `nvidia-smi` works, and that the driver is new enough"
    return Check("CUDA", WARN, "a driver, but no device that torch can use", remedy)


def memory(device: str, free: int, total: int) -> Check:
    """Judge the free memory of a device; in bytes."""
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < 1e9:
        remedy = "other processes use the memory: see `nvidia-smi`, or choose another device"
        return Check(f"{device}, memory", WARN, found, remedy)
    return Check(f"{device}, memory", OK, found)


def bandwidth(device: str, pinned: float, pageable: float) -> Check:
    """Judge the speed of copies from the host to a device, from both kinds of host memory; in bytes per second."""
    name, found = f"{device}, host to device", f"{pinned / 1e9:.1f} GB/s pinned, {pageable / 1e9:.1f} GB/s pageable"
    if pinned < 2e9:
        return Check(name, WARN, found, "a slow link: keep observations small (uint8), or `actor_device='cpu'`")
    if pinned < pageable:
        return Check(name, WARN, found, "pinned memory should be faster: this may be due to a virtual machine")
    return Check(name, OK, found)


def environments(works: Mapping[str, bool]) -> Check:
    """Judge the libraries of environments: for each that is installed, whether it works."""
    usable = [name for name in works if works[name]]
    if usable:
        return Check("environments", OK, f"those of {' and '.join(usable)} work")
    install = "pip install gymnasium, unless you have environments of your own"
    if works:
        return Check("environments", FAIL, f"none: {' and '.join(works)} cannot be used", install)
    return Check("environments", WARN, "neither gym nor gymnasium", install)
