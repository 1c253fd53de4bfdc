"""Stepping the environments: in the collector's thread, or in a pool of worker threads or processes. No torch."""
