"""Who steps the environments: the collector's thread, or a pool of threads or processes. No PyTorch."""
