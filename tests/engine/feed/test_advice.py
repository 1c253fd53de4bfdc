"""The advice of `feed.stats` names only engines that take the environments, and what the cores allow."""

from __future__ import annotations

import re

import gymnasium
import pytest

from rlplay import interpreter
from rlplay.engine.feed.stats import CollectorTime, LearnerTime, Stats, advice
from rlplay.engine.remote.joined_collector import JoinedCollector
from rlplay.engine.rollout import same, single, threaded
from rlplay.testing import CountingActor, LedgerEnv
from tests.support.tensors import Script, ScriptActor

STEPPING_IS_SLOW = CollectorTime(80, 10, 5, 5), LearnerTime(90, 10)
INFERENCE_IS_SLOW = CollectorTime(10, 80, 5, 5), LearnerTime(90, 10)
TRANSFER_IS_SLOW = CollectorTime(10, 5, 80, 5), LearnerTime(90, 10)
TURNS = CollectorTime(40, 5, 5, 50), LearnerTime(50, 50)
BOTH_BUSY = CollectorTime(80, 10, 5, 5), LearnerTime(5, 95)
EACH_WAITS = CollectorTime(60, 10, 10, 20), LearnerTime(25, 75)
TRAINING_IS_SLOW = CollectorTime(20, 5, 5, 70), LearnerTime(5, 95)
ALL = STEPPING_IS_SLOW, INFERENCE_IS_SLOW, TRANSFER_IS_SLOW, TURNS, BOTH_BUSY, EACH_WAITS, TRAINING_IS_SLOW
ENGINES = "same", "threaded", "workers", "processes", "cluster"


@pytest.fixture(autouse=True, params=[True, False], ids=["lock", "no lock"])
def _lock(request, monkeypatch):
    monkeypatch.setattr(interpreter, "has_lock", lambda: request.param)


@pytest.mark.parametrize("times", ALL)
@pytest.mark.parametrize("engine", ["same", "threaded", "workers"])
@pytest.mark.parametrize("kind", ["vector", "torch"])
@pytest.mark.parametrize("cores", [1, 8])
def test_environments_that_other_engines_refuse_are_not_sent_there(kind, engine, times, cores):
    said = advice(*times, engine, kind, cores)
    named = set(re.findall("`([a-z_]+)[`=]", said))
    assert not named & {"single", "multi", "workers", "worker"}, said
    assert "actor_device" not in named or kind == "vector"
    assert named or times is not TURNS


def test_what_is_possible_is_named_instead():
    assert "more parts in the vector environment" in advice(*STEPPING_IS_SLOW, "same", "torch", 8)
    assert advice(*TURNS, "same", "torch", 8).endswith("let them overlap: `threaded`")
    assert "`threaded`" in advice(*TURNS, "same", "vector", 8)


def test_vector_environments_that_step_side_by_side_are_not_to_be_replaced():
    said = advice(*STEPPING_IS_SLOW, "same", "vector", 8)
    assert "one after another, as `SyncVectorEnv` does" in said
    assert "`AsyncVectorEnv`" in said
    assert said.endswith("else make a step cheaper")


@pytest.mark.parametrize("times", [BOTH_BUSY, EACH_WAITS, TRAINING_IS_SLOW])
@pytest.mark.parametrize(("kind", "cores"), [("list", 8), ("list", 1), ("vector", 8), ("torch", 8)])
def test_a_thread_is_compared_with_engines_that_take_the_environments(kind, cores, times):
    said = advice(*times, "threaded", kind, cores)
    if interpreter.has_lock():
        assert said.endswith("those of `same` and `single`" if (kind, cores) == ("list", 8) else "those of `same`")
    else:
        assert "the interpreter lock" not in said
        assert "`same`" not in said


@pytest.mark.parametrize("engine", ENGINES[:-1])
def test_where_there_is_one_core_no_processes_are_advised(engine):
    said = advice(*STEPPING_IS_SLOW, engine, "list", 1)
    assert "there is only one core. Processes help only if steps wait" in said
    assert "in a vector environment" in said
    for times in ALL:
        assert not re.search("`(single|multi|workers)`", advice(*times, engine, "list", 1))
    assert "there is one core" in advice(*TURNS, engine, "list", 1)
    assert "one core" not in advice(*STEPPING_IS_SLOW, engine, "list", 2)


@pytest.mark.parametrize("engine", ["same", "threaded", "workers"])
def test_where_there_is_one_core_vector_environments_are_not_to_become_processes(engine):
    said = advice(*STEPPING_IS_SLOW, engine, "vector", 1)
    assert "there is only one core. Processes help only if steps wait" in said
    assert "Otherwise make a step cheaper" in said
    assert "AsyncVectorEnv" not in said
    assert "in a vector environment" not in said


def test_the_cores_of_a_cluster_are_not_those_of_this_machine():
    for times in ALL:
        assert advice(*times, "cluster", "list", 1) == advice(*times, "cluster", "list", 8)


def test_the_cores_are_those_that_this_process_may_use(monkeypatch):
    monkeypatch.setattr(interpreter, "usable_cores", lambda: 1)
    assert "there is only one core" in " ".join(str(Stats(1, 1.0, 1.0, *STEPPING_IS_SLOW)).split())
    monkeypatch.setattr(interpreter, "usable_cores", lambda: 2)
    assert "one core" not in " ".join(str(Stats(1, 1.0, 1.0, *STEPPING_IS_SLOW)).split())


def vector():
    return gymnasium.vector.SyncVectorEnv([lambda: LedgerEnv(gymnasium.spaces, 0)] * 2)


class Releases(gymnasium.vector.SyncVectorEnv):
    releases_interpreter_lock = True


FEEDS = {
    "list": lambda: same.rollout([LedgerEnv(gymnasium.spaces, 0)], CountingActor(), 3),
    "worker threads": lambda: threaded.rollout(
        [lambda: LedgerEnv(gymnasium.spaces, 0)], CountingActor(), 3, workers=1, worker="thread"
    ),
    "single": lambda: single.rollout(lambda: LedgerEnv(gymnasium.spaces, 0), CountingActor(), 3, 1),
    "vector": lambda: same.rollout(vector(), CountingActor(), 3),
    "vectors": lambda: threaded.rollout([vector(), vector()], CountingActor(), 3),
    "vectors with threads": lambda: threaded.rollout(
        [Releases([lambda: LedgerEnv(gymnasium.spaces, 0)] * 2) for _ in range(2)], CountingActor(), 3
    ),
    "factories of vectors": lambda: same.rollout([vector], CountingActor(), 3),
    "torch": lambda: same.rollout(Script(), ScriptActor(Script()), 3),
    "torch in a thread": lambda: threaded.rollout([Script(), Script()], ScriptActor(Script()), 3),
}


def test_collectors_elsewhere_have_single_environments():
    assert JoinedCollector.environments_are == "list"


@pytest.mark.parametrize("name", FEEDS)
def test_the_kind_of_the_environments_of_a_feed_is_known(name):
    with FEEDS[name]() as feed:
        kind = feed.stats.environments
    assert kind == ("torch" if "torch" in name else "vector" if "vector" in name else "list")
    assert feed.stats.environments == kind
