"""What `reset` and `step` of an environment have returned: its numbers, and the errors where it is refused."""
