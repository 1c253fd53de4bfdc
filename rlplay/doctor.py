"""The doctor: what of rlplay works on this machine, and what to do about the rest. ``python -m rlplay doctor``."""

from __future__ import annotations

import importlib
import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import partial
from importlib import metadata
from time import perf_counter
from typing import Any, NamedTuple

import torch

from .engine import BaseActorModule
from .engine.concurrency.child import Child
from .engine.concurrency.link import Disconnected, Link
from .engine.concurrency.shared_memory import map_memory, new_memory
from .engine.rollout import multi, same, single, threaded

__all__ = ["Check", "broken", "doctor", "examine"]

OK, WARN, FAIL = "ok", "warn", "fail"

_ENVIRONMENT = "CartPole-v1"
_SAMPLE = 64 * 2**20
"""Bytes of which the copying is timed."""


class Check(NamedTuple):
    """What has been looked at, and what is to be done about it."""

    name: str
    verdict: str
    """``ok``; ``warn``: something will be slow, or is not there; ``fail``: something that rlplay needs is broken."""
    found: str
    remedy: str = ""


def examine() -> Iterator[Check]:
    """Look at one thing after the other. What raises is what is broken: the doctor himself goes on."""
    yield python(sys.version_info[:3], not getattr(sys, "_is_gil_enabled", lambda: True)())
    for name, (least, need) in _PACKAGES.items():
        yield package(name, _version(name), least, need)
    yield cores(_usable_cores(), torch.get_num_threads())
    yield from _cuda()
    yield _tried("shared memory", _share, "see that memory is left (`free -h`, `ulimit -v`, a container's limit)")
    yield _tried("child process", _start, "see that this interpreter can start itself: `python -c pass`")
    works = {}
    for name in ("gym", "gymnasium"):
        if _version(name) is not None:
            remedy = f"see whether `{name}.make('{_ENVIRONMENT}').reset()` works, or reinstall {name}"
            check = _tried(f"same, {name}", partial(_play, name), remedy, WARN)
            works[name] = check.verdict == OK
            yield check
    yield environments(works)
    for name, play in _ENGINES.items():
        for dialect in [dialect for dialect in works if works[dialect]][-1:]:
            yield _tried(name, partial(play, dialect), "`same` does without it; please report this")


def doctor(*, as_json: bool = False) -> int:
    """Examine this machine, and print what was found: a line each, and a remedy under it where something is amiss.

    Returns
    -------
    int
        The exit code: 1 if something that rlplay needs is broken, else 0.
    """
    checks = []
    for check in examine():
        checks.append(check)
        if not as_json:
            print(line(check), flush=True)
    if as_json:
        print(json.dumps([check._asdict() for check in checks], indent=2))
    elif broken(checks):
        print("\nSomething that rlplay needs is broken: see above.")
    else:
        print("\nrlplay works here.")
    return int(broken(checks))


def broken(checks: Sequence[Check]) -> bool:
    """Whether something that rlplay needs is broken."""
    return any(check.verdict == FAIL for check in checks)


def line(check: Check) -> str:
    """Put a check into words: one line, and its remedy on another."""
    said = f"{check.verdict:>4}  {check.name}: {check.found}"
    return f"{said}\n      -> {check.remedy}" if check.remedy else said


# what is thought of what has been found: pure functions


def python(version: tuple[int, ...], free_threaded: bool) -> Check:
    """Judge the interpreter."""
    found = ".".join(map(str, version)) + (", free-threaded" if free_threaded else ", with the interpreter lock")
    if version < (3, 10):
        return Check("python", FAIL, found, "rlplay needs Python 3.10 or newer")
    return Check("python", OK, found)


_PACKAGES = {
    "torch": ((2, 4), "rlplay needs it"),
    "numpy": ((1, 24), "rlplay needs it"),
    "optree": ((0, 13), "rlplay needs it"),
    "cloudpickle": ((0,), "rlplay needs it"),
    "gym": ((0, 21), "for its environments"),
    "gymnasium": ((1, 1), "for its environments"),
    "envpool": ((0,), "for its vector environments"),
    "ale_py": ((0,), "for Atari"),
    "matplotlib": ((0,), "for pictures, such as the demo's"),
}
"""The least version of each package, and what it is for."""


