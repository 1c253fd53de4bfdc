"""Collector processes save their stream, and go on from one that any engine has saved, bit for bit."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import warnings
from functools import partial

import cloudpickle
import gymnasium
import numpy as np
import pytest
import torch
from gymnasium.wrappers import TimeLimit
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rlplay import checkpoint, nested
from rlplay.engine.concurrency.child import Child
from rlplay.engine.envs.make import seeds_of
from rlplay.engine.remote.saving import merge_states, split_state
from rlplay.engine.rollout import multi, same, single, threaded
from tests.support import saving
from tests.support.assertions import assert_same_bytes
from tests.support.noisy import Noisy
from tests.support.processes import ProcessBlocker
from tests.support.saving import Changing, Learner, assert_goes_on, through_torch
from tests.support.scripts import PREAMBLE
from tests.support.threads import InThread

for module in (saving, sys.modules[__name__]):  # else each process would import them
    cloudpickle.register_pickle_by_value(module)

pytestmark = pytest.mark.filterwarnings("ignore:.*reset.*mask:RuntimeWarning")

N_ENVS = 4


def open_feed(engine, learner, factory=Noisy, *, n_envs=N_ENVS, n_steps=5, **options):
    """Open a feed of an engine, named as in "same", "same-2" (groups), "single" or "multi-2" (processes)."""
    name, _, groups = engine.partition("-")
    n = int(groups or 1)
    if name == "single":
        return single.rollout(factory, learner.actor, n_steps, n_envs, **options)
    if name == "multi":
        return multi.rollout(factory, learner.actor, n_steps, n, n_envs // n, **options)
    rollout = {"same": same, "threaded": threaded}[name].rollout
    return rollout([factory] * n_envs, learner.actor, n_steps, groups=n, **options)


def collect(feed, learner, first, n, *, saves=False):
    """Collect the fragments from number ``first`` on, training in between; take the episodes at every other one."""
    found = []
    for k in range(first, first + n):
        fragment = next(feed)
        episodes = [list(one) for one in feed.episodes()] if k % 2 else []
        found.append([feed.version, feed.steps, episodes, [x.clone() for x in nested.leaves(fragment)]])
        if saves:
            feed.state_dict()
        learner.update(fragment)
    return found


def save(feed, learner):
    return through_torch({"feed": feed.state_dict(), "learner": learner.state_dict()})


def resume(saved, engine, *, counts=True, **options):
    """Return the learner and the feed that go on from what was saved; at the beginning from nothing."""
    learner = Learner("noisy", counts=counts)
    if saved is None:
        return learner, open_feed(engine, learner, seed=3, **options)
    learner.load_state_dict(through_torch(saved["learner"]))  # a copy: the optimiser goes on with these very tensors
    return learner, open_feed(engine, learner, state=saved["feed"], **options)


def run(segments, **options):
    """Collect ``n`` fragments in each engine, with the state that the one before has saved."""
    saved, found = None, []
    for engine, n in segments:
        learner, feed = resume(saved, engine, **options)
        with feed:
            found += collect(feed, learner, len(found), n, saves=len(segments) > 1)
            saved = save(feed, learner)
    return found, learner.state_dict()


def check(segments, **options):
    engine = "same-2" if segments[0][0].endswith("-2") else "same"
    assert_goes_on(run([(engine, sum(n for _, n in segments))], **options), run(segments, **options))


@pytest.mark.parametrize("lag", [0, 2])
def test_single_goes_on_from_another_engine_and_another_engine_from_single(lag):
    """It is saved after each of its fragments, too, and goes on as if nothing had been asked."""
    check([("threaded", 1), ("single", 4), ("same", 4)], lag=lag, final=True, sticky=True)


def test_multi_goes_on_from_another_engine_and_another_engine_from_multi():
    segments = [("same-2", 0), ("multi-2", 3), ("threaded-2", 3)]
    with pytest.warns(RuntimeWarning, match="no environment has told 'never'") as told:
        check(segments, counts=False, lag=1, final=True, info=("hint", "never"))
    assert [str(one.message).count("'never'") for one in told] == [1, 1]  # once in each of the two runs


class UnsignedObservations(Noisy):
    observation_space = gymnasium.spaces.Box(0, 2**16 - 1, (3,), np.uint16)

    def reset(self, **options):
        obs, info = super().reset(**options)
        return (abs(obs) * 100).astype(np.uint16), info

    def step(self, action):
        obs, *others = super().step(action)
        return (abs(obs) * 100).astype(np.uint16), *others


@pytest.mark.parametrize("engines", [("same", "single"), ("single", "same")])
def test_observations_of_dtypes_that_torch_does_not_pickle_are_saved_between_processes(engines):
    learner, feed = resume(None, engines[0], factory=UnsignedObservations, lag=1)
    with feed:
        next(feed)
        saved = save(feed, learner)
        expected = [next(feed) for _ in range(2)]
    _, feed = resume(saved, engines[1], factory=UnsignedObservations, lag=1)
    with feed:
        assert_same_bytes([next(feed) for _ in range(2)], expected)


@pytest.mark.soak
def test_a_stream_goes_on_in_a_collector_process_of_a_new_process(tmp_path):
    options = {"lag": 1, "final": True}
    learner, feed = resume(None, "same", **options)
    with feed:
        collect(feed, learner, 0, 2)
        saved = save(feed, learner)
        expected = collect(feed, learner, 2, 4), learner.state_dict()
    path = tmp_path / "saved.pt"
    checkpoint.save(path, saved)
    code = f"from tests.engine.remote.test_remote_saving import *; go_on_from_file({str(path)!r}, {options})"
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
    assert_goes_on(expected, torch.load(path, weights_only=True))


def go_on_from_file(path, options):
    torch.set_num_threads(1)
    learner, feed = resume(checkpoint.load(path), "single", **options)
    with feed:
        torch.save((collect(feed, learner, 2, 4), learner.state_dict()), path)


SCRIPT = """
import enum, io
from rlplay.engine.rollout import single

