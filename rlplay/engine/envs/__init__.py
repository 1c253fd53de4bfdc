"""Environments of every library behind one protocol. No PyTorch, no threads."""
