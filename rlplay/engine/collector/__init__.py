"""Collects one fragment after another: the loop, its buffers, and the collector's side of the law."""
