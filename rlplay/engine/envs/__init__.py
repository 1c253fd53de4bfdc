"""Environments of every library behind one protocol, :class:`~rlplay.engine.envs.protocol.Environments`.

``protocol``
    What a stepper needs of environments; where to begin with a new kind of environment.
``make``, ``identity``
    From the ``envs`` argument of a rollout to environments; which of them are the same one.
``environment_list``, ``dialects``
    A list of single environments, and the APIs that a single environment may have.
``vector_environment``, ``vectors``
    One vector environment, and what follows from its autoreset mode; its first reset, its infos, its steps in the
    background, also those that Ctrl-C has interrupted, and how environments are closed.
``autoreset``
    Environments that reset themselves, vectors and single ones: when they do it, and where their info has what.
``actions``, ``returned``
    What environments get: actions, checked. What they return: rewards and flags in any form that is one number.
``rows``
    The numpy views that environments write into.
``spaces``, ``info``
    Shapes and dtypes of observations, actions and info entries.
``saving``
    The state of environments, with all wrappers and inner environments.
``gym_on_numpy2``
    Stock gym 0.26 on NumPy 2.

This package imports neither PyTorch, threads, gym nor gymnasium: a worker process loads none of them for its sake.
"""
