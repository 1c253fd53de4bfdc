"""Checkpoints: a dict in one file, which is whole whenever the program is killed.

    from rlplay import checkpoint

    checkpoint.save("run.pt", {"actor": actor.state_dict(), "optim": optim.state_dict(), "n_updates": n_updates})
    saved = checkpoint.load("run.pt")

A new checkpoint is written beside the old one, and then takes its name. Imports nothing of ``rlplay``.
"""

from __future__ import annotations

import glob
import os
import threading
import warnings
from collections.abc import Mapping
from itertools import takewhile
from numbers import Integral
from pathlib import Path
from typing import Any

import torch
from torch.serialization import get_unsafe_globals_in_checkpoint

__all__ = ["load", "save"]

_saving = threading.RLock()


def save(path: str | os.PathLike[str], state: Mapping[str, Any], keep: int = 3) -> None:
    """Write a checkpoint, so that a kill at any moment leaves the old one or the new one.

    The file is on the disk before it takes its name, so this holds for a power failure too; its name may get there some
    seconds later. Only one process may save to a path at a time; threads of a process save one after another.

    Parameters
    ----------
    path : path
        The file, such as ``"run.pt"``. Its folder must exist. Earlier checkpoints are ``run.pt.1`` (the one before),
        ``run.pt.2`` and so on.
    state : dict
        Of tensors, numbers, strings, bytes, and dicts, lists and tuples of these, which includes every ``state_dict``
        of torch. Numbers and arrays of NumPy, and named tuples, are not among them: :func:`load` would not read them.
    keep : int
        How many checkpoints are kept, the new one included.

    Raises
    ------
    TypeError
        ``state`` is no dict, or holds what :func:`load` does not read, or ``keep`` is no integer. The old checkpoints
        stay.
    ValueError
        ``keep`` is less than 1.
    OSError
        The file cannot be written: the folder does not exist, ``path`` is a folder itself, or the disk is full. The old
        checkpoints stay.
    """
    if not isinstance(state, Mapping):
        raise TypeError(f"a checkpoint is a dict, got {type(state).__name__}: name what is in it, {{'actor': ...}}.")
    if isinstance(keep, bool) or not isinstance(keep, Integral):
        raise TypeError(f"`keep` must be an integer, got {keep!r}.")
    if keep < 1:
        raise ValueError(f"`keep` must be at least 1, got {keep}: the new checkpoint is one of them.")
    path = Path(path)
    if path.is_dir():  # a folder would be renamed, as if it were an earlier checkpoint
        raise IsADirectoryError(
            f"a checkpoint is a file, and {str(path)!r} is a folder: write {str(path / 'run.pt')!r}."
        )
    beside = path.with_name(f".{path.name}.new")
    with _saving:
        try:
            with beside.open("wb") as file:
                torch.save(dict(state), file)
                file.flush()
                os.fsync(file.fileno())
            _check_readable(beside)
            _keep_earlier(path, keep)
            beside.replace(path)
        except BaseException:
            beside.unlink(missing_ok=True)
            raise


def load(path: str | os.PathLike[str], map_location: Any = None) -> dict[str, Any]:
    """Read the latest whole checkpoint.

    If the latest file cannot be read, the one before it is read, with a warning.

    Parameters
    ----------
    path : path
        As it was passed to :func:`save`.
    map_location : device, str or callable, optional
        Where tensors are put, as for ``torch.load``; by default the device that they were on.

    Returns
    -------
    dict
        What was passed to :func:`save`.

    Raises
    ------
    FileNotFoundError
        There is no checkpoint.
    RuntimeError
        There are some, but none can be read. The error of the latest is the cause.
    """
    path = Path(path)
    files = [path, *_earlier(path)]
    if not any(file.exists() for file in files):
        raise FileNotFoundError(f"there is no checkpoint {str(path)!r}.")
    errors: list[tuple[Path, Exception]] = []
    for file in files:
        try:
            loaded: dict[str, Any] = torch.load(file, map_location=map_location, weights_only=True)
        except FileNotFoundError:
            continue
        except Exception as error:
            errors.append((file, error))
            continue
        if errors:
            broken, why = errors[0]
            warnings.warn(f"{broken} cannot be read ({why}), so {file} was read.", RuntimeWarning, stacklevel=2)
        return loaded
    raise RuntimeError(f"no checkpoint of {str(path)!r} can be read.") from errors[0][1]


def _check_readable(file: Path) -> None:
    """Raise TypeError if a checkpoint has objects of classes that :func:`load` does not read. Reads no tensor."""
    classes = sorted(get_unsafe_globals_in_checkpoint(str(file)))
    if classes:
        raise TypeError(
            f"`load` could not read this checkpoint again, since it holds {', '.join(classes)}. A checkpoint is a dict "
            "of tensors, numbers, strings, bytes, and dicts, lists and tuples of these: write `x.item()` for a number "
            "of NumPy, `torch.from_numpy(x)` for an array, `tuple(x)` for a named tuple, and `module.state_dict()` "
            "for a module."
        )


def _earlier(path: Path) -> list[Path]:
    """List the earlier checkpoints, the latest first.

    Their numbers follow one another; a kill leaves at most one number out. Files with higher numbers are the user's.
    """
    found = []
    for file in path.parent.glob(f"{glob.escape(path.name)}.*"):
        number = file.name.removeprefix(f"{path.name}.")
        if number.isdecimal():
            found.append((int(number), file))
    numbered = enumerate(sorted(found), 1)
    return [file for _, (_, file) in takewhile(lambda one: one[1][0] <= one[0] + 1, numbered)]


def _keep_earlier(path: Path, keep: int) -> None:
    """Give the present checkpoint a second name, and those before it the next number each; delete the oldest."""
    if not path.exists():
        return
    earlier = _earlier(path)
    for number, file in reversed(list(enumerate(earlier, 2))):
        if number < keep:
            file.replace(path.with_name(f"{path.name}.{number}"))
        else:
            file.unlink()
    if keep > 1:
        before = path.with_name(f"{path.name}.1")
        try:
            os.link(path, before)
        except OSError:  # a file system without hard links: for a moment only `before` is there, which `load` reads
            path.replace(before)
