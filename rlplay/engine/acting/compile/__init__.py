"""The actor's step as a compiled program on the host, or as a CUDA graph on a device."""
