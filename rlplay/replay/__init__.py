"""Replay buffers: fragments are stored, transitions or sequences are sampled, on any device.

``Uniform``, ``Prioritized``
    The buffers. ``commit(fragment)`` stores; ``sample`` gives transitions, ``sample_sequences`` whole columns.
``Batch``, ``Sequences``
    What they give.
``SumTree``
    What they draw with.

This room knows the nouns of :mod:`rlplay.engine`. It knows no losses and no networks.
"""

from .batches import Batch, Sequences
from .prioritized import Prioritized
from .sumtree import SumTree
from .uniform import Uniform

__all__ = ["Batch", "Prioritized", "Sequences", "SumTree", "Uniform"]
