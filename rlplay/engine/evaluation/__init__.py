"""Plays whole episodes to measure how good an actor is: in the caller's thread, or in a process of its own."""
