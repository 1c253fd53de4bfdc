"""Small actors and environments: examples to read, to copy, and to test an algorithm with.

:mod:`rlplay.zoo.actors`
    Actor-critics and Q-networks, feed-forward and recurrent.
:mod:`rlplay.zoo.continuous`
    Actors and critics for real actions.
:mod:`rlplay.zoo.distributional`
    Q-networks whose values are distributions, and noisy layers.
:mod:`rlplay.zoo.heads`
    Heads of policies for any action space.
:mod:`rlplay.zoo.pages`
    A complete program for each algorithm.
:mod:`rlplay.zoo.envs`
    Environments whose best return is known. This module imports gymnasium, or gym if gymnasium is not installed;
    :mod:`rlplay.zoo.actors` imports neither.
"""

__all__: list[str] = []
