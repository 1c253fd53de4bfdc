"""What a step of environments on a device costs, counted on the lagging one: copies, waits and launches."""

import pytest
import torch

from rlplay.engine.memory.counters import Counters
from rlplay.engine.rollout import same, threaded
from rlplay.testing import LaggingLane
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch
from tests.support.copies import copied_forms
from tests.support.tensors import Script, ScriptActor

WIDTH, STEPS = 16, (8, 24)
N_WEIGHTS = 8  # those of the learner and of the copy are not in memory that the lane has allocated
N_ENDS = 5  # tensors that come down behind each fragment


class LivesOnDevice(CartPoleBatch):
    """Checks that its step runs as work of the device, and lets no value of a tensor be read."""

    def __init__(self, lane, *, capturable):
        super().__init__(WIDTH)
        self.lane, self.capturable = lane, capturable
        self.n_steps = 0

    def step(self, action):
        assert self.lane.at_work
        self.n_steps += 1
        return super().step(action)


class WatchedLane(LaggingLane):
    """Knows whether work of the device is running."""

    at_work = False

    def launch(self, work):
        def watched():
            self.at_work = True
            try:
                work()
            finally:
                self.at_work = False

        super().launch(watched)

    def capture(self, work, generators, key=0):
        self.at_work = True
        try:
            return super().capture(work, generators, key)
        finally:
            self.at_work = False


def make_actor():
    torch.manual_seed(0)
    return ActorCritic(mlp(4, 16, 2), mlp(4, 16, 1))


def count(n_steps, *, engine=same, capturable=False, compile=True, n_fragments=4, **options):
    """Return what the lane is asked for by some fragments after the first two."""
    lane = WatchedLane()
    env = LivesOnDevice(lane, capturable=capturable)
    with engine.rollout(env, make_actor(), n_steps, seed=0, device=lane, compile=compile, **options) as feed:
        for _ in range(2):
            next(feed)
        before = lane.counters.copy()
        for _ in range(n_fragments):
            next(feed)
        counted = lane.counters.since(before)
        lane.synchronize_collector()
    assert env.n_steps > 0
    return counted


def count_per_step(**options):
    short, long = (count(n_steps, **options) for n_steps in STEPS)
    difference = long.since(short)
    assert difference.steps == 4 * (STEPS[1] - STEPS[0])
    return Counters(**{name: value / difference.steps for name, value in vars(difference).items()})


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize(("compile", "capturable", "launches"), [(False, True, 2), (True, False, 2), (True, True, 1)])
def test_a_step_takes_no_copy_and_no_wait_and_captured_together_one_launch(compile, capturable, launches, final):
    costs = count_per_step(compile=compile, capturable=capturable, final=final)
    assert (costs.copies_up, costs.copies_down, costs.host_waits, costs.allocations) == (0, 0, 0, 0)
    if not final:  # with it, more episodes end in longer fragments: so there are more reactions at their end
        assert (costs.launches, costs.bytes_up) == (launches, 0)


def test_observations_are_copied_into_the_fragment_as_words_instead_of_numbers(monkeypatch):
    """A device copies rows that have gaps between them number by number; here two numbers are a word."""
    copied = copied_forms(monkeypatch, n_rows=9)
    count(8, n_fragments=1)
    assert (torch.int64, 9 * WIDTH * 2) in copied
    assert (torch.float32, 9 * WIDTH * 4) not in copied


def test_without_final_nothing_is_waited_for():
    for capturable in (False, True):
        costs = count(16, capturable=capturable)
        assert (costs.host_waits, costs.copies_up) == (0, 4 * N_WEIGHTS)
        assert costs.copies_down == 4 * (N_WEIGHTS + N_ENDS)


def test_with_final_there_is_one_wait_a_fragment():
    costs = count(16, final=True)
    assert costs.host_waits == 4
    assert costs.copies_down == 4 * (N_WEIGHTS + N_ENDS)


def test_the_host_memory_for_ends_is_used_again():
    lane = WatchedLane()
    env = LivesOnDevice(lane, capturable=True)
    with same.rollout(env, make_actor(), 8, seed=0, device=lane) as feed:
        sizes = []
        for _ in range(6):
            next(feed)
            feed.episodes()
            sizes.append(lane.counters.locked_bytes)
    assert len(set(sizes)) == 1


def test_the_host_memory_for_ends_is_used_again_although_nobody_asks_for_episodes():
    lane = WatchedLane(haste=1.0)
    with same.rollout(LivesOnDevice(lane, capturable=True), make_actor(), 8, seed=0, device=lane) as feed:
        sizes, waits = [], []
        for _ in range(8):
            next(feed)
            sizes.append(lane.counters.locked_bytes)
            waits.append(lane.counters.host_waits)
    assert len(set(sizes)) == len(set(waits)) == 1


def test_episodes_that_nobody_asks_for_are_read_after_a_while(monkeypatch):
    monkeypatch.setattr("rlplay.engine.feed.episode_log._KEPT_LATE", 3)
    lane = WatchedLane()
    with same.rollout(LivesOnDevice(lane, capturable=True), make_actor(), 8, seed=0, device=lane) as feed:
        next(feed)
        before = lane.counters.host_waits
        for k in range(1, 8):
            next(feed)
            assert lane.counters.host_waits - before == max(0, k - 2)
            assert f"{WIDTH * 8 * max(0, k - 2)} steps" in repr(feed)
        assert feed.steps == WIDTH * 8 * 8


@pytest.mark.parametrize("engine", [same, threaded])
def test_stats_count_the_steps(engine):
    lane = LaggingLane()
    with engine.rollout(Script(), ScriptActor(Script()), 10, device=lane) as feed:
        for _ in range(3):
            next(feed)
        stats = feed.stats
    assert stats.steps == 3 * 10 * 5
    assert stats.counters.steps >= 30
