"""The edges that guard memory, with environments on the device: without any one of them, fragments are wrong."""

import threading

import pytest
import torch

from rlplay import nested
from rlplay.engine.collector.collector import Collector
from rlplay.engine.memory.lane import Lane
from rlplay.engine.rollout import same, threaded
from rlplay.engine.tensors.collector import TensorCollector
from rlplay.testing import LaggingLane
from tests.support.assertions import equal_tensors
from tests.support.edges import (
    borrowing_is_not_recorded,
    check_edge,
    collectors_do_not_wait,
    consumers_do_not_wait,
    copied_on_consumer_stream,
    filled_with_sevens,
    the_host_does_not_wait_for_the_caller,
    the_host_does_not_wait_for_the_collector,
)
from tests.support.tensors import Script, ScriptActor

N_STEPS, N_FRAGMENTS = 9, 6


def fragments_of(engine, lane=None, **options):
    """Collect fragments, each read and learnt from on the consumer's stream, and nothing waited for until the end."""
    env = Script()
    actor, read = ScriptActor(env), []
    device = {} if lane is None else {"device": lane}
    launch = (lambda work: work()) if lane is None else lane.launch

    def learn():
        with torch.no_grad():
            actor.weight.add_(1.0)

    options = {"final": True} | options
    with engine.rollout(env, actor, N_STEPS, seed=0, **device, **options) as feed:
        for _ in range(N_FRAGMENTS):
            fragment = next(feed)
            read.append(fragment if lane is None else copied_on_consumer_stream(lane, fragment))
            del fragment  # the consumer's kernels hold on to no memory
            launch(learn)
        if lane is not None:
            lane.synchronize()
        return read, feed.episodes()


def all_equal(some, others):
    return some[1] == others[1] and equal_tensors(some[0], others[0])


def the_memory_is_refilled_at_once(monkeypatch, lane):
    never = property(lambda self: None, lambda self, event: None)
    monkeypatch.setattr(TensorCollector, "_copied", never, raising=False)


EDGES = {
    "copied -> refill": (the_memory_is_refilled_at_once, {"actor_on_host": True}, {"lag": 2}),
    "copied -> read": (consumers_do_not_wait, {}, {"lag": 0}),
    "read -> reuse": (borrowing_is_not_recorded, {}, {"lag": 1}),
    "ready -> first write": (collectors_do_not_wait, {}, {"lag": 1}),
    "ends come down, with final": (the_host_does_not_wait_for_the_collector, {}, {"lag": 1}),
    "ends come down, behind the fragment": (the_host_does_not_wait_for_the_collector, {}, {"lag": 1, "final": False}),
}


@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize("edge", EDGES)
def test_fragments_are_right_with_a_memory_edge_and_wrong_without_it(edge, engine, monkeypatch):
    check_edge(EDGES[edge], engine, fragments_of, all_equal, monkeypatch)


def memory_after_closing(monkeypatch, *, with_the_edge):
    """Close a feed with a fragment that was never taken, use its memory for something else, and see what is in it."""
    lane, reached, deliver = LaggingLane(), threading.Event(), TensorCollector._deliver

    def deliver_and_tell(self, *args):
        delivery = deliver(self, *args)
        if self._n_collected == 2:
            reached.set()
        return delivery

    monkeypatch.setattr(TensorCollector, "_deliver", deliver_and_tell)
    if not with_the_edge:
        monkeypatch.setattr(Collector, "synchronize", lambda self: None)
    env = Script()
    feed = threaded.rollout(env, ScriptActor(env), N_STEPS, lag=1, seed=0, device=lane)
    next(feed)
    assert reached.wait(60)  # then the second fragment is on its way
    feed.close()
    del feed
    return filled_with_sevens(lane, (1 + N_STEPS, 5, 3), 4)


def test_an_undelivered_fragment_is_released_only_when_nothing_writes_to_it_any_more(monkeypatch):
    """Dropped -> released."""
    assert all((x == 7.0).all() for x in memory_after_closing(monkeypatch, with_the_edge=True))
    assert not all((x == 7.0).all() for x in memory_after_closing(monkeypatch, with_the_edge=False))


