"""Saves the state of environments as bytes, and restores it into environments of the same kind."""
