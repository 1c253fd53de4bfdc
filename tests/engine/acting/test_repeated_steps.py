"""`compile=True`: a step that remembers or draws something elsewhere than in buffers is found out, and runs eagerly."""

import random
import re
from functools import partial
from itertools import count

import numpy as np
import pytest
import torch

from rlplay.testing import LaggingLane
from tests.support.actors import AnswerActor
from tests.support.assertions import assert_identical
from tests.support.collecting import collected, compile_warnings_of, switch_mode

pytestmark = pytest.mark.usefixtures("no_monitor")

RNG = np.random.default_rng(0)

N_STEPS = count()


def schedule(n_constant):
    """Return a function that returns 1 so often, and then less and less."""
    n = 0

    def value():
        nonlocal n
        n += 1
        return min(1.0, n_constant / n)

    return value


def local_schedule():
    class Schedule:
        n = 0

        def __call__(self):
            self.n += 1
            return min(1.0, 100 / self.n)

    return Schedule()


class Scheduled(AnswerActor):
    """Scales its observation by what a function returns, which is one of its attributes."""

    def __init__(self, scale):
        super().__init__()
        self.scale = scale

    def answer(self, obs, fin):
        return obs * self.scale()


class DrawsFromScript(AnswerActor):
    """Draws from a generator of the script, which rarely makes a difference."""

    def answer(self, obs, fin):
        return -obs if RNG.random() < 1e-6 else obs


class DrawsFromClass(AnswerActor):
    rng = random.Random(0)

    def answer(self, obs, fin):
        return -obs if self.rng.random() < 1e-6 else obs


class CountsInScript(AnswerActor):
    def answer(self, obs, fin):
        return obs * next(N_STEPS)


class CountsInClass(AnswerActor):
    n = 0

    def answer(self, obs, fin):
        CountsInClass.n += 1
        return obs * CountsInClass.n


NOT_REPEATED = {
    "a closure that changes later": (lambda: Scheduled(schedule(100)), "it changes `scale`"),
    "a method of a local class": (lambda: Scheduled(local_schedule().__call__), "it changes `scale`"),
    "a partial of a closure": (lambda: Scheduled(partial(schedule(100))), "it changes `scale`"),
    "a generator of the script": (DrawsFromScript, "it changes `.*answer > RNG`"),
    "a generator of the class": (DrawsFromClass, "it changes `.*rng`"),
    "a counter of the script": (CountsInScript, "it computes with other numbers each time"),
    "a counter of the class": (CountsInClass, "it computes with other numbers each time"),
}


@pytest.mark.parametrize("device", [None, LaggingLane], ids=["compiled", "captured"])
@pytest.mark.parametrize(("make_actor", "why"), NOT_REPEATED.values(), ids=NOT_REPEATED)
def test_a_step_that_is_not_the_same_each_time_runs_eagerly_with_one_warning(make_actor, why, device):
    options = {"device": device()} if device else {}
    _, (warning,) = compile_warnings_of(lambda: collected(make_actor, n_fragments=1, compile=True, **options))
    assert re.search(f"runs eagerly, since {why}", str(warning.message))


class AveragesInTrainMode(AnswerActor):
    """Subtracts the mean of what it has seen in train mode."""

    def __init__(self):
        super().__init__()
        self.n, self.mean = 0, torch.zeros(())

    def answer(self, obs, fin):
        if self.training:
            self.n += 1
            self.mean = self.mean + (obs.mean() - self.mean) / self.n
        return obs - self.mean


@pytest.mark.parametrize("device", [None, LaggingLane], ids=["compiled", "captured"])
@pytest.mark.parametrize("begin", ["train", "eval"])
def test_no_mode_is_compiled_of_a_step_that_remembers_something_in_another(begin, device):
    def make_actor():
        return AveragesInTrainMode().train(begin == "train")

    options = {"compile": True, **({"device": device()} if device else {})}
    got, (warning,) = compile_warnings_of(lambda: collected(make_actor, update=switch_mode, **options))
    assert "runs eagerly, since it changes `" in str(warning.message)
    assert_identical(collected(make_actor, update=switch_mode), got)


def test_what_a_function_refers_to_and_does_not_change_keeps_no_step_from_being_captured():
    factors = [torch.tensor(2.0), 3.0]
    make_actor = partial(Scheduled, lambda: factors[0] * factors[1])
    got, caught = compile_warnings_of(lambda: collected(make_actor, compile=True, device=LaggingLane()))
    assert not caught
    assert_identical(collected(make_actor), got)
