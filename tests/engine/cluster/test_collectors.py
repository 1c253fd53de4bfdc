"""What `cluster` does by itself: the law, errors, deaths, restarts, pauses and ends, on a stand-in for Ray."""

from __future__ import annotations

import gc
import re
import subprocess
import sys
import threading
import warnings
from concurrent.futures import Future
from functools import partial

import gym
import gym.spaces
import numpy as np
import pytest
import torch

from rlplay.engine.cluster.object_store import bytes_of, tensor_over
from rlplay.engine.cluster.ray_collectors import RayCollectors
from rlplay.engine.cluster.reported_progress import Report, ReportedProgress
from rlplay.engine.envs.make import seeds_of
from rlplay.engine.rollout import cluster, same
from rlplay.testing import CountingActor, LaggingLane, make_ledger
from tests.support import ray_stand_in
from tests.support.assertions import assert_same_bytes, is_closed
from tests.support.errors import raising
from tests.support.rare import PixelEnv, RareDtypes, learn_nothing
from tests.support.scripted import B, Script, ScriptedActor, ScriptedEnv, T, is_scripted_fragment
from tests.support.starting import start_timeout_begins_when, timeout_counts_while
from tests.support.threads import InThread, PauseInThread, ThreadBlocker, all_tokens_used_up, until
from tests.support.training import GruWithBuffer, change_everything, record_training

cartpole = partial(gym.make, "CartPole-v1")


@pytest.fixture(autouse=True)
def ray(monkeypatch):
    return ray_stand_in.install(monkeypatch)


def assert_yields_the_fragments_of_same(factory, n_actors, n_per_actor, *, device=None, cluster_options=(), **options):
    expected, counts = record_training(
        partial(same.rollout, [factory] * (n_actors * n_per_actor)), groups=n_actors, **options
    )
    rollout = partial(cluster.rollout, factory, n_actors=n_actors, n_per_actor=n_per_actor, **dict(cluster_options))
    got, others = record_training(rollout, device=device, **options)
    assert others == counts
    assert_same_bytes(expected, got)
    return expected, counts


# the law


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize(("parts", "lag"), [((1, 3), 0), ((2, 2), 1), ((3, 1), 2)])
def test_fragments_are_those_of_same_bit_for_bit(parts, lag, restart):
    options = {"restart": restart}
    assert_yields_the_fragments_of_same(cartpole, *parts, lag=lag, n_steps=11, final=True, cluster_options=options)


def test_nested_spaces_infos_and_sticky_rows_pass():
    fragments, counts = assert_yields_the_fragments_of_same(
        lambda seed: make_ledger(gym.spaces, seed % 256, form="dict", action="dict"), 2, 2,
        make_actor=partial(CountingActor, "dict", sampled=True), n_steps=6, sticky=True, final=True, lag=1,
        info={"even": int, "place": np.zeros(2, np.int32), "nested.deep.over": bool},
        update=learn_nothing,
    )  # fmt: skip
    assert sum(len(episodes) for _, _, episodes in counts) > 5
    assert any(not f.env.valid.all() for f in fragments)


def test_images_and_rare_dtypes_pass():
    fragments, _ = assert_yields_the_fragments_of_same(
        PixelEnv, 1, 3, make_actor=RareDtypes, update=learn_nothing, lag=1, n_steps=7, final=True, n_fragments=3
    )
    assert fragments[0].actor["bfloat16"].dtype == torch.bfloat16


@pytest.mark.parametrize("haste", [0.0, 0.5])
def test_fragments_reach_the_lagging_device(haste):
    device = LaggingLane(haste=haste, actor_on_host=True)
    assert_yields_the_fragments_of_same(cartpole, 2, 2, lag=1, n_steps=11, final=True, device=device)


def test_weights_are_put_into_the_store_once_for_each_snapshot(ray):
    with cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1, lag=2) as feed:
        for _ in range(4):
            next(feed)
        all_tokens_used_up(feed)
    assert len(ray.puts) == 4


