"""What cannot be sent to a process, or from it, is named at the call; spaces need not be sent as they are."""

from __future__ import annotations

import functools
import threading

import pytest
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import evaluate, multi, single, threaded
from tests.support.processes import child_processes
from tests.support.unsendable import Action, Env, Nested, NotHere, Unpicklable


class Still(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        return torch.zeros(fin.shape, dtype=torch.int64), (), {}


def workers(factory, actor=None):
    return threaded.rollout([Env, factory], actor or Still(), 5, workers=2)


def one_process(factory, actor=None):
    return single.rollout(factory, actor or Still(), 5, 2)


def many_processes(factory, actor=None):
    return multi.rollout(factory, actor or Still(), 5, 2, 1)


def in_background(factory, actor=None):
    return evaluate.background(factory, actor or Still(), 2)


ENGINES = {
    workers: "the factory of environment 1 cannot be sent to a worker process: ",
    one_process: r"`factory` \(which makes environments 0 to 1\) cannot be sent to a collector process: ",
    many_processes: r"`factory` \(which makes environments 0 to 0\) cannot be sent to a collector process: ",
    in_background: r"`factory` \(which makes environments 0 to 1\) cannot be sent to the evaluation process: ",
}
each_engine = pytest.mark.parametrize("engine", ENGINES, ids=lambda engine: engine.__name__)


def closing_over():
    lock = threading.Lock()

    def factory():
        assert lock
        return Env()

    return factory


class Shop:
    def __init__(self):
        self.stock = {"doors": [threading.Lock()]}

    def make(self):
        return Env()


LOCK = threading.Lock()
FACTORIES = {
    "closure": (closing_over(), "the variable `lock` that .*factory.* uses, of type lock"),
    "partial": (functools.partial(lambda lock: Env(), lock=threading.Lock()), r"keywords\['lock'\], of type lock"),
    "method": (Shop().make, r"__self__.stock\['doors'\]\[0\], of type lock"),
    "default": (lambda lock=LOCK: Env(), r"__defaults__\[0\], of type lock"),
}


@each_engine
@pytest.mark.parametrize("kind", FACTORIES)
def test_a_factory_that_cannot_be_sent_is_named_with_the_path_to_what_cannot(engine, kind):
    factory, path = FACTORIES[kind]
    with pytest.raises(TypeError, match=ENGINES[engine] + ".*" + path + ".*cannot pickle.*Let ") as caught:
        engine(factory)
    assert caught.value.__cause__ is not None
    assert not child_processes()


class Copies(Still):
    """Can be copied, but not be pickled."""

    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(1, 1)
        self.head.memory = Memory()


class Memory:
    def __init__(self):
        self.lock = threading.Lock()

    def __deepcopy__(self, memo):
        return Memory()


@each_engine
def test_an_actor_that_cannot_be_sent_is_named_with_the_path_to_what_cannot(engine):
    if engine is workers:
        with engine(Env, Copies()) as feed:  # the actor stays in this process
            next(feed)
        return
    with pytest.raises(TypeError, match=r"`actor` cannot be sent to .*: `actor`.head.memory.lock, of type lock"):
        engine(Env, Copies())
    assert not child_processes()


@each_engine
def test_a_factory_that_cannot_be_restored_in_a_process_is_told_with_the_error_there(engine):
    with pytest.raises(ConnectionError, match="the licence is for one process") as caught:
        engine(NotHere())
    assert "unpickling what it was given" in caught.value.__notes__[0]
    assert "__setstate__" in str(caught.value.__cause__)
    assert not child_processes()


# spaces


@pytest.mark.parametrize(
    ("engine", "env"),
    [
        pytest.param(
            engine, env, id=f"{env.__name__}-{engine.__name__}",
            marks=[] if env is Unpicklable or engine is workers else [pytest.mark.soak],
        )
        for engine in ENGINES
        for env in (Unpicklable, Nested, Action)
    ],
)  # fmt: skip
def test_spaces_that_cannot_be_pickled_do_not_matter(env, engine):
    with engine(env) if engine is not workers else threaded.rollout([env] * 2, Still(), 5, workers=2) as feed:
        next(feed)


def test_spaces_that_cannot_be_pickled_are_compared_all_the_same():
    wider = functools.partial(Unpicklable, 2)
    with pytest.raises(ValueError, match=r"equal spaces: environment 1 has the observation_space .*Box"):
        threaded.rollout([Unpicklable, wider], Still(), 5, workers=2)
    with pytest.raises(ValueError, match=r"equal spaces: environment 1 has the observation_space .*Box"):
        threaded.rollout([Env, wider], Still(), 5, workers=2)
    assert not child_processes()