def package(name: str, version: str | None, least: tuple[int, ...], need: str) -> Check:
    """Judge the version of a package; None: it is not there."""
    needed, wanted = need == "rlplay needs it", ".".join(map(str, least))
    install = f"{need}: pip install " + (f'"{name}>={wanted}"' if any(least) else name)
    if version is None:
        return Check(name, FAIL, "not there", install) if needed else Check(name, OK, f"not there ({need})")
    if _numbers(version) < least:
        return Check(name, FAIL if needed else WARN, f"{version}, older than {wanted}", install)
    return Check(name, OK, version)


def cores(usable: int, threads: int) -> Check:
    """Judge the number of cores, and of the threads that torch divides one operation among."""
    found = f"{usable} usable, torch works with {threads} threads"
    if usable == 1:
        return Check("cores", WARN, found, "nothing overlaps on one core but waiting: use `same`, or more cores")
    if threads > usable:
        return Check("cores", WARN, found, f"they get in each other's way: torch.set_num_threads({usable})")
    if threads > 1:
        found += "; small networks on the CPU are faster with one: torch.set_num_threads(1)"
    return Check("cores", OK, found)


def no_cuda(built_for: str | None, driver: bool) -> Check:
    """Judge a machine on which torch finds no CUDA device."""
    if not driver:
        return Check("CUDA", OK, "no device: everything runs on the host")
    if built_for is None:
        remedy = "this torch is built for the CPU only: install one with CUDA, see https://pytorch.org/get-started"
        return Check("CUDA", WARN, "a driver, but torch cannot use it", remedy)
    remedy = f"torch wants CUDA {built_for}: see whether `nvidia-smi` works, and whether the driver is new enough"
    return Check("CUDA", WARN, "a driver, but no device that torch can use", remedy)


def memory(device: str, free: int, total: int) -> Check:
    """Judge how much memory is left on a device; bytes."""
    found = f"{free / 1e9:.1f} of {total / 1e9:.1f} GB free"
    if free < 1e9:
        return Check(f"{device}, memory", WARN, found, "others use it: see `nvidia-smi`, or choose another device")
    return Check(f"{device}, memory", OK, found)


def bandwidth(device: str, pinned: float, pageable: float) -> Check:
    """Judge how fast data come from the host to a device; bytes a second."""
    name, found = f"{device}, host to device", f"{pinned / 1e9:.1f} GB/s pinned, {pageable / 1e9:.1f} GB/s pageable"
    if pinned < 2e9:
        return Check(name, WARN, found, "a slow link: keep observations small (uint8), or `actor_device='cpu'`")
    if pinned < pageable:
        return Check(name, WARN, found, "pinned memory should be the faster: a virtual machine may be in between")
    return Check(name, OK, found)


def environments(works: Mapping[str, bool]) -> Check:
    """Judge which libraries of environments there are, and whether they work."""
    usable = [name for name in works if works[name]]
    if usable:
        return Check("environments", OK, f"of {' and '.join(usable)}")
    install = "pip install gymnasium, unless you bring environments of your own"
    if works:
        return Check("environments", FAIL, f"none: {' and '.join(works)} cannot be used", install)
    return Check("environments", WARN, "neither gym nor gymnasium", install)


def _numbers(version: str) -> tuple[int, ...]:
    parts = version.split("+")[0].split(".")
    return tuple(int("".join(c for c in part if c.isdigit()) or 0) for part in parts[:2])


# what is done in order to find out