def test_options_are_handed_to_ray_as_they_are(ray):
    options = {"num_cpus": 0.5, "resources": {"place": 1}, "scheduling_strategy": "SPREAD"}
    cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1, ray_options=options).close()
    assert ray.options == options
    cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1).close()
    assert ray.options == {}


def test_parts_that_finish_first_make_up_a_fragment_and_each_goes_on_where_it_was(scripted):
    scripts = Script(), Script().at("step", 1, blocker := ThreadBlocker())
    with scripted(*scripts, n_per_batch=1, lag=0) as feed:
        fragments = [next(feed) for _ in range(3)]
        assert [feed.version for _ in fragments] == [(2,)] * 3
        assert [f.state.rew[0, 0].item() for f in fragments] == [0, T, 2 * T]
        blocker.release.set()


def test_statistics_and_a_trace_know_what_was_reported(scripted):
    with scripted(Script(), Script(), lag=0) as feed:
        with feed.trace() as trace:
            for _ in range(3):
                next(feed)
        stats = feed.stats
    assert stats.engine == "cluster"
    assert stats.collector.stepping > 0
    assert {event["cat"] for event in trace.events if event["ph"] == "X"} == {"learner", "collector"}


# errors


SCRIPTS = {}
"""The scripts of environments, by their seeds: what is pickled finds them here."""


def make_scripted(seed):
    return ScriptedEnv(SCRIPTS[seed])


@pytest.fixture
def scripted(monkeypatch):
    """Open a feed with a collector for each script, or as many as are asked for."""

    def opened(*scripts, n_actors=None, n_steps=T, **options):
        for seed, script in zip(seeds_of(0, len(scripts)), scripts, strict=True):
            monkeypatch.setitem(SCRIPTS, seed, script)
        n_actors = n_actors or len(scripts)
        n_each = len(scripts) // n_actors
        return cluster.rollout(make_scripted, ScriptedActor(), n_steps, n_actors, n_each, seed=0, **options)

    return opened


def has_ended(feed, ray):
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(feed)
    return not feed.open and all(actor.is_dead for actor in ray.actors)


def test_an_error_of_an_environment_comes_in_order_with_type_note_and_traceback(scripted, ray):
    scripts = [Script(), Script().at("step", T + 3, raising(ValueError("from within")))]
    feed = scripted(*scripts, n_actors=1)
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(ValueError, match="from within") as caught:
        list(feed)
    assert type(caught.value) is ValueError
    assert caught.value.__notes__ == [
        "rlplay: collector 0 (environments 0 to 1) on node 0: environment 1, in env.step, at step 2 of fragment 1"
    ]
    assert "in explode" in str(caught.value.__cause__)
    assert [script.counts["close"] for script in scripts] == [1, 1]
    assert has_ended(feed, ray)


def test_an_error_at_the_call_is_raised_there(ray):
    with pytest.raises(ZeroDivisionError) as caught:
        cluster.rollout(lambda: 1 / 0, ScriptedActor(), T, 2, 1)
    assert re.search(r"collector \d \(environment \d\).*: environment \d, in env.make", caught.value.__notes__[0])
    with pytest.raises(ValueError, match="from within") as caught:
        cluster.rollout(ScriptedEnv, ScriptedActor(Script().at("look", 1, raising(ValueError("from within")))), T, 2, 1)
    assert any("actor.step" in note for note in caught.value.__notes__)
    assert all(actor.is_dead for actor in ray.actors)


@pytest.mark.skipif(torch.cuda.is_available(), reason="the machine has the device")
def test_a_device_that_a_node_lacks_is_told_by_that_node():
    with pytest.raises(ValueError, match="this machine has 0 CUDA devices") as caught:
        cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1, actor_device="cuda")
    assert re.search(r"collector \d \(environment \d\)", caught.value.__notes__[0])
    with pytest.raises(ValueError, match="must be the CPU or a CUDA device, got mps"):
        cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1, actor_device="mps")


