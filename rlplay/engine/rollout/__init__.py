"""The engines: a module each, with one function, ``rollout``. Changing the engine is changing the import.

``same``
    Collects when a fragment is asked for, in the caller's thread: no overlap, and the executable specification of
    what the others do.
``threaded``
    Collects ahead in a background thread: overlaps environments and inference with training, wherever these let go of
    the interpreter lock. May have the environments stepped by worker threads, or worker processes.
``single``, ``multi``
    Collect ahead in one process, or in many: inference is there, too.
``episodic``
    Collects lists of whole episodes when they are asked for.
``evaluate``
    Not a feed: plays whole episodes, and returns their rewards; now, or in a process of its own.
"""
