"""A minimal space, for environments that import no library of environments.

Pickled by value: else each worker process would import this package.
"""

from __future__ import annotations

import sys

import cloudpickle
import numpy as np

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Space:
    """Has a shape, a dtype and equality, which is all that an engine needs of a space."""

    def __init__(self, dtype, shape=()):
        self.shape, self.dtype = shape, np.dtype(dtype)

    def __eq__(self, other):
        return (self.shape, self.dtype) == (other.shape, other.dtype)

    __hash__ = None
