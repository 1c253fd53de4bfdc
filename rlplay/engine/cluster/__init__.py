"""Collectors in Ray actors, on this machine or on others. Ray is imported when a feed of them is made."""