def test_unequal_spaces_are_refused(ray):
    def other_space_for_one(seed):
        env = ScriptedEnv()
        if seed == seeds_of(0, 3)[2]:
            env.observation_space = gym.spaces.Box(-1, 1, (2,), np.float32)
        return env

    with pytest.raises(ValueError, match=r"equal spaces: environment 2 has the observation_space"):
        cluster.rollout(other_space_for_one, ScriptedActor(), T, 3, 1, seed=0)
    assert all(actor.is_dead for actor in ray.actors)


def test_what_cannot_be_sent_is_named():
    lock = threading.Lock()
    with pytest.raises(TypeError, match=r"`factory` .* cannot be sent to a Ray actor: the variable `lock`"):
        cluster.rollout(lambda: lock, ScriptedActor(), T, 2, 1)


def test_an_error_in_closing_an_environment_is_a_warning(scripted, ray):
    scripts = [Script(), Script().at("close", 1, raising(ValueError("no")))]
    feed = scripted(*scripts)
    next(feed)
    with pytest.warns(RuntimeWarning, match=r"closing .* failed: .*no"):
        feed.close()
    assert all(actor.is_dead for actor in ray.actors)


# deaths


def test_a_collector_that_dies_is_named_with_its_node(scripted, ray):
    feed = scripted(Script(), Script(), lag=0)
    assert is_scripted_fragment(0, next(feed))
    ray.actors[1].die("Its node has died.")
    with pytest.raises(RuntimeError, match=r"^collector 1 \(environment 1\) on node 1 has died: The actor") as caught:
        next(feed)
    assert isinstance(caught.value.__cause__, ray.exceptions.ActorDiedError)
    assert has_ended(feed, ray)


def test_a_collector_that_dies_at_the_call_is_named(scripted, ray):
    def die():
        ray.actors[0].die("Out of memory.")

    with pytest.raises(RuntimeError, match=r"^collector 0 \(environment 0\) on node 0 has died: Out of memory"):
        scripted(Script().at("reset", 1, die), restart=True)


def dies(ray, when):
    """Return an update that changes the actor, and lets one of the Ray actors die after some fragments."""
    asks = 0

    def update(*args):
        nonlocal asks
        asks += 1
        change_everything(*args)
        if asks in when:
            until(lambda: len(ray.actors) > when[asks])
            ray.actors[when[asks]].die("Its node has died.")

    return update


@pytest.mark.parametrize("lag", [0, 1, 2])
@pytest.mark.parametrize("when", [{1: 0}, {2: 1}, {1: 1, 3: 2}, {2: 0, 3: 1}])
def test_with_restart_the_stream_is_that_of_a_run_in_which_nothing_dies(when, lag, ray):
    options = {"lag": lag, "n_steps": 11, "final": True, "n_fragments": 6}
    expected, counts = record_training(partial(same.rollout, [cartpole] * 4), groups=2, **options)
    rollout = partial(cluster.rollout, cartpole, n_actors=2, n_per_actor=2, restart=True)
    with pytest.warns(RuntimeWarning, match=r"collector \d \(.*\) on node \d has died: .* It was made anew") as caught:
        got, others = record_training(rollout, update=dies(ray, when), **options)
    assert len(caught) == len(when)
    assert others == counts
    assert_same_bytes(expected, got)
    assert len(ray.actors) == 2 + len(when)


HOOKS = {}
"""What is called when an environment makes a step for the first time, by the numbers of environment and step."""


class Hooked(ScriptedEnv):
    """Can be saved, unlike environments with a script that does something."""

    def __init__(self, seed):
        super().__init__()
        self.number = seeds_of(0, B).index(seed)

    def step(self, action):
        HOOKS.get((self.number, self.counts["step"] + 1), bool)()
        return super().step(action)


