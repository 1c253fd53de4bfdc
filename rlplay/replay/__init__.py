"""Replay buffers, which store fragments and return random samples of transitions or sequences, on any device.

``Uniform``, ``Prioritized``
    The buffers. ``commit(fragment)`` stores a fragment, ``sample`` returns transitions, ``sample_sequences`` whole
    columns, and ``epoch`` passes over all that the buffer holds.
``Hindsight``
    A buffer of whole episodes for tasks with goals: it replaces goals by what was achieved later.
``Batch``, ``Sequences``
    The types of the samples.
``SumTree``
    The data structure that draws items in proportion to their priorities.

The modules: ``store`` holds the fragments, ``indices`` draws the ids of items, ``batches`` gathers these items from the
store, and ``buffer`` combines the three.

This package imports ``Fragment`` and its parts from :mod:`rlplay.engine`. It must not import losses or networks.
"""

from .batches import Batch, Sequences
from .hindsight import Hindsight
from .prioritized import Prioritized
from .sumtree import SumTree
from .uniform import Uniform

__all__ = ["Batch", "Hindsight", "Prioritized", "Sequences", "SumTree", "Uniform"]
