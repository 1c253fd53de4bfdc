"""Threads, channels and child processes, without PyTorch and without reinforcement learning."""
