"""Exceptions that are sent from one process to another, with their notes and their traceback. Must not import torch."""

from __future__ import annotations

import pickle
import traceback
from typing import Any, NamedTuple

import cloudpickle

__all__ = ["add_note", "RemoteTraceback", "pack", "unpack"]


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, with the prefix ``rlplay:``; ``BaseException.add_note`` needs Python 3.11."""
    vars(error).setdefault("__notes__", []).append(f"rlplay: {text}")


class RemoteTraceback(Exception):
    """The cause of an exception that was received from another process: shows the traceback that it had there."""

    def __str__(self) -> str:
        """Return the traceback as text."""
        return f"\n\n{self.args[0]}"


def pack(error: BaseException) -> bytes:
    """Pickle an exception and its traceback; an exception that cannot be pickled is replaced by a RuntimeError."""
    text = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    try:
        data: bytes = cloudpickle.dumps((error, text))
        pickle.loads(data)  # some exceptions can be pickled, but not unpickled
    except Exception:
        data = _pack_in_parts(error, text)
    return data


def _pack_in_parts(error: BaseException, text: str) -> bytes:
    """Pickle the class, arguments and notes of an exception; failing that, a RuntimeError with the same text."""
    notes = {"__notes__": list(getattr(error, "__notes__", ()))}
    try:
        data: bytes = cloudpickle.dumps((_Parts(type(error), error.args, notes), text))
        pickle.loads(data)
    except Exception:
        substitute = RuntimeError(f"{type(error).__qualname__}: {error}")
        vars(substitute).update(notes)
        data = cloudpickle.dumps((substitute, text))
    return data


class _Parts(NamedTuple):
    """The parts of an exception whose ``__init__`` cannot be called with ``args``."""

    kind: type[BaseException]
    args: tuple[Any, ...]
    attributes: dict[str, Any]

    def rebuild(self) -> BaseException:
        """Create the exception without calling its ``__init__``."""
        error = self.kind.__new__(self.kind, *self.args)
        vars(error).update(self.attributes)
        return error


def unpack(data: bytes) -> BaseException:
    """Restore an exception from the bytes of :func:`pack`; its cause is a :class:`RemoteTraceback`."""
    error: BaseException | _Parts
    error, text = pickle.loads(data)
    if isinstance(error, _Parts):
        error = error.rebuild()
    error.__cause__ = RemoteTraceback(text)
    return error
