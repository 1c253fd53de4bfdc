"""What ``reset`` and ``step`` of an environment have returned, where it is refused."""
