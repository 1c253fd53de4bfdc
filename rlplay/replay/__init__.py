"""Replay buffers, which store fragments and return random samples of transitions or sequences, on any device.

``Uniform``, ``Prioritized``
    The buffers. ``commit(fragment)`` stores a fragment, ``sample`` returns transitions, and ``sample_sequences`` whole
    columns.
``Batch``, ``Sequences``
    The types of the samples.
``SumTree``
    The data structure that draws items in proportion to their priorities.

The modules: ``store`` holds the fragments, ``indices`` draws the ids of items, ``batches`` gathers these items from the
store, and ``buffer`` combines the three.

This package imports ``Fragment`` and its parts from :mod:`rlplay.engine`. It must not import losses or networks.
"""

from .batches import Batch, Sequences
from .prioritized import Prioritized
from .sumtree import SumTree
from .uniform import Uniform

__all__ = ["Batch", "Prioritized", "Sequences", "SumTree", "Uniform"]
