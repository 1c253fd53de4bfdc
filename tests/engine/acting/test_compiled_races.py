"""A compiled step whose learner publishes a snapshot while the collector's thread begins with an earlier one."""

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from rlplay.engine.acting.compile import compiled
from rlplay.engine.acting.make import make_behaviour
from rlplay.engine.memory.cuda import lane_between
from rlplay.testing import CountingActor
from tests.support.threads import InThread, interrupted


class Numbers(CountingActor):
    """Has an attribute that the step reads, and one that it does not."""

    def __init__(self):
        super().__init__()
        self.read = self.unread = 0


@pytest.fixture(autouse=True)
def compiles_in_no_time(monkeypatch):
    def traced(self, modes):
        if self._twin.read == 9:
            raise ValueError("on purpose")
        return {(1, virtual): SimpleNamespace(key=(self._twin.read, virtual)) for virtual in (False, True)}

    monkeypatch.setattr(compiled.CompiledBehaviour, "_traced", traced)
    monkeypatch.setattr(compiled, "Program", lambda graph, weights: SimpleNamespace(key=graph.key, update_derived=list))


def publish(actor, behaviour, **changes):
    """Change attributes of the learner's actor, and return a snapshot of it."""
    vars(actor).update(changes)
    return behaviour.publish(actor)


def actor_and_behaviour():
    actor = Numbers()
    behaviour = make_behaviour(actor, lane_between("cpu", "cpu", torch.device("cpu")), compile=True)
    publish(actor, behaviour)
    return actor, behaviour


def test_a_snapshot_is_adopted_though_an_attribute_turns_out_to_be_unread_at_any_line():
    def publish_at_a_line():
        passed.append(None)
        if len(passed) == line + 1:
            latest.append(InThread(lambda: publish(actor, behaviour, unread=2)).wait().value)

    line, passed = 0, [None]
    while line < len(passed):
        (actor, behaviour), passed, latest = actor_and_behaviour(), [], []
        earlier = publish(actor, behaviour, read=1, unread=1)  # either of the two might be what alters the step
        interrupted(
            lambda behaviour=behaviour, snapshot=earlier: behaviour.adopt(snapshot), "compile/compiled.py",
            publish_at_a_line,
        )  # fmt: skip
        assert {program.key for program in behaviour._active_programs.values()} == {(1, False), (1, True)}
        for snapshot in latest:
            assert behaviour._latest[tuple(snapshot.modes)][1] is snapshot.plain, f"published before line {line}"
        line += 1
    assert line > 10


def test_publishing_changes_no_table_that_the_collector_may_be_iterating_over():
    actor, behaviour = actor_and_behaviour()
    behaviour._probed = True  # so that a failure is a warning of the publication
    tables = behaviour._steps._tables
    before = list(tables)
    with pytest.warns(RuntimeWarning, match="on purpose"):
        publish(actor, behaviour, read=9)
    assert any(step.why_eager for _, step in behaviour._steps)
    assert list(tables) == before
