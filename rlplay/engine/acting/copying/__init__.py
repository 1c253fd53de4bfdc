"""Copies an actor so that the copy reaches nothing of the original."""
