"""What a step costs on a device, counted on the lagging one: copies, waits, launches, operations, memory."""

from __future__ import annotations

from collections import Counter as Tally

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.memory.counters import Counters
from rlplay.engine.rollout import same, threaded
from rlplay.testing import LaggingLane, lagging
from rlplay.testing.operation_log import OperationLog
from rlplay.zoo.actors import ActorCritic, mlp
from tests.support.copies import copied_forms

WIDTH = 4  # environments of a group
STEPS = 8, 24


class Pixels(gymnasium.Env):
    """Costs nothing, and shows images of 84 x 84 bytes, four at a time."""

    observation_space = gymnasium.spaces.Box(0, 255, (4, 84, 84), np.uint8)
    action_space = gymnasium.spaces.Discrete(4)

    def reset(self, *, seed=None, options=None):
        self.image = np.full((4, 84, 84), 7, np.uint8)
        return self.image, {}

    def step(self, action):
        return self.image, 1.0, False, False, {"speed": 1.0}


class Nature(BaseActorModule):
    """Acts by the network of Mnih et al. (2015)."""

    def __init__(self):
        super().__init__()
        self.network = nn.Sequential(
            nn.Conv2d(4, 32, 8, 4), nn.ReLU(), nn.Conv2d(32, 64, 4, 2), nn.ReLU(), nn.Conv2d(64, 64, 3), nn.ReLU(),
            nn.Flatten(), nn.Linear(3136, 512), nn.ReLU(), nn.Linear(512, 5),
        )  # fmt: skip

    def forward(self, obs, *, hx=None, **ignored):
        logits, value = self.network(obs[0] / 255).split([4, 1], dim=-1)
        act = sampling.categorical(logits[None], generator=self.generator)
        return act, (), {"logits": logits[None], "value": value[None, :, 0]}


