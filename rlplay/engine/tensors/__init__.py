"""Collects from vector environments that give torch tensors, without taking their data through the host.

The folder has a loop of its own, beside that of :mod:`rlplay.engine.collector`: the host launches and never waits for a
step, since everything that a step needs is on the environments' device. Groups, the behaviour copy, the layout of
fragments, tokens and deliveries are those of the other environments.
"""
