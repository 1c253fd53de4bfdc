"""The feed: the iterator that users hold, with its options, its driver, its construction, and its statistics."""
