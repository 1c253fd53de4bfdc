"""Where fragments lie: lanes between host and devices, host slots, layouts."""
