"""The engines: one module each, with one function, ``rollout``. To change the engine, change the import.

``same``
    Collects a fragment when it is asked for, in the caller's thread, without overlap. It is the executable
    specification of ``threaded``, ``single``, ``multi`` and ``cluster``, which yield the same fragments.
``threaded``
    Collects ahead in a background thread. Environments and inference overlap with training wherever they release the
    interpreter lock; in a free-threaded Python, everywhere. Worker threads or worker processes may step the
    environments.
``single``, ``multi``
    Collect ahead in one process, or in several. The actor's inference runs in these processes too.
``cluster``
    Collects as ``multi`` does, in Ray actors, on this machine or on others. Ray is imported when a feed is made.
``episodic``
    Collects lists of whole episodes when they are asked for.
``evaluate``
    Plays whole episodes and returns their rewards: at once, or in a process of its own. It returns no fragments.
"""
