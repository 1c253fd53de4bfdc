"""The command ``python -m rlplay doctor``: runs all checks, and prints each with its remedy."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from functools import partial

import torch

from .. import interpreter
from . import trials
from .in_processes import ENVIRONMENT
from .verdicts import FAIL, NEEDED, OK, WARN, Check, cores, environments, package, python

__all__ = ["doctor", "examine", "is_broken", "line"]

_PACKAGES = {
    "torch": ((2, 11), NEEDED),
    "numpy": ((1, 24), NEEDED),
    "optree": ((0, 13), NEEDED),
    "cloudpickle": ((0,), NEEDED),
    "gym": ((0, 21), "for its environments"),
    "gymnasium": ((1, 1), "for its environments"),
    "envpool": ((0,), "for its vector environments"),
    "ale_py": ((0,), "for Atari"),
    "matplotlib": ((0,), "for pictures, such as the demo's"),
}
"""Oldest version of each package that works, and the package's purpose."""


def doctor(*, as_json: bool = False) -> int:
    """Check this machine, and print the results: a line each, and a remedy below where something is wrong.

    Parameters
    ----------
    as_json : bool
        Whether to print all results as one JSON list instead.

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
    elif is_broken(checks):
        print("\nSomething that rlplay needs is broken: see above.")
    else:
        print("\nrlplay works here.")
    return int(is_broken(checks))


def examine() -> Iterator[Check]:
    """Run all checks. A trial that raises gives a check with a remedy, and the other checks follow."""
    yield _examine_python()
    for name, (least, purpose) in _PACKAGES.items():
        yield package(name, trials.installed_version(name), least, purpose)
    yield cores(interpreter.usable_cores(), torch.get_num_threads())
    yield from trials.check_cuda()
    yield trials.attempt(
        "shared memory", trials.share_memory, "check that memory is left (`free -h`, `ulimit -v`, a container's limit)"
    )
    yield trials.attempt(
        "child process", trials.start_child, "check that this interpreter can start itself: `python -c pass`"
    )
    works = {}
    for library in ("gym", "gymnasium"):
        if trials.installed_version(library) is not None:
            remedy = f"check that `{library}.make('{ENVIRONMENT}').reset()` works, or reinstall {library}"
            check = trials.attempt(f"same, {library}", partial(trials.collect_same, library), remedy, WARN)
            works[library] = check.verdict == OK
            yield check
    yield environments(works)
    usable = [library for library in works if works[library]]
    if usable:
        for name, collect in trials.ENGINES.items():
            remedy = "use `same`, which needs neither threads nor processes; please report this"
            yield trials.attempt(name, partial(collect, usable[-1]), remedy)


def _examine_python() -> Check:
    free_threaded, has_lock = interpreter.is_free_threaded_build(), interpreter.has_lock()
    switched_on_by = trials.find_lock_switch(_PACKAGES) if free_threaded and has_lock else ""
    return python(sys.version_info[:3], free_threaded=free_threaded, has_lock=has_lock, switched_on_by=switched_on_by)


def is_broken(checks: Sequence[Check]) -> bool:
    """Whether something that rlplay needs is broken."""
    return any(check.verdict == FAIL for check in checks)


def line(check: Check) -> str:
    """Format a check: one line, and a second line with the remedy if there is one."""
    text = f"{check.verdict:>4}  {check.name}: {check.found}"
    return f"{text}\n      -> {check.remedy}" if check.remedy else text
