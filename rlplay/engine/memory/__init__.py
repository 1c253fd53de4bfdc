"""Memory: lanes between the host and devices, host slots, and the layouts of fragments."""
