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


def make_busy(lane):
    return [Busy(lane) for _ in range(N_ENVS)]


def seconds_of(engine, groups=None, *, make_envs=make_busy, per_env=0.0, fixed=0.0, update=None, slowdown=1.0, lag=0):
    """Return the virtual seconds of collecting some fragments, with an update of the learner's for each."""
    lane = ClockedLane(slowdown=slowdown)
    LANES.append(lane)
    options = {"device": lane, "lag": lag} | ({"groups": groups} if groups else {})
    with engine.rollout(make_envs(lane), Slow(per_env, fixed), N_STEPS, **options) as feed:
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


class EnvPoolMixin:
    """Has the name of EnvPool's class, by which its methods `send` and `recv` are known."""


class InBackground(EnvPoolMixin, gymnasium.vector.SyncVectorEnv):
    """Its environments step one after the other, in the background."""

    is_async = False

    def __init__(self, lane, n_envs):
        super().__init__([Still] * n_envs, autoreset_mode=gymnasium.vector.AutoresetMode.SAME_STEP)
        self.lane, self.done_at, self.sent = lane, 0.0, None

    def send(self, actions, env_id=None):
        self.done_at, self.sent = self.lane.now + STEP * self.num_envs, actions

    def recv(self, reset=False, return_info=True):
        self.lane.sleep(max(0.0, self.done_at - self.lane.now))
        return super().step(self.sent)


class Still(gymnasium.Env):
    """Takes no time."""

    observation_space, action_space = Busy.observation_space, Busy.action_space

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize(
    ("widths", "costs", "expected"),
    [
        ([6, 6], {"per_env": STEP}, 0.5),
        ([4, 4, 4], {"per_env": STEP}, 1 / 3),
        ([6, 6], {"fixed": ONE_STEP}, 0.75),
        ([6, 6], {"fixed": STEP}, 7 / 13),
    ],
)
def test_environments_that_step_in_the_background_hide_inference_however_long_it_takes(engine, widths, costs, expected):
    """All turns step side by side and are inferred side by side, so that only one turn's own time is left."""

    def seconds(widths):
        return seconds_of(engine, make_envs=lambda lane: [InBackground(lane, n) for n in widths], **costs)

    assert seconds(widths) <= (expected + 0.02) * seconds([N_ENVS])


class InOneQueue(InBackground):
    """All step on the same cores one after the other, as the groups of a pool of workers do."""

    def send(self, actions, env_id=None):
        super().send(actions)
        self.lane.free_at = max(getattr(self.lane, "free_at", 0.0), self.lane.now) + STEP * self.num_envs
        self.done_at = self.lane.free_at


@pytest.mark.parametrize("inference", [0.5 * STEP, 6 * STEP, 8 * STEP])
def test_workers_that_step_all_turns_are_kept_busy_in_every_fragment(inference):
    """Inference that takes no longer than the steps of the two other turns is hidden, but for row 0 of a fragment."""
    taken = seconds_of(same, make_envs=lambda lane: [InOneQueue(lane, 4) for _ in range(3)], fixed=inference)
    assert taken <= N_FRAGMENTS * (N_STEPS * ONE_STEP + inference)


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
