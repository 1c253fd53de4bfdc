"""Seeded training runs on CartPole, to compare engines: every engine has to yield the same fragments."""

from __future__ import annotations

import random
from functools import partial

import gym
import torch

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import multi, same, single
from rlplay.testing import LaggingLane
from tests.support.assertions import assert_identical, assert_same_bytes

N_FRAGMENTS = 7


class GruWithBuffer(BaseActorModule):
    """Has everything that the behaviour copy has to follow: weights, a buffer, a mode, a recurrent state, sampling."""

    def __init__(self):
        super().__init__()
        self.core = torch.nn.GRU(4, 8)
        self.head = torch.nn.Linear(8, 3)
        self.register_buffer("temperature", torch.ones(()))

    def forward(self, obs, *, hx=None, **ignored):
        out, hx = self.core(obs, hx)
        logits, value = self.head(out).split([2, 1], dim=-1)
        act = sampling.categorical(logits / self.temperature, generator=self.generator)
        info = {
            "logits": logits,
            "value": value[..., 0],
            "temperature": self.temperature.expand_as(act).clone(),
            "training": torch.full_like(act, self.training, dtype=torch.bool),
        }
        return act, hx, info


def change_everything(actor, dice, launch):
    """Change everything that a learner may change, and draw from the global generator."""
    by = 1 + dice.random()
    for weight in actor.parameters():
        noise = torch.randn_like(weight)
        launch(lambda weight=weight.data, noise=noise: weight.add_(noise, alpha=0.1))
    launch(lambda: actor.temperature.mul_(by))
    actor.train(dice.random() < 0.5)
    if dice.random() < 0.3:  # a parameter that was replaced is followed
        old, new = actor.head.weight.data, torch.empty(3, 8)
        launch(lambda: new.copy_(old * 0.9))
        actor.head.weight = torch.nn.Parameter(new)
    if dice.random() < 0.5:
        torch.rand(3)


def run_training(engine, *, update=change_everything, n_fragments=N_FRAGMENTS, n_envs=5, n_steps=11, **options):
    """Collect fragments of CartPole from a fresh start, training in between; return copies and policy versions."""
    torch.manual_seed(1)
    actor, dice, versions = GruWithBuffer(), random.Random(2), []
    lane = options.get("device")
    launch = lane.launch if isinstance(lane, LaggingLane) else lambda work: work()
    fragments, copies = [], []
    envs = [gym.make("CartPole-v1") for _ in range(n_envs)]
    with engine.rollout(envs, actor, n_steps, seed=3, final=True, **options) as feed:
        for _ in range(n_fragments):
            fragment = next(feed)
            fragments.append(fragment)
            versions.append(feed.version)
            launch(lambda kept=fragment: copies.append(nested.map(torch.clone, kept)))
            update(actor, dice, launch)
    if isinstance(lane, LaggingLane):
        lane.synchronize()
    assert_identical(fragments, copies)  # fragments do not change after their delivery
    return copies, versions


def record_training(rollout, make_actor=GruWithBuffer, *, update=change_everything, n_fragments=5, seed=3, **options):
    """Collect fragments, training in between; return copies of them, and of each its version, steps and episodes."""
    torch.manual_seed(1)
    actor, dice, lane = make_actor(), random.Random(2), options.get("device")
    launch = lane.launch if isinstance(lane, LaggingLane) else lambda work: work()
    fragments, copies, delivered = [], [], []
    with rollout(actor=actor, seed=seed, **options) as feed:
        for _ in range(n_fragments):
            fragment = next(feed)
            launch(lambda kept=fragment: copies.append(nested.map(torch.clone, kept)))
            fragments.append(fragment)
            delivered.append((feed.version, feed.steps, feed.episodes()))
            update(actor, dice, launch)
    if lane is not None:
        lane.synchronize()
    assert_same_bytes(fragments, copies)  # no process writes to a fragment that was delivered
    return copies, delivered


def assert_processes_yield_the_fragments_of_same(factory, n_actors, n_per_actor, *, device=None, **options):
    """Check that `n_actors` collector processes yield the fragments and the counts of `same`; return these."""
    in_one = partial(same.rollout, [factory] * (n_actors * n_per_actor))
    expected, delivered = record_training(in_one, groups=n_actors, **options)
    if n_actors == 1:
        rollout = partial(single.rollout, factory, n_envs=n_per_actor)
    else:
        rollout = partial(multi.rollout, factory, n_actors=n_actors, n_per_actor=n_per_actor)
    got, others = record_training(rollout, device=device, **options)
    assert others == delivered
    assert_same_bytes(expected, got)
    return expected, delivered
