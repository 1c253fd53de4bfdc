"""A stream goes on bit for bit from a saved one, whoever steps the environments."""

from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.saving import (
    Learner,
    assert_goes_on,
    case_of,
    check,
    collect,
    go_on,
    open_feed,
    start,
    through_torch,
)
from tests.support.scripts import PREAMBLE

LISTS = ["noisy", "recall", "autoreset", "factories"]

pytestmark = pytest.mark.filterwarnings("ignore:.*reset.*mask:RuntimeWarning")


@st.composite
def engines(draw, n_envs):
    engine = draw(st.sampled_from(["same", "threaded", "threads", "threads"]))
    return f"{engine}-{draw(st.integers(1, n_envs))}" if engine == "threads" else engine


@st.composite
def cases(draw):
    kind, n_envs = draw(st.sampled_from(LISTS)), draw(st.integers(1, 5))
    options = {
        "lag": draw(st.integers(0, 2)),
        "groups": draw(st.integers(1, min(n_envs, 3))),
        "final": draw(st.booleans()),
        "sticky": draw(st.booleans()),
        "info": ("hint",) if kind == "noisy" and draw(st.booleans()) else (),
    }
    start_in, to = draw(engines(n_envs)), draw(engines(n_envs))
    return case_of(kind, n_envs, draw(st.integers(0, 4)), 3, to, draw(st.integers(1, 9)), start_in=start_in, **options)


@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(cases())
def test_a_saved_stream_goes_on_with_worker_threads_and_without(case):
    check(case)


@pytest.mark.parametrize(("start_in", "to"), [("same", "threaded"), ("threaded", "same"), ("threaded", "threaded")])
def test_vector_environments_that_have_a_thread_each(start_in, to):
    check(case_of("vectors", 2, start_in=start_in, to=to, lag=1, final=True))


PROCESSES = [
    case_of("factories", 5, start_in="same", to="processes-2", lag=1, groups=2, final=True, info=("hint",)),
    case_of("factories", 5, start_in="processes-2", to="same", lag=2, groups=2, sticky=True),
    case_of("factories", 3, start_in="processes-1", to="processes-3", lag=0, before=0),
    case_of("factories", 3, start_in="processes-2", to="threads-3", lag=1, final=True, sticky=True),
]


@pytest.mark.parametrize("case", PROCESSES, ids=lambda case: f"{case['from']}-{case['to']}")
def test_a_saved_stream_goes_on_with_worker_processes_and_without(case):
    check(case)


def test_which_info_entries_worker_processes_have_told_is_part_of_the_state():
    case = case_of("factories", 5, start_in="processes-2", info=("hint", "nothing"), n_steps=20)
    with pytest.warns(RuntimeWarning, match="nothing"):
        saved, *expected = start(case)
    assert_goes_on(expected, go_on(case, saved))  # without a warning


def test_restarted_environments_begin_the_same_episodes_with_workers_and_without():
    case, found = case_of(n_envs=4, start_in="threads-2", n_steps=20, groups=2), []
    learner = Learner("noisy")
    with open_feed(case, learner, "threads-2", seed=3) as feed:
        collect(feed, learner, 1)
        saved = {"feed": feed.state_dict(environments="restart"), "learner": learner.state_dict()}
    for to in ("same", "threads-3"):
        found.append(go_on(case | {"to": to}, through_torch(saved)))
    assert_goes_on(*found)


@pytest.mark.parametrize("to", ["same", "threads-2"])
def test_a_state_of_a_vector_environment_is_refused_for_a_list(to):
    case = case_of("SAME_STEP", 3)
    saved, *_ = start(case)
    with pytest.raises(ValueError, match="the states of 1 environments, and there are 3, where a vector"):
        go_on(case | {"kind": "noisy", "to": to}, saved)


SCRIPT = """
from collections import namedtuple
from dataclasses import dataclass
from enum import Enum

Pair = namedtuple("Pair", "n last")

@dataclass
class Cell:
    x: float

class Direction(Enum):
    UP = 1.0
    DOWN = -1.0

def rise(x):
    return x + 1

def fall(x):
    return x / 2

class Walks(Env):
    def __init__(self):
        super().__init__()
        self.cells, self.direction, self.rule, self.kind, self.pair = [Cell(0.0)], Direction.UP, rise, Cell, Pair(0, ())

    def step(self, action):
        (cell,) = self.cells
        assert type(cell) is Cell is self.kind
        cell.x = self.direction.value * self.rule(cell.x)
        self.pair = Pair(self.pair.n + 1, Cell(cell.x))
        self.direction = Direction.UP if self.pair.n % 3 else Direction.DOWN
        self.rule = rise if self.pair.n % 7 < 3 else fall
        return np.float32(cell.x), 1.0, False, False, {}

def open_feed(workers, state=None):
    return threaded.rollout([Walks] * 2, Actor(), 5, seed=0, workers=workers, state=state)

for start_in, to in ((2, 0), (0, 1)):
    with open_feed(start_in) as feed:
        next(feed)
        saved, expected = feed.state_dict(), [next(feed).state.obs for _ in range(3)]
    with open_feed(to, saved) as feed:
        assert all(torch.equal(obs, next(feed).state.obs) for obs in expected)
    assert len(torch.stack(expected).unique()) > 5
"""


def test_what_environments_have_of_the_users_script_is_saved_in_worker_processes():
    subprocess.run([sys.executable, "-c", PREAMBLE + SCRIPT], check=True)
