"""Collects fragments: the loop over steps, the staging buffers, and the collector that serves tokens."""
