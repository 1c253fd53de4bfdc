"""How much of inference is hidden behind stepping, and of collecting behind learning: computed by a virtual clock."""

from __future__ import annotations

import gymnasium
import numpy as np
import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.testing import ClockedLane

N_ENVS, N_STEPS, N_FRAGMENTS = 12, 20, 6
STEP = 1.0
"""Seconds in which one environment makes a step."""


LANES: list[ClockedLane] = []
"""The lane in use is the last one. The copy of an actor reaches nothing of the test's, but for globals."""


class Busy(gymnasium.Env):
    """Takes one second of virtual time a step."""

    observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)

    def __init__(self, lane):
        self.lane = lane

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.lane.sleep(STEP)
        return np.zeros(1, np.float32), 0.0, False, False, {}


class Slow(BaseActorModule):
    """Takes ``per_env`` seconds for each environment, and ``fixed`` seconds whatever their number."""

    def __init__(self, per_env, fixed):
        super().__init__()
        self.per_env, self.fixed = per_env, fixed

    def forward(self, obs, *, virtual, **ignored):
        if not virtual:
            LANES[-1].compute(self.fixed + self.per_env * obs.shape[1])
        return torch.zeros(obs.shape[:2], dtype=torch.int64), (), ()


def seconds_of(engine, groups, *, per_env=0.0, fixed=0.0, update=None, slowdown=1.0, lag=0):
    """Return the virtual seconds of collecting some fragments, with an update of the learner's for each."""
    lane = ClockedLane(slowdown=slowdown)
    LANES.append(lane)
    envs = [Busy(lane) for _ in range(N_ENVS)]
    with engine.rollout(envs, Slow(per_env, fixed), N_STEPS, device=lane, groups=groups, lag=lag) as feed:
        for k in range(2 + N_FRAGMENTS):
            if k == 2:  # a fragment is under way while the learner works
                began = lane.now
            next(feed)
            if update:
                lane.launch(lambda: lane.compute(update))
                lane.host_wait(lane.record())
        return lane.now - began


ONE_STEP = N_ENVS * STEP


def test_one_group_takes_stepping_and_inference_together():
    expected = N_FRAGMENTS * N_STEPS * 2 * ONE_STEP
    assert seconds_of(same, 1, per_env=STEP) == pytest.approx(expected)


@pytest.mark.parametrize("engine", [same, threaded])
def test_two_groups_hide_inference_that_takes_as_long_as_their_own_stepping(engine):
    one, two = (seconds_of(engine, groups, per_env=STEP) for groups in (1, 2))
    assert two <= 0.6 * one


@pytest.mark.parametrize("engine", [same, threaded])
def test_two_groups_hide_part_of_inference_that_takes_as_long_whatever_their_width(engine):
    """Inference of both groups is under way at once, on streams of their own."""
    one, two = (seconds_of(engine, groups, fixed=ONE_STEP) for groups in (1, 2))
    assert two <= 0.8 * one


def test_three_groups_overlap_with_a_learner_that_doubles_the_latency_of_inference():
    alone = seconds_of(threaded, 3, per_env=STEP, lag=1)
    update = alone / N_FRAGMENTS
    both = seconds_of(threaded, 3, per_env=STEP, lag=1, update=update, slowdown=2.0)
    assert max(alone, N_FRAGMENTS * update) / both >= 0.9
    one = seconds_of(threaded, 1, per_env=STEP, lag=1, update=update, slowdown=2.0)
    assert both < 0.5 * one


def test_an_actor_that_hands_something_from_group_to_group_is_inferred_on_one_stream():
    class Counts(Slow):
        def __init__(self, *args):
            super().__init__(*args)
            self.register_buffer("n_steps", torch.zeros(()))

        def forward(self, obs, **inputs):
            self.n_steps += 1
            return super().forward(obs, **inputs)

    lane = ClockedLane()
    LANES.append(lane)
    with same.rollout([Busy(lane) for _ in range(4)], Counts(0.0, 1.0), 5, device=lane, groups=2) as feed:
        next(feed)
    assert not lane.turns
