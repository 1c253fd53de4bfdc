"""Every exception passes the library's `with` blocks as it is, also one that takes no assignments."""

from __future__ import annotations

import sys
import traceback
from dataclasses import dataclass
from functools import partial

import cloudpickle
import gymnasium
import pytest

from rlplay.contexts import contextmanager
from rlplay.engine.rollout import episodic, evaluate, multi, same, single, threaded
from rlplay.testing import CountingActor, LedgerEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@dataclass(frozen=True)
class Frozen(Exception):
    code: int


@contextmanager
def block(log, ignored=()):
    log.append("begin")
    try:
        yield log
    except ignored:
        log.append("ignored")
    finally:
        log.append("end")


PASSING = [Frozen(7), ValueError("no"), StopIteration(3), RuntimeError("no"), KeyboardInterrupt(), GeneratorExit()]


@pytest.mark.parametrize("error", PASSING, ids=repr)
def test_a_block_lets_every_exception_pass_with_its_traceback(error):
    log = []

    def explode(given):
        assert given is log
        raise error

    with pytest.raises(type(error)) as caught, block(log) as given:
        explode(given)
    assert caught.value is error
    names = [frame.name for frame in traceback.extract_tb(error.__traceback__)]
    assert names[-1] == "explode"
    assert "block" not in names
    assert log == ["begin", "end"]


def test_a_block_may_swallow_an_exception_or_raise_another_one():
    log = []
    with block(log, ignored=Frozen):
        raise Frozen(7)
    with block(log):
        pass
    assert log == ["begin", "ignored", "end", "begin", "end"]

    @contextmanager
    def replacing():
        try:
            yield
        except Frozen as error:
            raise KeyError("another") from error

    with pytest.raises(KeyError, match="another"), replacing():
        raise Frozen(7)


class FailsInStep(LedgerEnv):
    def step(self, action):
        raise Frozen(7)


class FailsInReset(LedgerEnv):
    def reset(self, **options):
        raise Frozen(7)


class FailingActor(CountingActor):
    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        if not virtual:
            raise Frozen(7)
        return super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)


class FailsAtTheCall(CountingActor):
    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        raise Frozen(7)


ENGINES = {
    "same": lambda env, actor: next(same.rollout([env()], actor, 3)),
    "threaded": lambda env, actor: next(threaded.rollout([env()], actor, 3)),
    "worker threads": lambda env, actor: next(threaded.rollout([env], actor, 3, workers=1, worker="thread")),
    "worker processes": lambda env, actor: next(threaded.rollout([env], actor, 3, workers=1)),
    "single": lambda env, actor: next(single.rollout(env, actor, 3, 1)),
    "multi": lambda env, actor: next(multi.rollout(env, actor, 3, 2, 1)),
    "episodic": lambda env, actor: next(episodic.rollout([env()], actor)),
    "evaluate": lambda env, actor: evaluate.evaluate([env()], actor),
    "background": lambda env, actor: next(evaluate.background(env, actor, 1)),
}


IN_PROCESSES = "worker processes", "single", "multi", "background"
CASES = [
    pytest.param(engine, env, actor, marks=pytest.mark.soak if engine in IN_PROCESSES and k else ())
    for engine in ENGINES
    for k, (env, actor) in enumerate(
        [
            (FailsInStep, CountingActor),
            (FailsInReset, CountingActor),
            (LedgerEnv, FailingActor),
            (LedgerEnv, FailsAtTheCall),
        ]
    )
]


@pytest.mark.parametrize(("engine", "env", "actor"), CASES)
def test_an_exception_that_takes_no_assignments_arrives_with_its_type(engine, env, actor):
    with pytest.raises(Frozen) as caught:
        ENGINES[engine](partial(env, gymnasium.spaces, 0), actor())
    assert caught.value.code == 7


def test_an_exception_passes_the_pause_of_a_feed():
    with same.rollout([LedgerEnv(gymnasium.spaces, 0)], CountingActor(), 3) as feed:
        with pytest.raises(Frozen), feed.pause():
            raise Frozen(7)
        next(feed)
