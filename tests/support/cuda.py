"""What tests on a GPU share. Imports without one."""

from __future__ import annotations

import torch

from rlplay import nested

A_WHILE = 20_000_000
"""Cycles for which a kernel sleeps, to stretch the windows in which something may go wrong."""


def fragments_beside_a_learner(feed, actor, n_fragments, *, sleep):
    """Return clones of fragments, between which a learner changes the weights, without a wait of the host."""
    kept = []
    for _ in range(n_fragments):
        fragment = next(feed)
        if sleep:
            torch.cuda._sleep(A_WHILE)
        kept.append(nested.map(torch.clone, fragment))
        del fragment
        with torch.no_grad():
            for weight in actor.parameters():
                weight.mul_(0.9)
    return kept
