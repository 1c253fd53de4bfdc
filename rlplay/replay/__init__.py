"""Replay buffers: fragments are stored, transitions or sequences are sampled, on any device.

``Uniform``, ``Prioritized``
    The buffers. ``commit(fragment)`` stores; ``sample`` returns transitions, ``sample_sequences`` whole columns.
``Batch``, ``Sequences``
    The types of the samples.
``SumTree``
    The data structure that items are drawn from.

Inside, ``store`` holds the fragments, ``indices`` draws the ids of items, ``batches`` gathers these items from the
store, and ``buffer`` combines the three.

This package imports ``Fragment`` and its parts from :mod:`rlplay.engine`. It imports no losses and no networks.
"""

from .batches import Batch, Sequences
from .prioritized import Prioritized
from .sumtree import SumTree
from .uniform import Uniform

__all__ = ["Batch", "Prioritized", "Sequences", "SumTree", "Uniform"]
