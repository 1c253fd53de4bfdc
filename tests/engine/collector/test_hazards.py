"""The edges that guard memory on an asynchronous device: without any one of them, fragments are wrong.

The lagging device does its work as late as it may (or, with `haste`, as early as it may). Each scenario must give right
fragments with all edges, and wrong ones with one edge taken out.
"""

import threading
from functools import partial

import gym
import pytest
import torch

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.collector import collector, loop
from rlplay.engine.collector.staging import Staging
from rlplay.engine.memory.lane import Place
from rlplay.engine.rollout import same, threaded
from rlplay.testing import LaggingLane
from tests.support.assertions import equal_tensors
from tests.support.edges import (
    borrowing_is_not_recorded,
    check_edge,
    collectors_do_not_wait,
    consumers_do_not_wait,
    copied_on_consumer_stream,
    filled_with_sevens,
    the_host_does_not_wait_for_the_collector,
)

pytestmark = pytest.mark.usefixtures("no_stock")

N_ENVS, N_STEPS, N_FRAGMENTS = 3, 15, 6


class LinearActor(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, obs, *, hx=None, **ignored):
        logits = self.head(obs)
        return sampling.categorical(logits, generator=self.generator), hx, logits


def make_envs():
    return [gym.make("CartPole-v1") for _ in range(N_ENVS)]


def fragments_of(engine, lane=None, *, captured=False, **options):
    """Collect fragments, each read and learnt from on the consumer's stream, and nothing waited for until the end."""
    torch.manual_seed(0)
    actor, read = LinearActor(), []
    device = {} if lane is None else {"device": lane, "compile": captured}
    launch = (lambda work: work()) if lane is None else lane.launch

    def learn():
        with torch.no_grad():
            actor.head.weight.add_(0.1)

    with engine.rollout(make_envs(), actor, N_STEPS, seed=0, final=True, **device, **options) as feed:
        for _ in range(N_FRAGMENTS):
            fragment = next(feed)
            # the consumer's kernels hold on to no memory: the fragment is dropped before it has been read
            read_on_consumer_stream(lane, fragment, read)
            del fragment
            launch(learn)
        if lane is not None:
            lane.synchronize()
    return read


def read_on_consumer_stream(lane, fragment, read):
    if lane is None:
        read.append(nested.map(torch.clone, fragment))
        return
    read.append(copied_on_consumer_stream(lane, fragment))


def rows_are_uploaded_before_they_are_filled(monkeypatch, lane):
    react, finish_step, due = loop.Loop._react, loop.Loop._finish_step, {}

    def react_before_the_step_is_finished(self, turn, t, *, virtual=False):
        react(self, turn, t, virtual=virtual)
        if turn in due:
            finish_step(self, turn, due.pop(turn))

    monkeypatch.setattr(loop.Loop, "_react", react_before_the_step_is_finished)
    monkeypatch.setattr(loop.Loop, "_finish_step", lambda self, turn, t: due.update({turn: t}))


def slots_are_refilled_at_once(monkeypatch, lane):
    monkeypatch.setattr(Staging, "copied", property(lambda self: None, lambda self, event: None), raising=False)


def turns_do_not_wait(monkeypatch, lane):
    wait = lane.wait
    monkeypatch.setattr(lane, "wait", lambda event: None if lane.current in lane.turns.values() else wait(event))


def the_collector_does_not_wait_for_turns(monkeypatch, lane):
    wait = lane.wait
    monkeypatch.setattr(
        lane, "wait", lambda event: None if event and event.stream in lane.turns.values() else wait(event)
    )


# how to take the edge out, on what kind of device, and with which options nothing else happens to stand in for it
EDGES = {
    "filled -> copy": (rows_are_uploaded_before_they_are_filled, {"haste": 1.0}, {"lag": 1}),
    "copied -> refill": (slots_are_refilled_at_once, {"actor_on_host": True}, {"lag": 3}),
    "copied -> refill, in the ring": (the_host_does_not_wait_for_the_collector, {}, {"lag": 1}),
    "copied -> read": (consumers_do_not_wait, {}, {"lag": 0}),
    "read -> reuse": (borrowing_is_not_recorded, {}, {"lag": 1}),
    "ready -> first write": (collectors_do_not_wait, {}, {"lag": 1}),
    "started -> first step": (turns_do_not_wait, {}, {"lag": 1, "groups": 3}),
    "stepped -> put together": (the_collector_does_not_wait_for_turns, {}, {"lag": 1, "groups": 2}),
}


ON_DEVICE = [edge for edge, (_, device, _) in EDGES.items() if "actor_on_host" not in device]


@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize(
    ("edge", "captured"), [*((edge, False) for edge in EDGES), *((edge, True) for edge in ON_DEVICE)]
)
def test_fragments_are_right_with_a_memory_edge_and_wrong_without_it(edge, captured, engine, monkeypatch):
    check_edge(EDGES[edge], engine, partial(fragments_of, captured=captured), equal_tensors, monkeypatch)


class SetsEventAtStep(gym.Wrapper):
    """Sets an event at its step number `at`."""

    def __init__(self, env, at, reached):
        super().__init__(env)
        self.left, self.reached = at, reached

    def step(self, action):
        result = self.env.step(action)
        self.left -= 1
        if not self.left:
            self.reached.set()
        return result


