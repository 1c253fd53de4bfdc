"""``gym``: gymnasium where it is installed, else gym. What this project uses of them is the same in both.

gym works as well, but it is no longer maintained, and its import prints a notice.
"""

try:
    import gymnasium as gym
except ImportError:
    import gym  # type: ignore[no-redef]

__all__ = ["gym"]