def test_a_collector_that_dies_in_a_step_collects_its_part_again(ray):
    def die():
        del HOOKS[1, 3]
        ray.actors[1].die("Killed.")

    HOOKS[1, 3] = die
    feed = cluster.rollout(Hooked, ScriptedActor(), T, B, 1, restart=True, lag=0, seed=0)
    with pytest.warns(RuntimeWarning, match="made anew"):
        assert is_scripted_fragment(0, next(feed))
    assert is_scripted_fragment(1, next(feed))
    feed.close()
    assert len(ray.actors) == 3
    assert all(actor.is_dead for actor in ray.actors)


def test_what_kills_every_ray_actor_is_told_after_three_of_them(ray, monkeypatch):
    monkeypatch.setitem(HOOKS, (1, T + 2), lambda: ray.actors[-1].die("Killed."))
    feed = cluster.rollout(Hooked, ScriptedActor(), T, B, 1, restart=True, lag=0, seed=0)
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(RuntimeError, match=r"collector 1 .* on node 3 has died: Killed") as caught:
        next(feed)
    assert any("3 Ray actors in a row" in note for note in caught.value.__notes__)
    assert has_ended(feed, ray)


def test_environments_that_cannot_be_saved_are_refused_at_the_call(ray):
    class Locked(ScriptedEnv):
        def __init__(self):
            super().__init__()
            self.lock = threading.Lock()

    with pytest.raises(TypeError, match=r"environment \d cannot be saved: .*lock"):
        cluster.rollout(Locked, ScriptedActor(), T, 2, 1, restart=True)
    assert all(actor.is_dead for actor in ray.actors)
    cluster.rollout(Locked, ScriptedActor(), T, 2, 1).close()


@pytest.mark.parametrize("restart", [False, True])
@pytest.mark.parametrize("saver", ["same", "cluster"])
def test_a_stream_is_saved_and_goes_on_in_another_engine(saver, restart):
    engines = {
        "same": partial(same.rollout, [cartpole] * 4, groups=2),
        "cluster": partial(cluster.rollout, cartpole, n_actors=2, n_per_actor=2, restart=restart),
    }
    (goes_on,) = engines.keys() - {saver}
    options = {"n_steps": 11, "lag": 1, "final": True}

    def fragments_of(feed, n):
        return [next(feed) for _ in range(n)]

    torch.manual_seed(1)
    actor = GruWithBuffer()
    with engines[saver](actor=actor, seed=3, **options) as feed:
        fragments_of(feed, 2)
        state = feed.state_dict()
        expected = fragments_of(feed, 3)
    with engines[goes_on](actor=actor, state=state, **options) as feed:
        assert_same_bytes(expected, fragments_of(feed, 3))


def test_a_collector_that_died_before_its_state_was_asked_for_is_made_anew(ray):
    torch.manual_seed(1)
    actor, options = GruWithBuffer(), {"n_steps": 11, "lag": 1}
    with same.rollout([cartpole] * 2, actor, groups=2, seed=3, **options) as feed:
        expected = [next(feed) for _ in range(4)]
    with cluster.rollout(cartpole, actor, n_actors=2, n_per_actor=1, restart=True, seed=3, **options) as feed:
        got = [next(feed)]
        all_tokens_used_up(feed)
        ray.actors[0].die("Its node has died.")
        state = feed.state_dict()
        got.append(next(feed))
        with pytest.warns(RuntimeWarning, match="made anew"):
            got.append(next(feed))
        got.append(next(feed))
    assert_same_bytes(expected, got)
    with same.rollout([cartpole] * 2, actor, groups=2, state=state, **options) as feed:
        assert_same_bytes(expected[1:], [next(feed) for _ in range(3)])


def test_a_pause_in_the_midst_of_a_save_leaves_the_gate_as_it_was(ray):
    blocker = ThreadBlocker()
    with cluster.rollout(ScriptedEnv, ScriptedActor(), T, 1, 1, lag=0) as feed:
        next(feed)
        collector = ray.actors[0].object
        save = collector.state_dict
        collector.state_dict = lambda *args: blocker() or save(*args)
        saving = InThread(feed.state_dict)
        blocker.entered.wait()
        with feed.pause():
            until(lambda: feed._driver._gate._change._waiters)
            blocker.release.set()
        assert saving.wait().value["asked"] == 1
        assert not feed._driver._gate._collecting