def memory_after_closing(monkeypatch, *, with_the_edge):
    """Close a feed with a fragment that was never taken, use its memory for something else, and see what is in it."""
    lane, reached = LaggingLane(), threading.Event()
    if not with_the_edge:
        monkeypatch.setattr(collector.Collector, "synchronize", lambda self: None)
    env = SetsEventAtStep(gym.make("CartPole-v1"), 2 * N_STEPS, reached)
    feed = threaded.rollout([env], LinearActor(), N_STEPS, lag=1, seed=0, device=lane)
    next(feed)
    assert reached.wait(60)  # then the second fragment is on its way: no step's boundary comes any more
    feed.close()
    del feed
    return filled_with_sevens(lane, (1 + N_STEPS, 1, 4), 3)


def test_an_undelivered_fragment_is_released_only_when_nothing_writes_to_it_any_more(monkeypatch):
    """Dropped -> released."""
    assert all((x == 7.0).all() for x in memory_after_closing(monkeypatch, with_the_edge=True))
    assert not all((x == 7.0).all() for x in memory_after_closing(monkeypatch, with_the_edge=False))


def test_the_lagging_device_spoils_released_memory_in_stream_order():
    lane = LaggingLane()
    source = torch.arange(4.0)
    one = lane.empty(Place.CONSUMER, (4,), torch.float32)
    assert torch.isnan(one).all()
    copy = torch.empty(4)
    lane.copy(one, source)
    lane.copy(copy, one)
    address = one.data_ptr()
    del one
    other = lane.empty(Place.CONSUMER, (4,), torch.float32)
    assert other.data_ptr() == address
    lane.synchronize()
    assert torch.equal(copy, source)
    assert torch.isnan(other).all()


def test_the_lagging_device_works_as_late_or_as_early_as_its_haste_says():
    for haste in (0.0, 1.0):
        lane = LaggingLane(haste=haste)
        device, host = lane.empty(Place.ACTOR, (2,), torch.int64), torch.tensor([1, 2])
        lane.copy(device, host)
        host += 1
        lane.synchronize()
        assert device.tolist() == ([2, 3] if haste == 0 else [1, 2])


def test_a_copy_inside_of_launched_work_is_a_part_of_that_work():
    lane = LaggingLane()
    device, host = lane.empty(Place.ACTOR, (2,), torch.int64), torch.tensor([1, 2])

    def copy_and_increment():
        lane.copy(device, host)
        device.add_(1)

    lane.launch(copy_and_increment)
    assert lane.counters.copies_up == 0
    lane.synchronize()
    assert device.tolist() == [2, 3]
    assert lane.counters.copies_up == 1


def test_a_copy_inside_of_captured_work_is_made_and_counted_at_each_replay():
    lane = LaggingLane()
    device, host = lane.empty(Place.ACTOR, (2,), torch.int64), torch.tensor([1, 2])
    with lane.collecting():
        replay = lane.capture(lambda: lane.copy(device, host), [])
        assert lane.counters.copies_up == 0
        for k in range(3):
            host.fill_(k)
            lane.launch(replay)
            lane.synchronize()
            assert device.tolist() == [k, k]
    assert (lane.counters.copies_up, lane.counters.bytes_up) == (3, 3 * 16)


def test_an_exception_on_the_device_is_raised_by_next():
    class FailsInRealSteps(LinearActor):
        def forward(self, obs, *, virtual, **inputs):
            if not virtual:
                raise ArithmeticError("on the device")
            return super().forward(obs, **inputs)

    for engine in (same, threaded):
        feed = engine.rollout(make_envs(), FailsInRealSteps(), N_STEPS, seed=0, device=LaggingLane())
        with pytest.raises(ArithmeticError, match="on the device"):
            next(feed)


def test_a_fragment_that_is_delivered_to_the_host_can_be_read_at_once():
    expected = fragments_of(same, lag=1)
    torch.manual_seed(0)
    actor, got = LinearActor(), []
    with threaded.rollout(
        make_envs(), actor, N_STEPS, seed=0, lag=1, final=True, device=LaggingLane(consumer_on_host=True)
    ) as feed:
        for _ in range(N_FRAGMENTS):
            got.append(nested.map(torch.clone, next(feed)))
            with torch.no_grad():
                actor.head.weight.add_(0.1)
    assert equal_tensors(got, expected)


def test_no_memory_is_lost_over_many_fragments():
    """Blank fragments, snapshots and staged rows come back to where they were allocated."""
    lane = LaggingLane(haste=0.5)
    n_blocks = []
    with threaded.rollout(make_envs(), LinearActor(), N_STEPS, seed=0, lag=2, final=True, device=lane) as feed:
        for _ in range(120):
            next(feed)
            lane.synchronize()
            n_blocks.append(sum(block.bytes.size > 600 for block in lane._blocks.values()))
    # how many blocks are needed at once depends on timing, so there may come a few more: far less than one a fragment
    assert max(n_blocks[40:]) <= max(n_blocks[:40]) + 8
