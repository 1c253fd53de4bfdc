"""Workers that cannot save or restore their environments, that die or hang in it: the error says which."""

from __future__ import annotations

import signal
import sys
from functools import partial

import cloudpickle
import pytest

from rlplay.engine.rollout import threaded
from tests.support.actors import AddsWeight
from tests.support.processes import ProcessBlocker
from tests.support.starting import timeout_counts_while
from tests.support.threads import InThread, ThreadBlocker, until
from tests.support.workers import (
    WorkerEnv,
    check_end,
    idle_worker_may_end_late,
    is_worker_fragment,
    kill_own_process,
    kinds,
    no_resources_left,
    raise_value_error,
    shorten_closing,
)

cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(autouse=True)
def no_resources_are_left():
    with no_resources_left():
        yield


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


def refusal_of(feed):
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
                told.append(refusal_of(feed))
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
        with pytest.raises(ValueError, match="environment 2 does not fit") as caught:
            open_feed(workers=workers, worker=kind, state=saved, **options)
        told.append(str(caught.value))
    assert told[0] == told[1]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_worker_that_dies_in_saving_is_named_after_the_fragments_before_it(lag):
    feed = open_feed({2: kill_own_process(signal.SIGKILL)}, lag=lag)
    assert is_worker_fragment(0, next(feed))
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"worker 1 \(environments 2 to 3\).*was killed by SIGKILL"):
            feed.state_dict()
    for k in range(lag):
        assert is_worker_fragment(1 + k, next(feed))
    check_end(feed, RuntimeError, r"worker 1 \(environments 2 to 3\).*was killed by SIGKILL")


def test_a_worker_that_dies_in_saving_is_named_although_a_worker_before_it_is_slow(tmp_path, monkeypatch):
    shorten_closing(monkeypatch)
    feed = open_feed({0: ProcessBlocker(tmp_path), 3: kill_own_process(signal.SIGKILL)}, lag=0)
    next(feed)
    with pytest.raises(RuntimeError, match=r"worker 1 \(environments 2 to 3\).*was killed by SIGKILL"):
        feed.state_dict()
    check_end(feed, RuntimeError, r"worker 1 \(environments 2 to 3\).*was killed by SIGKILL")


@idle_worker_may_end_late
def test_a_worker_process_that_hangs_in_saving_is_named_and_killed(tmp_path, monkeypatch):
    shorten_closing(monkeypatch)
    block = ProcessBlocker(tmp_path)
    timeout_counts_while(block.has_begun, monkeypatch)
    feed = open_feed({3: block}, timeout=0.5)
    next(feed)
    with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.save"):
        feed.state_dict()
    assert not feed.open
    with pytest.warns(RuntimeWarning, match=r"worker 1 .*was killed"):
        feed.close()


@idle_worker_may_end_late
def test_a_worker_thread_that_hangs_in_saving_is_named_and_left_behind(monkeypatch):
    shorten_closing(monkeypatch)
    block = ThreadBlocker()
    timeout_counts_while(block.entered.is_set, monkeypatch)
    feed = open_feed({3: block}, worker="thread", timeout=0.5)
    next(feed)
    with pytest.raises(TimeoutError, match=r"worker 1 \(environments 2 to 3\): environment 3, in env.save"):
        feed.state_dict()
    assert not feed.open
    with pytest.warns(RuntimeWarning, match=r"worker 1 .*left behind"):
        feed.close()
    block.release.set()


@pytest.mark.parametrize("workers", [0, 1])
def test_each_environment_that_is_saved_counts_as_progress(workers):
    seen = []

    def look():
        seen.append(progress.state())

    def activities():
        return [one.doing for one in (progress, *(part for _, part in progress.parts))]

    with open_feed(dict.fromkeys(range(3), look), n_envs=3, workers=workers, worker="thread") as feed:
        next(feed)
        progress = feed._driver._progress
        feed.state_dict()  # until then the collector may be busy
        seen.clear()
        before = activities()
        feed.state_dict()
        assert activities() == before == ["waiting for the learner", "waiting for the next step"][: 1 + workers]
    assert len(set(seen)) == 3


@pytest.mark.parametrize("workers", [0, 2])
def test_a_feed_that_is_closed_while_another_thread_saves_it_says_so(workers):
    block = ThreadBlocker()
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
