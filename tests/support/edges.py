"""Edges that guard memory: how they are taken out of a lagging lane, and what must happen then."""

from __future__ import annotations

import torch

from rlplay import nested
from rlplay.engine.memory.lane import Place
from rlplay.engine.rollout import same
from rlplay.testing import LaggingLane


def consumers_do_not_wait(monkeypatch, lane):
    wait = lane.wait
    monkeypatch.setattr(lane, "wait", lambda event: None if lane.current is lane.consumer else wait(event))


def collectors_do_not_wait(monkeypatch, lane):
    wait = lane.wait
    monkeypatch.setattr(lane, "wait", lambda event: None if lane.current is lane.collector else wait(event))


def borrowing_is_not_recorded(monkeypatch, lane):
    monkeypatch.setattr(lane, "borrow", lambda tree: None)


def the_host_does_not_wait_for_the_collector(monkeypatch, lane):
    host_wait = lane.host_wait
    monkeypatch.setattr(
        lane, "host_wait", lambda event: None if event and event.stream is not lane.consumer else host_wait(event)
    )


def the_host_does_not_wait_for_the_caller(monkeypatch, lane):
    host_wait = lane.host_wait
    monkeypatch.setattr(
        lane, "host_wait", lambda event: None if event and event.stream is lane.consumer else host_wait(event)
    )


def copied_on_consumer_stream(lane, fragment):
    """Return a copy that is complete once the consumer's stream has been waited for."""
    copy = nested.map(lambda x: torch.empty(x.shape, dtype=x.dtype), fragment)
    lane.copy(copy, fragment)
    return copy


def check_edge(edge, engine, fragments_of, all_equal, monkeypatch):
    """Check that fragments are right with an edge, and wrong or refused without it.

    ``edge`` has the function that takes it out, the options of the lane, and those of the feed.
    """
    take_out, kind, options = edge
    expected = fragments_of(same, **options)
    assert all_equal(fragments_of(engine, LaggingLane(**kind), **options), expected)
    lane = LaggingLane(**kind)
    take_out(monkeypatch, lane)
    try:
        got = fragments_of(engine, lane, **options)
    except Exception:  # garbage for an action or an index may well be noticed
        return
    assert not all_equal(got, expected)


def filled_with_sevens(lane, shape, n):
    """Allocate memory of the consumer's that a closed feed has released, fill it with 7, and let all work be done."""
    mine = [lane.empty(Place.CONSUMER, shape, torch.float32) for _ in range(n)]
    for tensor in mine:
        lane.launch(lambda tensor=tensor: tensor.fill_(7.0))
    lane.synchronize()
    lane.synchronize_collector()
    return mine
