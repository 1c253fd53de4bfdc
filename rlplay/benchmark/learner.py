"""The learner that is measured: one A2C update per fragment, and as much work beside as it is to cost."""

from __future__ import annotations

from statistics import median
from time import perf_counter

import torch

from ..algo import a2c
from ..engine import Fragment
from ..engine.transfer import Lane
from ..zoo.actors import ActorCritic

__all__ = ["Learner"]

_TRIALS, _PRODUCTS = 15, 16
"""How often it is tried how long so many matrix products last."""


class Learner:
    """Learns nothing, and takes its time for it.

    Parameters
    ----------
    actor : ActorCritic
        On the lane's device. It is never changed: the learning rate is 0.
    lane : Lane
        To wait for the device with.
    """

    def __init__(self, actor: ActorCritic, lane: Lane) -> None:
        self._actor, self._lane = actor, lane
        self._optim = torch.optim.RMSprop(actor.parameters(), lr=0.0)
        # a matrix product lets go of the interpreter lock, and takes a good part of a millisecond
        size = 256 if lane.device.type == "cpu" else 2048
        self._matrix = torch.eye(size, device=lane.device)
        self._product = torch.empty_like(self._matrix)
        self._products = 0

    def learn(self, fragment: Fragment) -> None:
        """Make one update, and do the work beside. On CUDA it is asked for, not waited for."""
        loss, _ = a2c.loss(fragment, self._actor, gamma=0.99, C=0.95)
        self._optim.zero_grad()
        loss.backward()
        self._optim.step()
        self._work(self._products)

    def burden(self, seconds: float) -> None:
        """Do work beside each update from now on, that lasts so long if nothing disturbs it.

        It is a fixed number of matrix products, found by trials: contention makes them last longer, not fewer.
        """
        trials = []
        for _ in range(_TRIALS):
            started = perf_counter()
            self._work(_PRODUCTS)
            self._lane.host_wait(self._lane.record())
            trials.append(perf_counter() - started)
        self._products = round(seconds * _PRODUCTS / median(trials))

    def _work(self, products: int) -> None:
        for _ in range(products):
            torch.mm(self._matrix, self._matrix, out=self._product)