class Mode(enum.IntEnum):
    WALK = 0
    RUN = 1

class Moves(Actor):
    def __init__(self):
        super().__init__()
        self.mode, self.name, self.later = Mode.WALK, type("Name", (str,), {})("moves"), None

    def forward(self, obs, *, virtual, **ignored):
        act, hx, _ = super().forward(obs, virtual=virtual, **ignored)
        if self.mode is Mode.RUN and not virtual and self.later is None:
            self.later = Mode.WALK
        return act, hx, torch.full(obs.shape, 2.0 * (self.mode is Mode.RUN) + (self.later is Mode.WALK))

def open_feed(engine, **options):
    actor = Moves()
    actor.mode = Mode.RUN if "state" in options else Mode.WALK
    if engine == "single":
        return actor, single.rollout(Env, actor, 3, 1, lag=1, **options)
    return actor, same.rollout([Env()], actor, 3, lag=1, **options)

for engine in ("same", "single"):
    actor, feed = open_feed(engine, seed=0)
    next(feed)
    actor.mode = Mode.RUN
    next(feed)
    torch.save(feed.state_dict(), file := io.BytesIO())
    expected = [next(feed).actor for _ in range(2)]
    feed.close()
    assert float(expected[-1].sum()) == 12
    for other in ("same", "single"):
        file.seek(0)
        _, feed = open_feed(other, state=torch.load(file, weights_only=True))
        assert all(torch.equal(next(feed).actor, x) for x in expected), (engine, other)
        feed.close()
