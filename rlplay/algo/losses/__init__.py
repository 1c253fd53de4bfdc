"""The losses: functions ``(fragment or batch, actor, ...) -> (loss, info)``, one module for each algorithm.

Their public paths are ``rlplay.algo.a2c``, ``rlplay.algo.ppo`` and so on.
"""
