"""Small things to try an algorithm on, to read and to copy.

:mod:`rlplay.zoo.actors`
    Actor-critics and Q-networks, feed-forward and recurrent.
:mod:`rlplay.zoo.envs`
    Environments whose best return is known. Importing it imports gym; the actors do without.
"""

__all__: list[str] = []