def test_no_memory_is_lost_over_many_fragments():
    lane, env, sizes = LaggingLane(haste=0.5), Script(), []
    with threaded.rollout(env, ScriptActor(env), N_STEPS, seed=0, lag=2, final=True, device=lane) as feed:
        for _ in range(40):
            next(feed)
            lane.synchronize()
            sizes.append(sum(block.bytes.size for block in lane._blocks.values() if block.bytes.size > 1000))
    assert max(sizes[20:]) == sizes[20]


@pytest.mark.parametrize("engine", [same, threaded])
def test_the_environments_memory_is_written_before_they_are_reset(engine, monkeypatch):
    """Called -> made: the caller has just filled the environment's memory, on its own stream."""

    def first_row(lane, take_out=lambda patch, lane: None):
        env = Script()
        parts = env.part.clone()
        env.part.zero_()
        lane.launch(lambda: env.part.copy_(parts))
        with monkeypatch.context() as patch:
            take_out(patch, lane)
            feed = engine.rollout(env, ScriptActor(env), N_STEPS, seed=0, device=lane)
        with feed:
            row = copied_on_consumer_stream(lane, next(feed).state.obs[0])
            lane.host_wait(lane.record())
        return row

    expected = first_row(Lane(torch.device("cpu"), torch.device("cpu")))
    assert equal_tensors(first_row(LaggingLane()), expected)
    assert not equal_tensors(first_row(LaggingLane(), the_host_does_not_wait_for_the_caller), expected)


@pytest.mark.parametrize("engine", [same, threaded])
def test_the_collectors_stream_borrows_the_memory_of_environments(engine, monkeypatch):
    """Else memory that a step drops could be used again on the caller's stream before the step has read it."""
    lane, borrowed, env = LaggingLane(), [], Script(in_place=True, obs="nested")
    monkeypatch.setattr(lane, "borrow", lambda tree: borrowed.append((lane.current, nested.leaves(tree))))
    with engine.rollout(env, ScriptActor(env), N_STEPS, seed=0, device=lane):
        ((stream, tensors),) = borrowed
    assert stream is lane.collector
    expected = [env.stepno, env.episode, env.last_act, env.part, env.ended, env._memory["code"]]
    assert {id(x) for x in expected} == {id(x) for x in tensors}


class NotesStreams(Script):
    def __init__(self, lane):
        super().__init__()
        self.lane, self.streams = lane, [lane.current]

    def reset(self, **options):
        self.streams.append(self.lane.current)
        return super().reset(**options)


@pytest.mark.parametrize("engine", [same, threaded])
def test_environments_are_made_and_reset_and_the_actor_is_tried_out_on_the_collectors_stream(engine):
    lane, made, tried = LaggingLane(), [], []

    def make():
        made.append(NotesStreams(lane))
        return made[0]

    class Tells(ScriptActor):
        def forward(self, *args, **inputs):
            tried.append(lane.current)
            return super().forward(*args, **inputs)

    with engine.rollout([make], Tells(Script()), N_STEPS, seed=0, device=lane) as feed:
        n = len(tried)
        with torch.autocast("cpu"):
            next(feed)  # the actor is tried out again, in the consumer's thread
    assert made[0].streams == [lane.collector] * 2
    assert n
    assert tried[: 2 * n] == [lane.collector] * 2 * n


@pytest.mark.parametrize("engine", [same, threaded])
def test_an_error_of_an_environment_on_the_device_is_raised_once_something_waits(engine):
    class Fails(Script):
        def step(self, action):
            if self.n_steps == 4:
                raise ArithmeticError("on the device")
            return super().step(action)

    env = Fails()
    feed = engine.rollout(env, ScriptActor(env), N_STEPS, seed=0, lag=0, final=True, device=LaggingLane())
    with pytest.raises(ArithmeticError, match="on the device"):
        next(feed)
    env = Fails()
    feed = engine.rollout(env, ScriptActor(env), N_STEPS, seed=0, lag=0, device=LaggingLane(haste=1.0))
    with pytest.raises(ArithmeticError, match="on the device"):
        next(feed)
    env = Fails()
    with engine.rollout(env, ScriptActor(env), N_STEPS, seed=0, lag=0, device=LaggingLane()) as feed:
        next(feed)
        with pytest.raises(ArithmeticError, match="on the device"):
            feed.episodes()
