"""The feed: the iterator that users hold, its driver, and how it is built."""
