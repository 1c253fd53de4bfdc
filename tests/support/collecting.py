"""Fragments of ledger environments, collected from a fresh start, and the warnings of `compile=True` meanwhile."""

from __future__ import annotations

import random
import warnings

import gym
import numpy as np
import torch

from rlplay.engine.rollout import same
from rlplay.testing import LaggingLane, LedgerEnv

REAL_GRAPHS, VIRTUAL_GRAPHS = 2 * 2, 2
"""How many graphs a group's real and virtual steps have in one mode, if a fragment has an odd number of steps: one for
each of the two rows of the ring. The first step of a fragment uploads no row, and has graphs of its own."""


def ledgers(n=4, **options):
    return [LedgerEnv(gym.spaces, j, **options) for j in range(n)]


def collected(make_actor, *, n_fragments=3, n_steps=7, envs=ledgers, update=lambda actor: None, **options):
    """Collect some fragments from a fresh start."""
    torch.manual_seed(0)
    actor, fragments, device = make_actor(), [], options.get("device")
    with same.rollout(envs(), actor, n_steps, seed=1, final=True, **options) as feed:
        for _ in range(n_fragments):
            fragments.append(next(feed))
            if isinstance(device, LaggingLane):
                device.synchronize()  # what follows reads and writes outside of the consumer's stream
            update(actor)
    return fragments


def shift_weights(actor):
    with torch.no_grad():
        for weight in actor.parameters():
            weight.add_(0.1)


def switch_mode(actor):
    actor.train(not actor.training)


def compile_warnings_of(call):
    """Return what a call returns, and its warnings about compiling."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer = call()
    return answer, [w for w in caught if "compile=" in str(w.message)]


def collected_seeded(make_actor, **options):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    return collected(make_actor, groups=2, **options)
