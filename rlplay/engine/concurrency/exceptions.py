"""Exceptions that are sent from one process to another, with their notes and their traceback. Must not import torch.

An exception is sent in several forms, since it is the receiver who finds out which of them it can restore:

1. pickled as it is;
2. its class, arguments and attributes, without calling the ``__init__`` of its own class, and without attributes that
   cannot be sent;
3. an exception group: its members, each sent by itself;
4. the name of its class, its message and its notes as text, which becomes a RuntimeError.
"""

from __future__ import annotations

import builtins
import pickle
import traceback
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

import cloudpickle

from ...contexts import contextmanager

__all__ = ["RemoteTraceback", "add_note", "closed_on_error", "pack", "repr_of", "unpack"]

_BaseExceptionGroup: Any = getattr(builtins, "BaseExceptionGroup", ())  # Python 3.11 and later


def add_note(error: BaseException, text: str) -> None:
    """Add a note to an exception, with the prefix ``rlplay:``; ``BaseException.add_note`` needs Python 3.11."""
    vars(error).setdefault("__notes__", []).append(f"rlplay: {text}")


@contextmanager
def closed_on_error(close: Callable[[], list[str]]) -> Iterator[None]:
    """If the ``with`` block raises an exception, call ``close()`` and add what went wrong in closing as notes."""
    try:
        yield
    except BaseException as error:
        for complaint in close():
            add_note(error, complaint)
        raise


def repr_of(thing: Any) -> str:
    """Return ``repr(thing)``; if that raises, the name of its type. For messages that must not fail."""
    try:
        return repr(thing)
    except Exception:
        return f"<{type(thing).__qualname__}, whose repr fails>"


class RemoteTraceback(Exception):
    """The cause of an exception that was received from another process: shows the traceback that it had there."""

    def __str__(self) -> str:
        """Return the traceback as text."""
        return f"\n\n{self.args[0]}"


class _Packed(NamedTuple):
    """What is sent for an exception: strings and bytes, which any process can unpickle."""

    whole: bytes | None
    """The exception, pickled; None if it cannot be pickled, or is another one once it is unpickled."""
    parts: bytes | None
    """A :class:`_Parts`, pickled."""
    members: list[bytes]
    """Of an exception group: its members, each by :func:`pack`."""
    name: str
    message: str
    notes: list[str]
    traceback: str


class _Parts(NamedTuple):
    """The parts of an exception whose ``__init__`` cannot be called with ``args``."""

    kind: type[BaseException]
    args: tuple[Any, ...]
    """The arguments of the builtin exception that ``kind`` derives from, such as a file name for an OSError."""
    attributes: dict[str, Any]

    def rebuild(self) -> BaseException:
        """Create the exception, calling only the constructor of the builtin exception that it derives from."""
        base = _builtin_base(self.kind)
        error: BaseException = base.__new__(self.kind, *self.args)
        base.__init__(error, *self.args)
        vars(error).update(self.attributes)
        return error


def _builtin_base(kind: type[BaseException]) -> Any:
    return next(base for base in kind.__mro__ if base.__module__ == "builtins")


def pack(error: BaseException) -> bytes:
    """Pickle an exception and its traceback, in forms of which :func:`unpack` restores the best that it can."""
    name, message = type(error).__qualname__, _text_of(error)
    notes = [str(note) for note in getattr(error, "__notes__", ())]
    try:
        trace = "".join(traceback.format_exception(type(error), error, error.__traceback__))
    except Exception as failure:  # an exception's own `__str__` may fail
        trace = "".join(traceback.format_tb(error.__traceback__))
        trace += f"{name}: {message} (which could not be formatted: {repr_of(failure)})\n"
    whole = _dumps(error, lambda copy: type(copy).__qualname__ == name and _text_of(copy) == message)
    parts, lost = (None, []) if whole else _dump_parts(error)
    if lost:
        trace += f"(Attributes that could not be sent: {', '.join(lost)}.)\n"
    members = [pack(member) for member in error.exceptions] if isinstance(error, _BaseExceptionGroup) else []
    return pickle.dumps(tuple(_Packed(whole, parts, members, name, message, notes, trace)))


def _text_of(error: Any) -> str:
    try:
        return str(error)
    except Exception as failure:
        return f"(its message cannot be shown: {repr_of(failure)})"


def _dumps(thing: Any, is_copy: Callable[[Any], bool] = lambda copy: True) -> bytes | None:
    """Pickle a thing; return None if that fails, or if what is unpickled is no copy of it."""
    try:
        data: bytes = cloudpickle.dumps(thing)
        return data if is_copy(pickle.loads(data)) else None  # some exceptions can be pickled, but not unpickled
    except Exception:
        return None


def _dump_parts(error: BaseException) -> tuple[bytes | None, list[str]]:
    """Pickle the parts of an exception; return also the names of the attributes that cannot be pickled."""
    attributes = {name: value for name, value in vars(error).items() if _dumps(value) is not None}
    kind, args, *_ = _builtin_base(type(error)).__reduce__(error)
    # without an attribute that cannot be sent, the exception's `__str__` may fail: then text tells more
    data = _dumps(_Parts(kind, args, attributes), lambda parts: str(parts.rebuild()) is not None)
    return data, [name for name in vars(error) if name not in attributes]


def unpack(data: bytes | bytearray) -> BaseException:
    """Restore an exception from the bytes of :func:`pack`; its cause is a :class:`RemoteTraceback`.

    An exception that cannot be restored in this process, as of a class that it cannot import, becomes a RuntimeError
    with the class's name and the message.
    """
    packed = _Packed(*pickle.loads(data))
    error = _restore(packed)
    set_cause: Any = BaseException.__cause__  # an assignment may be refused, as by frozen dataclasses
    set_cause.__set__(error, RemoteTraceback(packed.traceback))
    return error


def _restore(packed: _Packed) -> BaseException:
    error = _restore_without_notes(packed)
    if packed.notes:  # an exception's own `__reduce__` may have left them out
        vars(error)["__notes__"] = list(packed.notes)
    return error


def _restore_without_notes(packed: _Packed) -> BaseException:
    for form in (packed.whole, packed.parts):
        try:
            found = pickle.loads(form) if form is not None else None
            error = found.rebuild() if isinstance(found, _Parts) else found
            if isinstance(error, BaseException):
                return error
        except Exception:  # such as an ImportError: the next form needs less
            continue
    if not packed.members:
        return RuntimeError(f"{packed.name}: {packed.message}")
    members = [unpack(member) for member in packed.members]
    message = packed.message.rpartition(" (")[0]  # without the number of members
    named = packed.name in ("BaseExceptionGroup", "ExceptionGroup")
    group: BaseException = _BaseExceptionGroup(message if named else f"{packed.name}: {message}", members)
    return group
