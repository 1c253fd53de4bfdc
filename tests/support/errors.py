"""Exceptions to be raised in environments and actors.

Pickled by value: else each worker process would import this package.
"""

from __future__ import annotations

import sys

import cloudpickle

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class TwoArgumentError(Exception):
    """An exception that cannot be made again from its message alone: `pickle` fails on it by default."""

    def __init__(self, first, second):
        super().__init__(f"{first} and {second}")


def raising(error):
    """Return a function that raises `error`; `explode`, its name, is found in the traceback."""

    def explode():
        raise error

    return explode