# no progress


# on a busy machine the other collector, which is idle, may take longer to close than the test allows
@pytest.mark.filterwarnings("ignore:collector 0 .* had not closed:RuntimeWarning")
def test_an_environment_that_blocks_is_named_after_the_timeout(scripted, ray, monkeypatch):
    monkeypatch.setattr(RayCollectors, "grace", 0.5)
    blocker = ThreadBlocker()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    feed = scripted(Script(), Script().at("step", T + 2, blocker), timeout=0.5)
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(TimeoutError, match=r"collector 1 \(.*\) on node 1: environment 1, in env.step, at step 1 of"):
        next(feed)
    with pytest.warns(RuntimeWarning, match=r"collector 1 .*was killed: environment 1, in env.step"):
        feed.close()
    assert all(actor.is_dead for actor in ray.actors)
    blocker.release.set()


def test_a_ray_actor_that_finds_no_place_is_told_after_the_start_timeout(ray, monkeypatch):
    monkeypatch.setattr(RayCollectors, "grace", 0.1)
    monkeypatch.setattr(ray_stand_in.Actor, "_run", lambda *args: None)
    start_timeout_begins_when(lambda: until(lambda: len(ray.actors) == 2), monkeypatch)
    with pytest.raises(TimeoutError, match=r"collector 1 \(.*\): the collector, in the queue for a place in the"):
        cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1, start_timeout=0.3)
    assert all(actor.is_dead for actor in ray.actors)


def test_a_report_is_progress_and_a_message_waits_for_it():
    asked = []

    def ask():
        asked.append(Future())
        return asked[-1]

    progress = ReportedProgress(ask)
    first = progress.state()
    assert progress.state() == first
    assert len(asked) == 1  # the report is still under way
    asked[0].set_result(Report("env.step", 3, 7, 2, [1.0] * 6, 10.0))
    assert progress.state() != first
    assert str(progress).startswith("environment 3, in env.step, at step 7 of fragment 2")
    assert progress.seconds == [1.0] * 6
    progress.begin_anew("starting")
    progress.load(Report("env.step", 3, 7, 2, [0.5] * 6, 5.0))
    assert progress.seconds == [1.5] * 6

    def fail():
        raise RuntimeError("Ray has ended")

    assert "in starting" in str(ReportedProgress(fail))


def test_a_report_that_arrives_late_takes_nothing_back():
    def report(k, at):
        return Report("env.step", 3, k, 2, [float(k)] * 6, at)

    asked = []
    progress = ReportedProgress(lambda: asked.append(Future()) or asked[-1])
    progress.state()
    asked[0].set_result(report(1, at=10.0))
    progress.load(report(2, at=11.0))
    assert progress.seconds == [2.0] * 6
    progress._report = progress._before, asked[0]  # a thread had taken it before the newer one was noted
    progress.state()
    assert (progress.seconds, progress.row) == ([2.0] * 6, 2)


def test_a_report_of_a_collector_that_has_died_is_not_counted_for_the_next_one():
    class ReportOfTheDying(Future):
        def result(self, timeout=None):
            progress.begin_anew("starting")  # in another thread, while this one waits
            return Report("env.step", 3, 7, 2, [1.0] * 6, 10.0)

    progress = ReportedProgress(ReportOfTheDying)
    assert "in starting" in str(progress)
    assert progress.seconds == [0.0] * 6


# pauses and ends


