"""A stream goes on bit for bit from a saved one, whoever steps the environments; workers that cannot save say so."""

from __future__ import annotations

import signal
import subprocess
import sys
import warnings
from functools import partial

import cloudpickle
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlplay.engine.rollout import same, threaded
from tests.support.actors import AddsWeight
from tests.support.processes import ProcessBlocker
from tests.support.saving import assert_goes_on, case_of, check, go_on, start
from tests.support.scripts import PREAMBLE
from tests.support.threads import InThread, ThreadBlocker, until
from tests.support.workers import (
    WorkerEnv,
    check_end,
    is_worker_fragment,
    kill_own_process,
    kinds,
    no_resources_left,
    raise_value_error,
    shorten_closing,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])

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
    with no_resources_left():
        check(case)


def test_which_info_entries_worker_processes_have_told_is_part_of_the_state():
    case = case_of("factories", 5, start_in="processes-2", info=("hint", "nothing"), n_steps=20)
    with pytest.warns(RuntimeWarning, match="nothing"):
        saved, *expected = start(case)
    assert_goes_on(expected, go_on(case, saved))  # without a warning


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


# --- workers that cannot save -----------------------------------------------------------------------------------------


class Saves(WorkerEnv):
    """Calls a function when it is saved; what that returns, if anything, is its state."""

    def __init__(self, on_save=bool):
        super().__init__()
        self.on_save = on_save

    def get_state(self):
        return self.on_save() or self.n

    def set_state(self, state):
        if state == "broken":
            raise ValueError(state)
        self.n = state


def open_feed(on_save=None, *, n_envs=4, workers=2, worker="process", **options):
    """Open a feed over workers; `on_save` maps an environment to what it calls when it is saved."""
    envs = [partial(Saves, (on_save or {}).get(j, bool)) for j in range(n_envs)]
    return threaded.rollout(envs, AddsWeight(), 5, seed=0, workers=workers, worker=worker, **options)


def messages(feed):
    with pytest.raises(TypeError, match="cannot be saved") as caught:
        feed.state_dict()
    return str(caught.value)


@kinds
def test_the_foremost_environment_that_cannot_be_saved_is_named_as_without_workers_and_the_feed_goes_on(kind):
    """With two groups, worker 0 has environments 0, 1, 4, 5, and worker 1 the others."""
    told, options = [], {"n_envs": 8, "groups": 2, "lag": 1}
    for workers in (0, 2):
        with open_feed({2: raise_value_error, 4: raise_value_error}, workers=workers, worker=kind, **options) as feed:
            for k in range(3):
                assert is_worker_fragment(k, next(feed))
                told.append(messages(feed))
            restart = feed.state_dict(environments="restart")["collector"]["environments"]
            assert [one["env"] for one in restart] == [None] * 8
            assert is_worker_fragment(3, next(feed))
    assert len(set(told)) == 1
    assert "environment 2 cannot be saved: `get_state` or `clone_state` of `env`" in told[0]


@kinds
def test_an_environment_that_cannot_be_restored_is_named_at_the_call_as_without_workers(kind):
    options, told = {"n_envs": 8, "groups": 2}, []
    with open_feed(dict.fromkeys((2, 4), partial(str, "broken")), workers=0, **options) as feed:
        saved = feed.state_dict()
    for workers in (0, 2):
        with no_resources_left(), pytest.raises(ValueError, match="environment 2 does not fit") as caught:
            open_feed(workers=workers, worker=kind, state=saved, **options)
        told.append(str(caught.value))
    assert told[0] == told[1]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_worker_that_dies_in_saving_is_named_after_the_fragments_before_it(lag):
    with no_resources_left():
        feed = open_feed({2: kill_own_process(signal.SIGKILL)}, lag=lag)
        assert is_worker_fragment(0, next(feed))
        for _ in range(2):
            with pytest.raises(RuntimeError, match=r"worker 1 \(environments 2 to 3\).*was killed by SIGKILL"):
                feed.state_dict()
        for k in range(lag):
            assert is_worker_fragment(1 + k, next(feed))
        check_end(feed, RuntimeError, r"worker 1 \(environments 2 to 3\).*was killed by SIGKILL")


def test_a_worker_process_that_hangs_in_saving_is_named_and_killed(tmp_path, monkeypatch):
    shorten_closing(monkeypatch)
    with no_resources_left():
        feed = open_feed({3: ProcessBlocker(tmp_path)}, timeout=0.5)
        next(feed)
        with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.save"):
            feed.state_dict()
        assert not feed.open
        with pytest.warns(RuntimeWarning, match=r"worker 1 .*was killed"):
            feed.close()


def test_a_worker_thread_that_hangs_in_saving_is_named_and_left_behind(monkeypatch):
    shorten_closing(monkeypatch)
    block = ThreadBlocker()
    with no_resources_left():
        feed = open_feed({3: block}, worker="thread", timeout=0.5)
        next(feed)
        with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.save"):
            feed.state_dict()
        assert not feed.open
        with pytest.warns(RuntimeWarning, match=r"worker 1 .*left behind"):
            feed.close()
        block.release.set()


@pytest.mark.parametrize("workers", [0, 1])
def test_each_environment_that_is_saved_or_restored_counts_as_progress(workers):
    seen = []

    class Looks(Saves):
        def get_state(self):
            seen.append(feeds[-1]._driver._progress.state())
            return 0

    feeds = []
    feeds.append(threaded.rollout([Looks] * 3, AddsWeight(), 5, workers=workers, worker="thread"))
    with feeds[-1] as feed:
        feed.state_dict()
    assert len(set(seen)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_feed_that_is_closed_while_another_thread_saves_it_says_so(workers):
    block = ThreadBlocker()
    with no_resources_left():
        feed = open_feed({3: block}, workers=workers, worker="thread")
        next(feed)
        saving = InThread(feed.state_dict)
        assert block.entered.wait(60)
        closing = InThread(feed.close)
        until(lambda: not feed.open)
        error = saving.wait().error
        assert isinstance(error, RuntimeError)
        assert "closed" in str(error)
        block.release.set()
        assert closing.wait().error is None
