"""Saved streams go on bit for bit where the actor is on a device, captured or not, and where its step is compiled."""

import random
from functools import partial
from types import SimpleNamespace

import gym
import pytest
import torch
from tqdm import tqdm

from rlplay import nested
from rlplay.engine.rollout import multi, same, threaded
from rlplay.testing import LaggingLane
from tests.support.assertions import assert_same_bytes
from tests.support.saving import through_torch
from tests.support.training import GruWithBuffer, change_everything


def collect(feed, actor, dice, lane, n):
    fragments, copies, delivered = [], [], []
    launch = (lambda work: work()) if lane is None else lane.launch
    for _ in range(n):
        fragment = next(feed)
        fragments.append(fragment)
        delivered.append((feed.version, feed.steps, feed.episodes()))
        launch(lambda kept=fragment: copies.append(nested.map(torch.clone, kept)))
        change_everything(actor, dice, launch)
        actor.train()  # another mode would be compiled, too
    return copies, delivered


class Draws(GruWithBuffer):
    """Tells what it draws, in virtual steps as well."""

    def forward(self, obs, *, hx=None, **ignored):
        act, hx, info = super().forward(obs, hx=hx)
        drawn = torch.rand(act.shape, generator=self.generator)
        return act, hx, info | {"drawn": drawn, "sampled": act + 0}


def run(segments, make_lane, **options):
    """Collect fragments by ``(engine, n)``; between two segments save all, and begin anew from there."""
    saved, fragments, delivered, dice = None, [], [], random.Random(2)
    for engine, n in segments:
        torch.manual_seed(1)
        actor, lane, envs = Draws(), make_lane(), [gym.make("CartPole-v1") for _ in range(4)]
        options["seed"] = 3 if saved is None else None
        if saved is not None:
            actor.load_state_dict(saved["actor"])
            actor.train(saved["training"])
            torch.set_rng_state(saved["generator"])
            options["state"] = saved["feed"]
        with engine.rollout(envs, actor, 7, final=True, device=lane, **options) as feed:
            found, others = collect(feed, actor, dice, lane, n)
            state = feed.state_dict()  # while work of the device is under way
            if lane is not None:
                lane.synchronize()
        own = {"actor": actor.state_dict(), "training": actor.training, "generator": torch.get_rng_state()}
        saved = through_torch({"feed": state, **own})
        fragments, delivered = fragments + found, delivered + others
    return fragments, delivered


def check(engine, other, make_lane, **options):
    options = {"groups": 2, **options}
    expected, delivered = run([(engine, 5)], make_lane, **options)
    got, others = run([(engine, 2), (other, 1), (engine, 2)], make_lane, **options)
    assert others == delivered
    assert_same_bytes(got, expected)


@pytest.mark.parametrize("haste", [0.0, 0.5])
@pytest.mark.parametrize("sides", [{}, {"actor_on_host": True}, {"consumer_on_host": True}])
def test_on_the_lagging_device(sides, haste):
    for engines in ((same, threaded), (threaded, same)):
        check(*engines, lambda: LaggingLane(haste=haste, **sides), lag=2)


def test_on_the_lagging_device_with_workers():
    threads = SimpleNamespace(rollout=partial(threaded.rollout, workers=2, worker="thread"))
    check(same, threads, lambda: LaggingLane(haste=0.5), lag=1)


@pytest.mark.soak
@pytest.mark.parametrize("haste", [0.0, 0.5])
def test_collector_processes_of_a_consumer_on_the_lagging_device(haste):
    def rollout(envs, actor, n_steps, *, groups, **options):
        return multi.rollout(partial(gym.make, "CartPole-v1"), actor, n_steps, groups, len(envs) // groups, **options)

    processes = SimpleNamespace(rollout=rollout)
    for engines in ((same, processes), (processes, same)):
        check(*engines, lambda: LaggingLane(haste=haste, actor_on_host=True), lag=2)


def test_a_captured_step_goes_on():
    check(same, threaded, lambda: LaggingLane(haste=0.5), lag=1, compile=True)


@pytest.mark.soak
def test_a_compiled_step_goes_on(monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # the thread of the compiler's progress bars does not end
    check(same, threaded, lambda: None, lag=1, groups=1, compile=True)
