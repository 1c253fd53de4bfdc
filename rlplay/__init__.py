"""rlplay: reinforcement learning where you write the training loop.

A training loop is ``for fragment in rollout(envs, actor, n_steps=120): ...``. The functions ``rollout`` of the engines
are in :mod:`rlplay.engine.rollout`, the base class of actors and the fragment in :mod:`rlplay.engine`, returns and
losses in :mod:`rlplay.algo`, replay buffers in :mod:`rlplay.replay`, functions that draw actions in
:mod:`rlplay.sampling`, and small actors and environments in :mod:`rlplay.zoo`. ``__version__`` is a string.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