"""


def test_plain_attributes_of_classes_of_the_users_script_are_saved_in_collector_processes():
    subprocess.run([sys.executable, "-c", PREAMBLE + SCRIPT], check=True)


@st.composite
def chains(draw):
    groups = draw(st.sampled_from(["", "-2"]))
    engines = st.sampled_from([name + groups for name in ("same", "threaded", "multi" if groups else "single")])
    segments = draw(st.lists(st.tuples(engines, st.integers(0, 3)), min_size=2, max_size=3))
    options = {
        "n_steps": draw(st.integers(1, 9)),
        "lag": draw(st.integers(0, 3)),
        "final": draw(st.booleans()),
        "sticky": draw(st.booleans()),
        "info": ("hint",) if draw(st.booleans()) else (),
    }
    return segments, {"counts": not groups, **options}


@pytest.mark.soak
@pytest.mark.timeout(1200)
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck))
@given(chains())
def test_streams_go_on_bit_for_bit_between_all_engines(chain):
    segments, options = chain
    engine = "same-2" if segments[0][0].endswith("-2") else "same"
    check([(engine, 1), *segments, (engine, options["lag"] + 1)], **options)


@pytest.mark.soak
def test_each_process_goes_on_with_its_own_copy_of_an_actor_that_changes_itself():
    options = {"n_envs": 2, "lag": 1}
    learner, feed = resume(None, "multi-2", **options)
    with feed:
        collect(feed, learner, 0, 3)
        saved = save(feed, learner)
        expected = collect(feed, learner, 3, 3), learner.state_dict()
    learner, feed = resume(saved, "multi-2", **options)
    with feed:
        assert_goes_on(expected, (collect(feed, learner, 3, 3), learner.state_dict()))
    with pytest.raises(ValueError, match=r"2 collector processes, .* changes itself as it acts \(memory\)"):
        resume(saved, "same-2", **options)


@pytest.mark.soak
def test_episodes_begin_anew_in_collector_processes_as_in_another_engine():
    learner, feed = resume(None, "same-2", counts=False, lag=1)
    with feed:
        collect(feed, learner, 0, 2)
        saved = through_torch({"feed": feed.state_dict(environments="restart"), "learner": learner.state_dict()})
    found = []
    for engine in ("same-2", "multi-2"):
        learner, feed = resume(saved, engine, counts=False, lag=1)
        with feed:
            found.append((collect(feed, learner, 2, 3), learner.state_dict()))
    assert_goes_on(*found)


@pytest.mark.soak
def test_parts_that_finish_first_are_each_continued_where_they_were_saved():
    """The weights are frozen, so each process has the parts of its group in `same`, in whatever order they come."""
    options = {"counts": False, "n_envs": 3, "lag": 2}
    _, feed = resume(None, "same-3", **options)
    with feed:
        expected = [next(feed) for _ in range(16)]
    learner, feed = resume(None, "multi-3", n_per_batch=1, **options)
    with feed:
        before = [next(feed) for _ in range(3)]
        saved = save(feed, learner)
        with feed.pause():  # nobody collects any more
            pass
        check_parts(before + [next(feed) for _ in range(6)], expected)
    _, feed = resume(saved, "multi-3", n_per_batch=1, **options)
    with feed:
        torch.backends.cudnn.benchmark = True  # another torch context: the actor's answers are looked at again
        after = [next(feed)]
        torch.backends.cudnn.benchmark = False
        check_parts(before + after + [next(feed) for _ in range(8)], expected)
    state = saved["feed"]
    assert [len(state["deliveries"]), state["collector"]["parts"].count(None)] == [2, 1]
    with pytest.raises(ValueError, match="`n_per_batch`: saved with 1, now all"):
        resume(saved, "same-3", **options)


def check_parts(found, expected):
    """Check that all fragments are the parts of some group, and that those of each group come one after the other."""
    n_taken = [0, 0, 0]
    for fragment in found:
        parts = [nested.map(lambda x, g=g: x[:, g : g + 1].contiguous(), expected[k]) for g, k in enumerate(n_taken)]
        (group,) = [g for g, part in enumerate(parts) if torch.equal(part.state.obs, fragment.state.obs)]
        assert_same_bytes(parts[group], fragment)
        n_taken[group] += 1


# refusals and faults


@pytest.fixture(scope="module")
def saved():
    learner, feed = resume(None, "same-2", lag=1)
    with feed:
        collect(feed, learner, 0, 2)
        return save(feed, learner)


def test_the_state_of_a_group_and_those_of_all_groups_have_the_same_parts(saved):
    feed = saved["feed"]
    parts = split_state(feed, 2, 2)
    state, states = feed["collector"], [part["collector"] for part in parts]
    for x, y in zip(*map(nested.leaves, (merge_states(states, state["watched"], state["untold"]), state)), strict=True):
        assert torch.equal(x, y) if isinstance(x, torch.Tensor) else x == y
    (copy,) = states[1]["copies"]
    for other in ({"adopted": 0}, {"tensors": [["", "memory", [torch.tensor(-0.0)]]]}, {"plain": {"": {}}}):
        states[1]["copies"] = [{**copy, **other}]
        assert len(merge_states(states, state["watched"], state["untold"])["copies"]) == 2
    with pytest.raises(ValueError, match=r"environments in each group: saved with 2, 2, now 2, 2, 2"):
        split_state(feed, 3, 2)
    with pytest.raises(ValueError, match="was saved from a vector environment"):
        split_state({**feed, "collector": {**state, "environments": state["environments"][:1]}}, 2, 2)


def test_other_options_are_refused_before_any_process_is_started(saved, monkeypatch):
    monkeypatch.delattr(subprocess, "Popen")
    with pytest.raises(ValueError, match="`groups`, or `n_actors`: saved with 2, now 4"):
        resume(saved, "multi-4", lag=1)
    with pytest.raises(ValueError, match="`groups`, or `n_actors`: saved with 2, now 1"):
        resume(saved, "single", lag=1)
    with pytest.raises(ValueError, match="`lag`: saved with 1, now 2"):
        resume(saved, "multi-2", lag=2)
    with pytest.raises(TypeError, match="`state` must be what"):
        multi.rollout(Noisy, Changing(3, 2), state={})
    feed = saved["feed"]
    on_device = {**feed, "settings": {**feed["settings"], "the actor's device": "a device (cuda)"}}
    with pytest.raises(ValueError, match=r"the actor's device: saved with a device \(cuda\), now the host"):
        resume({**saved, "feed": on_device}, "multi-2", lag=1)


def test_other_environments_are_refused_by_the_process_that_has_them():
    learner, feed = resume(None, "same")
    with feed:
        state = feed.state_dict()
    with pytest.raises(ValueError, match=r"environment 0 was .*Noisy, and is .*TimeLimit > .*Noisy"):
        open_feed("single", learner, lambda: TimeLimit(Noisy(), 9), lag=0, state=state)


class Stubborn(Noisy):
    """Saves itself as it is told at each request."""

    def __init__(self, requests):
        super().__init__()
        self.requests = list(requests)

    def get_state(self):
        return self.requests.pop(0)()

    def set_state(self, state):
        pass


def refuse():
    raise OSError("not now")


def kill_own_process():
    os.kill(os.getpid(), signal.SIGKILL)


def test_what_cannot_be_saved_is_named_and_the_feed_goes_on_until_a_process_dies_in_saving():
    second = seeds_of(0, 2)[1]

    def make(seed):
        return Stubborn([refuse, kill_own_process] if seed == second else [int, int])

    with multi.rollout(make, Changing(3, 2), 5, 2, 1, lag=1, seed=0) as feed:
        next(feed)
        with pytest.raises(TypeError, match=r"environment 1 cannot be saved: .*`env`.* raised OSError\('not now'\)"):
            feed.state_dict()
        assert feed.state_dict(environments="restart")["environments"] == "restart"
        next(feed)
        killed = r"collector process 1 \(environment 1\) \(process \d+\) was killed by SIGKILL"
        with pytest.raises(RuntimeError, match=killed):
            feed.state_dict()
        next(feed)  # was completed before
        with pytest.raises(RuntimeError, match=killed):
            next(feed)
        with pytest.raises(RuntimeError, match="ended"):
            feed.state_dict()


class Fails(Noisy):
    """Raises an error in its third step, if it has something to do before."""

    def __init__(self, before):
        super().__init__()
        self.before, self.n = before, 0

    def step(self, action):
        self.n += 1
        if self.n == 3 and self.before is not None:
            self.before()
            raise ValueError("from within")
        return super().step(action)


@pytest.mark.soak
def test_a_part_that_fails_while_it_is_finished_for_saving_fails_the_next_fragment_too(tmp_path):
    blocker, second = ProcessBlocker(tmp_path / "blocker"), seeds_of(0, 2)[1]
    with multi.rollout(
        lambda seed: Fails(blocker if seed == second else None), Changing(3, 2), 5, 2, 1, n_per_batch=1, lag=0, seed=0
    ) as feed:
        next(feed)
        blocker.wait_until_entered()
        saving = InThread(feed.state_dict)
        blocker.release()
        assert isinstance(saving.wait().error, ValueError)
        with feed.pause():  # waits for nobody
            pass
        with pytest.raises(ValueError, match="from within") as caught:
            next(feed)
        assert "collector process 1 (environment 1): environment 1, in env.step, at step 2" in caught.value.__notes__[0]


@pytest.mark.soak
def test_a_feed_may_be_closed_while_it_is_saved(tmp_path, monkeypatch):
    monkeypatch.setattr(Child, "grace", 1.0)
    blocker = ProcessBlocker(tmp_path / "blocker")
    with single.rollout(partial(Stubborn, [blocker]), Changing(3, 2), 5, 1) as feed, warnings.catch_warnings():
        next(feed)
        saving = InThread(feed.state_dict)
        blocker.wait_until_entered()
        warnings.simplefilter("ignore")  # the process is killed
        feed.close()
    assert isinstance(saving.wait().error, RuntimeError)
    assert "closed" in str(saving.error)


@pytest.mark.soak
def test_an_environment_that_is_stuck_in_saving_is_told(tmp_path, monkeypatch):
    monkeypatch.setattr(Child, "grace", 1.0)
    blocker = ProcessBlocker(tmp_path / "blocker")
    with single.rollout(partial(Stubborn, [blocker]), Changing(3, 2), 5, 1, timeout=1.0) as feed:
        next(feed)
        with pytest.raises(TimeoutError, match=r"no progress for 1 s: collector process 0 \(environment 0\)"):
            feed.state_dict()
        with pytest.warns(RuntimeWarning, match="killed"):
            feed.close()
