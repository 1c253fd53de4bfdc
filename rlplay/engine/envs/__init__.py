"""Environments of every library behind one protocol, :class:`~rlplay.engine.envs.protocol.Environments`.

``protocol``
    What a stepper needs of environments; where to begin with a new kind of environment.
``make``
    From the ``envs`` argument of a rollout to environments.
``environment_list``, ``dialects``
    A list of single environments, and the APIs that a single environment may have.
``vector_environment``
    One vector environment, and what follows from its autoreset mode.
``autoreset``
    Environments that reset themselves, vectors and single ones: when they do it, and where their info has what.
``actions``, ``numbers``
    What environments get: actions, checked. What they return: rewards and flags in any form that is one number.
``rows``
    The numpy views that environments write into.
``spaces``, ``info``
    Shapes and dtypes of observations, actions and info entries.
``gym_on_numpy2``
    Stock gym 0.26 on NumPy 2.

This package imports neither PyTorch, threads, gym nor gymnasium: a worker process loads none of them for its sake.
"""