class Gru(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.core, self.head = nn.GRU(4, 8), nn.Linear(8, 2)

    def forward(self, obs, *, hx=None, **ignored):
        out, hx = self.core(obs, hx)
        logits = self.head(out)
        return sampling.categorical(logits, generator=self.generator), hx, logits


def make_cartpole():
    return gymnasium.make("CartPole-v1", max_episode_steps=7)


WORKS = {
    "CartPole": (make_cartpole, lambda: ActorCritic(mlp(4, 16, 2), mlp(4, 16, 1)), 16),
    "pixels": (Pixels, Nature, 4 * 84 * 84),
}


def count(make_env, make_actor, n_steps, *, engine=same, groups=1, n_fragments=2, **options):
    """Return what the lane is asked for by some fragments after the first two, and in all."""
    lane = LaggingLane()
    envs = [make_env() for _ in range(WIDTH * groups)]
    with engine.rollout(
        envs, make_actor(), n_steps, seed=0, compile=True, groups=groups, device=lane, lag=0, **options
    ) as feed:
        for _ in range(2):
            next(feed)
        before = lane.counters.copy()
        for _ in range(n_fragments):
            next(feed)
        return lane.counters.since(before), lane.counters.copy()


def count_per_step(*args, groups=1, **options):
    """Return what a step of one group costs: the slope over the length of fragments."""
    (short, _), (long, _) = (count(*args, n_steps, groups=groups, **options) for n_steps in STEPS)
    difference = long.since(short)
    assert difference.steps == 2 * (STEPS[1] - STEPS[0]) * groups
    return Counters(**{name: value / difference.steps for name, value in vars(difference).items()})


@pytest.mark.parametrize("groups", [1, 3])
@pytest.mark.parametrize("work", WORKS)
def test_a_step_of_a_group_takes_one_copy_each_way_one_wait_and_one_launch(work, groups):
    make_env, make_actor, observation = WORKS[work]
    costs = count_per_step(make_env, make_actor, groups=groups)
    assert (costs.copies_up, costs.copies_down, costs.host_waits, costs.launches) == (1, 1, 1, 1)
    assert costs.allocations == 0
    small = 8 + 8 + 4 + 4 * 1  # step count, action, reward and four flags, in bytes
    padding = 8 * 16 + 64  # leaves begin at multiples of 16 bytes, blocks at multiples of 64
    assert WIDTH * observation <= costs.bytes_up <= WIDTH * (observation + small) + padding
    assert costs.bytes_down == WIDTH * 8


@pytest.mark.parametrize("groups", [1, 3])
def test_the_copies_of_a_captured_step_are_part_of_its_graph(groups, monkeypatch):
    calls, copy = Tally(), LaggingLane.copy

    def noting_copy(lane, target, source):
        calls[n_steps] += not hasattr(lane._thread, "captured")  # that is there inside of a capture
        copy(lane, target, source)

    monkeypatch.setattr(LaggingLane, "copy", noting_copy)
    for n_steps in (12, 24):  # these begin at the same row of the ring, so they capture alike
        count(make_cartpole, WORKS["CartPole"][1], n_steps, groups=groups)
    assert calls[12] == calls[24] > 0


def test_observations_are_copied_into_the_fragment_as_words_instead_of_bytes(monkeypatch):
    """A device copies rows that have gaps between them number by number."""
    copied = copied_forms(monkeypatch, n_rows=9)
    with same.rollout([Pixels() for _ in range(WIDTH)], Nature(), 8, device=LaggingLane()) as feed:
        next(feed)
    assert (torch.int64, 9 * WIDTH * 4 * 84 * 84 // 8) in copied
    assert all(dtype != torch.uint8 for dtype, _ in copied)


@pytest.mark.parametrize("options", [{"info": ["speed"]}, {"final": True}], ids=str)
def test_infos_go_up_with_their_row_and_last_observations_by_a_copy_of_their_own(options):
    plain, more = (count_per_step(Pixels, Nature, **some) for some in ({}, options))
    assert more.copies_up == plain.copies_up
    assert more.bytes_up - plain.bytes_up <= 64
    assert (more.copies_down, more.host_waits, more.launches) == (1, 1, 1)


def test_each_step_that_ends_an_episode_takes_one_more_copy_with_final():
    """That of the true last observations. All episodes of these environments end together, at each 7th step."""

    class Clock(Pixels):
        def reset(self, *, seed=None, options=None):
            self.left = 8
            return super().reset()

        def step(self, action):
            self.left -= 1
            return self.image, 1.0, not self.left, False, {}

    plain, final = (count_per_step(Clock, Nature, **some) for some in ({}, {"final": True}))
    assert final.copies_up - plain.copies_up == 1 / 8
    assert (final.host_waits, final.launches) == (plain.host_waits, plain.launches)


def test_a_recurrent_state_takes_no_copy_and_no_wait():
    costs = count_per_step(make_cartpole, Gru)
    assert (costs.copies_up, costs.copies_down, costs.host_waits, costs.launches) == (1, 1, 1, 1)


@pytest.mark.parametrize("work", WORKS)
def test_page_locked_memory_does_not_depend_on_the_length_of_fragments(work):
    make_env, make_actor, _ = WORKS[work]
    sizes = []
    for n_steps in (16, 512):
        lane = LaggingLane()
        with same.rollout([make_env() for _ in range(WIDTH)], make_actor(), n_steps, device=lane):
            sizes.append(lane.counters.locked_bytes)
    assert sizes[0] == sizes[1] > 0


def test_memory_that_a_lane_is_to_lock_counts_as_page_locked():
    """That of worker processes is memory which they share with the collector."""
    lane, shared = LaggingLane(), np.zeros(96, np.uint8)
    assert lane.lock(shared).data_ptr() == shared.ctypes.data
    assert lane.counters.locked_bytes == 96


def test_a_fragment_takes_one_allocation_for_each_of_its_leaves_and_each_weight():
    make_env, make_actor, _ = WORKS["CartPole"]
    costs, _ = count(make_env, make_actor, 8, n_fragments=5)
    actor = make_actor()
    n_leaves = 5 + 3 + 2  # of state, outcome and info
    assert costs.allocations == 5 * (n_leaves + len(list(actor.parameters())))


# the operations of a captured step that are not the actor's own, nor copies between host and device: the row is written
# into its place, and the noise is gathered, which the actor itself would draw by three operations; infos, action and
# recurrent state are written into their places, the recurrent state is reset, and the indices of row and noise are
# incremented at once
COPIES = Tally({"copy_": 2})
DRAWS = Tally({"empty": 1, "exponential_": 1, "clamp_min_": 1, "log_": 1})
ALWAYS = Tally({"index_copy_": 1, "index_select": 1, "copy_": 1, "_foreach_add_": 1})
INFO, RECURRENT_STATE = Tally({"index_copy_": 1}), Tally({"copy_": 1, "masked_fill": 1})
BESIDE_THE_ACTOR = {
    "CartPole": (make_cartpole, WORKS["CartPole"][1], ALWAYS + INFO + INFO),
    "pixels": (Pixels, Nature, ALWAYS + INFO + INFO),
    "recurrent": (make_cartpole, Gru, ALWAYS + INFO + RECURRENT_STATE),
}


@pytest.mark.parametrize("work", BESIDE_THE_ACTOR)
def test_a_captured_step_adds_few_operations_to_those_of_the_actor(work, monkeypatch):
    make_env, make_actor, expected = BESIDE_THE_ACTOR[work]
    logs = []

    class NotingLog(OperationLog):
        def __enter__(self):
            logs.append(self)
            return super().__enter__()

    monkeypatch.setattr(lagging, "OperationLog", NotingLog)
    count(make_env, make_actor, 4, n_fragments=1)
    own = operations_of(make_actor(), make_env())
    first, later = (Tally(log.names) for log in logs[:2])  # the others are virtual, or of other modes
    assert later - own == expected + COPIES
    assert own - later == DRAWS
    # row 0 is on the device, so it is gathered there instead of copied from the host and written into its place
    assert first - later == Tally({"index_select": 1})
    assert later - first == Tally({"index_copy_": 1, "copy_": 1})


def operations_of(actor, env):
    """Return the operations of a step of the actor itself."""
    actor.generator = torch.Generator()
    obs = torch.from_numpy(np.stack([env.reset(seed=0)[0]] * WIDTH))[None]
    zeros, rew, fin = (torch.zeros((1, WIDTH), dtype=dtype) for dtype in (torch.int64, torch.float32, torch.bool))
    with torch.no_grad():
        _, hx, _ = actor.step(zeros, obs, zeros, rew, fin, hx=None, virtual=True)
        with OperationLog([actor.generator], lambda x: lambda: x) as log:
            actor.step(zeros, obs, zeros, rew, fin, hx=hx, virtual=False)
    return Tally(log.names)


def test_stats_tell_what_a_step_takes():
    make_env, make_actor, _ = WORKS["pixels"]
    with same.rollout([make_env() for _ in range(WIDTH)], make_actor(), 50, compile=True, device=LaggingLane()) as feed:
        for _ in range(3):
            next(feed)
        stats = feed.stats
    assert stats.counters.steps == 150
    each, said = stats.counters.per_step(), " ".join(str(stats).split())
    assert f"a step of a group takes {each['copies_up']:.2f} copies up ({each['bytes_up'] / 1e3:,.1f} kB)" in said
    assert f"{each['host_waits']:.2f} waits, {each['launches']:.2f} launches; 0.3 MB page-locked" in said
    assert 1.0 < each["host_waits"] < 1.1
    assert max(map(len, str(stats).splitlines())) < 80


@pytest.mark.parametrize("engine", [same, threaded])
def test_a_host_without_a_device_counts_nothing(engine):
    with engine.rollout([make_cartpole()], WORKS["CartPole"][1](), 5) as feed:
        next(feed)
        assert feed.stats.counters == Counters()
        assert "device:" not in str(feed.stats)
