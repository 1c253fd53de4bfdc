"""Exceptions on their way from one process to another, with notes and the original traceback."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple

import cloudpickle

__all__ = ["add_note", "RemoteTraceback", "pack", "unpack"]


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, as ``add_note`` does, which Python 3.10 does not have."""
    vars(error).setdefault("__notes__", []).append(f"rlplay: {text}")


class RemoteTraceback(Exception):
    """The traceback that an exception had in the process where it was raised: the cause of the one raised here."""

    def __str__(self) -> str:
        """Return the traceback as it would have been printed."""
        return f"\n\n{self.args[0]}"


def pack(error: BaseException) -> bytes:
    """Pickle an exception together with its traceback, as far as it lets itself be pickled."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data: bytes = cloudpickle.dumps((error, text))
        pickle.loads(data)  # some can be pickled, and not be made again
    except Exception:
        data = _pack_in_parts(error, text)
    return data


def _pack_in_parts(error: BaseException, text: str) -> bytes:
    """Pickle an exception that does not let itself be made again from its arguments, or holds what cannot be sent."""
    notes = {"__notes__": list(getattr(error, "__notes__", ()))}
    try:
        data: bytes = cloudpickle.dumps((_Parts(type(error), error.args, notes), text))
        pickle.loads(data)
    except Exception:
        stand_in = RuntimeError(f"{type(error).__qualname__}: {error}")
        vars(stand_in).update(notes)
        data = cloudpickle.dumps((stand_in, text))
    return data


class _Parts(NamedTuple):
    """What an exception can be put together from, without its ``__init__``."""

    kind: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]

    def together(self) -> BaseException:
        error = self.kind.__new__(self.kind, *self.args)
        vars(error).update(self.attributes)
        return error


def unpack(data: bytes) -> BaseException:
    """Make an exception of what :func:`pack` has made; its cause is the original traceback."""
    error: BaseException | _Parts
    error, text = pickle.loads(data)
    if isinstance(error, _Parts):
        error = error.together()
    error.__cause__ = RemoteTraceback(text)
    return error
