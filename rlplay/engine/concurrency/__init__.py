"""Threads, channels and child processes. Imports neither PyTorch nor anything about reinforcement learning."""
