"""rlplay: reinforcement learning where you write the loop.

``for fragment in rollout(envs, actor, n_steps=120): ...`` is the whole interface. The engines live in
:mod:`rlplay.engine.rollout`, the actor's contract and the fragment in :mod:`rlplay.engine`, returns and losses in
:mod:`rlplay.algo`, buffers in :mod:`rlplay.replay`, drawing actions in :mod:`rlplay.sampling`, and small actors and
environments in :mod:`rlplay.zoo`. ``__version__`` is the version, a string.
"""

__all__ = ["__version__"]

__version__ = "0.1.0"
