"""Context managers that let every exception pass as it is, also one that takes no assignments. Imports no torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from functools import wraps
from types import TracebackType
from typing import Any, ParamSpec, TypeVar

__all__ = ["contextmanager"]

_P = ParamSpec("_P")
_T = TypeVar("_T")


def contextmanager(function: Callable[_P, Iterator[_T]]) -> Callable[_P, AbstractContextManager[_T]]:
    """Make a context manager of a function that yields once, as :func:`contextlib.contextmanager` does.

    That one assigns to the ``__traceback__`` of an exception that passes through the ``with`` block. Exceptions that
    are frozen dataclasses refuse the assignment, so that another error would take their place.
    """

    @wraps(function)
    def make(*args: _P.args, **kwargs: _P.kwargs) -> AbstractContextManager[_T]:
        return _Block(function(*args, **kwargs))

    return make


class _Block(AbstractContextManager[_T]):
    """The context manager of a generator that has one ``yield``."""

    def __init__(self, steps: Any) -> None:
        self._steps = steps

    def __enter__(self) -> _T:
        value: _T = next(self._steps)
        return value

    def __exit__(self, kind: Any, error: BaseException | None, trace: TracebackType | None) -> bool:
        if error is None:
            next(self._steps, None)
            return False
        try:
            self._steps.throw(error)
        except StopIteration as end:
            return end is not error
        except BaseException as raised:
            # out of a generator, a StopIteration comes as the cause of a RuntimeError
            if raised is not error and not (isinstance(error, StopIteration) and raised.__cause__ is error):
                raise
            BaseException.with_traceback(error, trace)  # without the frames of the generator
        return False