def test_the_collectors_stand_still_in_a_pause_and_go_on_after_it(scripted):
    blocker, order = ThreadBlocker(), []

    def block():
        blocker()
        order.append("end of the step")

    scripts = [Script().at("step", T + 2, block), Script()]
    feed = scripted(*scripts, n_steps=1000, lag=0)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(60)

    def pause():
        with feed.pause():
            order.append("pause")
            counts = [script.counts["step"] for script in scripts]
            threading.Event().wait(0.05)  # what would step meanwhile steps thousands of times
            return counts == [script.counts["step"] for script in scripts]

    pausing = InThread(pause)
    until(lambda: feed._driver._gate.shut)
    threading.Event().wait(0.05)  # a pause that does not wait for the step begins now
    blocker.release.set()
    assert pausing.wait().value
    assert order == ["end of the step", "pause"]
    assert consumer.wait().error is None
    feed.close()


def test_a_pause_waits_for_parts_that_no_fragment_waits_for(scripted, ray):
    first, second = ThreadBlocker(), ThreadBlocker()
    with scripted(
        Script(), Script().at("step", 3, first).at("step", 5, second), n_per_batch=1, n_steps=9, lag=0
    ) as feed:
        next(feed)
        assert first.entered.wait(60)
        pausing = PauseInThread(feed)
        until(lambda: all(actor.object._gate.shut for actor in ray.actors))
        assert not pausing.entered.wait(0.05)
        first.release.set()
        assert pausing.entered.wait(60)
        assert not second.entered.wait(0.05)
        pausing.leave.set()
        assert pausing.wait().error is None
        assert second.entered.wait(60)  # it goes on, although nobody asks for a fragment
        second.release.set()


def test_closing_in_the_middle_of_a_fragment_stops_at_the_next_step(scripted, ray):
    blockers = [ThreadBlocker(), ThreadBlocker()]
    scripts = [Script().at("step", 3 + k, blocker) for k, blocker in enumerate(blockers)]
    feed = scripted(*scripts, n_steps=1000)
    consumer = InThread(feed.__next__)
    for blocker in blockers:
        assert blocker.entered.wait(60)
    closer = InThread(feed.close)
    assert "closed" in str(consumer.wait().error)
    until(lambda: all(actor.object._gate.shut for actor in ray.actors))
    for blocker in blockers:
        blocker.release.set()
    assert closer.wait().error is None
    assert [script.counts["step"] for script in scripts] == [3, 4]
    assert [script.counts["close"] for script in scripts] == [1, 1]
    assert is_closed(feed)
    assert all(actor.is_dead for actor in ray.actors)


def test_a_feed_that_is_dropped_ends_its_ray_actors(scripted, ray):
    feed = scripted(Script(), Script())
    next(feed)
    del feed
    gc.collect()
    until(lambda: all(actor.is_dead for actor in ray.actors))


def test_a_feed_outlives_ray(scripted, ray):
    feed = scripted(Script(), Script())
    next(feed)
    ray.initialised = False
    feed.close()
    for actor in ray.actors:
        assert not actor.is_dead  # Ray has ended them
        actor.die("Ray has ended.")


# Ray itself


def test_ray_that_is_missing_is_told_with_the_remedy(monkeypatch):
    monkeypatch.undo()
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(ImportError, match=r'pip install "rlplay\[ray\]"'):
        cluster.rollout(ScriptedEnv, ScriptedActor(), T, 2, 1)


def test_no_module_imports_ray_unless_it_is_asked_for():
    code = "import sys, rlplay.engine.rollout.cluster as one; print('ray' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_bytes_are_read_where_they_are_and_torch_does_not_warn():
    for dtype, shape in ((torch.bfloat16, (2,)), (torch.complex64, (2, 3)), (torch.bool, ())):
        tensor = torch.ones(shape, dtype=dtype)
        (memory,) = ray_stand_in.sent(bytes_of([tensor]))
        assert not memory.flags.writeable
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            found = tensor_over(memory, tensor.shape, tensor.dtype)
        assert found.data_ptr() == memory.ctypes.data
        assert torch.equal(found, tensor)
    (memory,) = bytes_of([torch.ones(0, 3)])
    assert tensor_over(memory, (0, 3), torch.float32).shape == (0, 3)