def _tried(name: str, attempt: Callable[[], str], remedy: str, otherwise: str = FAIL) -> Check:
    """Try something, which tells what it has found."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return Check(name, OK, attempt())
    except Exception as error:
        return Check(name, otherwise, f"{type(error).__name__}: {error}", remedy)


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _usable_cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def _cuda() -> Iterator[Check]:
    if not torch.cuda.is_available():
        yield no_cuda(torch.version.cuda, os.path.exists("/proc/driver/nvidia/version"))
        return
    for index in range(torch.cuda.device_count()):
        device = f"cuda:{index}"
        name = torch.cuda.get_device_name(index)
        yield Check(device, OK, f"{name}; torch is built for CUDA {torch.version.cuda}, driver {_driver()}")
        yield memory(device, *torch.cuda.mem_get_info(index))
        yield _tried(f"{device}, pinned memory", _pin, "raise the limit of locked memory: `ulimit -l unlimited`")
        try:
            speeds = [_speed(device, pinned=pinned) for pinned in (True, False)]
        except Exception as error:
            remedy = f"see whether `torch.zeros(1, device='{device}')` works, and whether the device is full"
            yield Check(f"{device}, host to device", FAIL, f"{type(error).__name__}: {error}", remedy)
        else:
            yield bandwidth(device, *speeds)


def _driver() -> str:
    try:
        with open("/proc/driver/nvidia/version", encoding="utf-8") as file:
            return next(word for word in file.readline().split() if word[0].isdigit())
    except (OSError, StopIteration):
        return "unknown"


def _pin() -> str:
    torch.empty(_SAMPLE, dtype=torch.uint8, pin_memory=True)
    return "works"


def _speed(device: str, *, pinned: bool) -> float:
    """Time the best of a few copies, in bytes a second."""
    there = torch.empty(_SAMPLE, dtype=torch.uint8, device=device)
    here = torch.zeros(_SAMPLE, dtype=torch.uint8, pin_memory=pinned)
    best = float("inf")
    for _ in range(4):
        torch.cuda.synchronize(device)
        started = perf_counter()
        there.copy_(here, non_blocking=True)
        torch.cuda.synchronize(device)
        best = min(best, perf_counter() - started)
    return _SAMPLE / best


def _share() -> str:
    fd = new_memory(_SAMPLE)
    try:
        one, other = map_memory(fd), map_memory(fd)
    finally:
        os.close(fd)
    one[-1] = 7
    if other[-1] != 7:
        raise RuntimeError("what is written into it is not seen")
    return "works"


def _start() -> str:
    started = perf_counter()
    child = Child(_greet, name="the doctor's child")
    try:
        said = child.link.read_object() if child.wait_readable(timeout=60.0) else None
    except Disconnected:
        said = None
    finally:
        child.close()
    if said != "hello":
        raise RuntimeError(f"it has said {said!r} instead of 'hello'")
    return f"starts in {perf_counter() - started:.1f} s"


def _greet(link: Link) -> None:
    link.write_object("hello")


class _Actor(BaseActorModule):
    """Does always the same."""

    def forward(self, obs: torch.Tensor, **ignored: Any) -> tuple[torch.Tensor, tuple[()], tuple[()]]:
        return torch.zeros(obs.shape[:2], dtype=torch.int64, device=obs.device), (), ()


def _make(dialect: str) -> Any:
    return importlib.import_module(dialect).make(_ENVIRONMENT)


def _played(open_feed: Callable[..., Any]) -> str:
    started = perf_counter()
    with open_feed(actor=_Actor(), n_steps=4, seed=0) as feed:
        steps = next(feed).env.valid.sum()
    return f"{int(steps)} steps in {perf_counter() - started:.1f} s"


def _play(dialect: str) -> str:
    return _played(partial(same.rollout, [partial(_make, dialect)] * 2))


def _play_beside(dialect: str, **options: Any) -> str:
    return _played(partial(threaded.rollout, [partial(_make, dialect)] * 2, **options))


def _play_apart(rollout: Callable[..., Any], dialect: str, **options: Any) -> str:
    return _played(partial(rollout, partial(_make, dialect), **options))


_ENGINES: Mapping[str, Callable[[str], str]] = {
    "threaded": _play_beside,
    "threaded, worker threads": partial(_play_beside, workers=2, worker="thread"),
    "threaded, worker processes": partial(_play_beside, workers=2),
    "single": partial(_play_apart, single.rollout, n_envs=2),
    "multi": partial(_play_apart, multi.rollout, n_actors=2, n_per_actor=1),
}
