"""Collector processes that fail, hang or are killed: errors come in order, and no process is left."""

from __future__ import annotations

import gc
import os
import random
import re
import signal
import threading
from pathlib import Path
from textwrap import dedent

import numpy as np
import pytest
from gym.spaces import Box

from rlplay.engine.concurrency.child import Child
from rlplay.engine.envs.make import seeds_of
from rlplay.engine.rollout import multi, single
from tests.support.assertions import is_closed
from tests.support.errors import raising
from tests.support.processes import ProcessBlocker, child_processes
from tests.support.scripted import B, Script, ScriptedActor, ScriptedEnv, T, is_scripted_fragment
from tests.support.scripts import is_traceback, start_script
from tests.support.starting import start_timeout_begins_when, timeout_counts_while
from tests.support.threads import LONG, InThread, PauseInThread, all_tokens_used_up, until


@pytest.fixture
def impatient(monkeypatch):
    """Closing does not wait long for a step that is under way."""
    monkeypatch.setattr(Child, "grace", 2.0)  # longer than a process that is not stuck takes to end


@pytest.fixture
def blockers(tmp_path):
    return [ProcessBlocker(tmp_path / f"stop-{k}") for k in range(2)]


class RecordsSteps(ScriptedEnv):
    """Writes, when it is closed, how often it was stepped."""

    def __init__(self, script, where):
        super().__init__(script)
        self._where = where

    def close(self):
        super().close()
        self._where.write_text(str(self.counts["step"]))


class ScriptedFactory:
    """A factory that tells its environments apart by their seeds, and gives each a script of its own."""

    def __init__(self, where, *scripts):
        self._counts = [where / f"env-{j}" for j in range(len(scripts))]
        self._parts = dict(zip(seeds_of(0, len(scripts)), zip(scripts, self._counts, strict=True), strict=True))

    def __call__(self, seed):
        return RecordsSteps(*self._parts[seed])

    @property
    def closed(self):
        """How often each environment was stepped that has been closed (None: it has not been)."""
        return [int(book.read_text()) if book.exists() else None for book in self._counts]


@pytest.fixture
def one(tmp_path):
    """Open a feed of `single`, with a script for each environment; return it and its factory."""

    def opened(*scripts, actor=None, **options):
        fleet = ScriptedFactory(tmp_path, *scripts)
        return single.rollout(fleet, actor or ScriptedActor(), T, len(scripts), seed=0, **options), fleet

    return opened


@pytest.fixture
def many(tmp_path):
    """Open a feed of `multi`, with a process for each script; return it and its factory."""

    def opened(*scripts, n_steps=T, **options):
        fleet = ScriptedFactory(tmp_path, *scripts)
        return multi.rollout(fleet, ScriptedActor(), n_steps, len(scripts), 1, seed=0, **options), fleet

    return opened


def memory():
    """Tell how much of the address space is shared memory of ours."""
    return sum("memfd:rlplay" in line for line in Path("/proc/self/maps").read_text().splitlines())


def descriptors():
    return len(os.listdir("/proc/self/fd"))


def all_told(feed):
    """Whether all processes have been told to stand still, or to stop, at their next step."""
    return all(process.progress.halted for process in feed._driver.collector._collectors)


def has_ended(feed):
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(feed)
    return not feed.open and not child_processes()


# errors


FAILING = {
    "env.step": (
        {1: Script().at("step", T + 3, raising(ValueError("from within")))},
        None,
        "environment 1, in env.step",
    ),
    "env.reset": (
        {1: Script().at("reset", 4, raising(ValueError("from within")))},
        None,
        "environment 1, in env.reset",
    ),
    "actor.step": ({}, Script().at("act", T + 3, raising(ValueError("from within"))), "the collector, in actor.step"),
}


@pytest.mark.parametrize(("envs", "actor", "where"), FAILING.values(), ids=FAILING)
def test_an_error_in_a_collector_process_comes_in_order_with_type_note_and_traceback(one, envs, actor, where):
    feed, fleet = one(*[envs.get(j, Script()) for j in range(B)], actor=ScriptedActor(actor))
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(ValueError, match="from within") as caught:
        list(feed)
    *_, note = caught.value.__notes__
    assert note.startswith(f"rlplay: collector process 0 (environments 0 to 1): {where}, at step ")
    assert note.endswith("of fragment 1")
    assert "in explode" in str(caught.value.__cause__)
    assert None not in fleet.closed
    assert has_ended(feed)


def test_an_error_in_one_process_does_not_wait_for_the_others_and_these_stop_at_their_next_step(many, blockers):
    slow, failing = Script().at("step", T + 2, blockers[0]), Script().at("step", T + 3, blockers[1])
    failing.at("step", T + 4, raising(KeyError("from within")))
    feed, fleet = many(slow, failing)
    assert is_scripted_fragment(0, next(feed))
    blockers[0].wait_until_entered()
    blockers[1].wait_until_entered()
    blockers[1].release()
    until(lambda: all_told(feed))  # by the collector alone: nobody asks
    blockers[0].release()
    with pytest.raises(KeyError) as caught:
        next(feed)
    (note,) = caught.value.__notes__
    assert note == "rlplay: collector process 1 (environment 1): environment 1, in env.step, at step 3 of fragment 1"
    assert fleet.closed == [T + 2, T + 4]
    assert has_ended(feed)


def test_an_error_in_a_collector_process_at_the_call_is_raised_there(tmp_path):
    with pytest.raises(ZeroDivisionError) as caught:
        single.rollout(lambda: 1 / 0, ScriptedActor(), T, 2)
    assert "collector process 0 (environments 0 to 1): environment 0, in env.make" in caught.value.__notes__[0]
    assert "in <lambda>" in str(caught.value.__cause__)
    with pytest.raises(ValueError, match="from within") as caught:
        multi.rollout(ScriptedEnv, ScriptedActor(Script().at("look", 1, raising(ValueError("from within")))), T, 2, 1)
    assert any("actor.step" in note for note in caught.value.__notes__)
    assert not child_processes()


class OtherSpaceForOneSeed(ScriptedEnv):
    def __init__(self, seed):
        super().__init__()
        if seed == seeds_of(0, 3)[2]:
            self.observation_space = Box(-1, 1, (2,), np.float32)


def test_unequal_spaces_in_different_processes_are_refused():
    with pytest.raises(ValueError, match=r"equal spaces: environment 2 has the observation_space"):
        multi.rollout(OtherSpaceForOneSeed, ScriptedActor(), T, 3, 1, seed=0)
    assert not child_processes()


def test_an_error_in_closing_an_environment_in_a_process_is_a_warning_and_others_are_closed(one):
    feed, fleet = one(Script(), Script().at("close", 1, raising(ValueError("no"))))
    next(feed)
    with pytest.warns(RuntimeWarning, match=r"closing .* failed: .*no"):
        feed.close()
    assert fleet.closed[0] is not None
    assert not child_processes()


# deaths


def die():
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_process_that_is_killed_in_a_step_is_named_although_another_is_busy(many, blockers, impatient):
    feed, _ = many(Script().at("step", 3, blockers[0]), Script().at("step", 2, blockers[1]))
    consumer = InThread(feed.__next__)
    blockers[0].wait_until_entered()
    os.kill(blockers[1].wait_until_entered(), signal.SIGKILL)
    error = consumer.wait().error
    assert isinstance(error, RuntimeError)
    assert "collector process 1 (environment 1)" in str(error)
    assert "SIGKILL" in str(error)
    note, killed = error.__notes__
    assert note == "rlplay: collector process 1 (environment 1): environment 1, in env.step, at step 1 of fragment 0"
    assert "collector process 0 (environment 0)" in killed
    assert "was killed" in killed
    assert has_ended(feed)


def test_a_process_that_dies_while_it_is_idle_is_named_after_the_fragments_before(many):
    feed, _ = many(Script(), Script())
    assert is_scripted_fragment(0, next(feed))
    all_tokens_used_up(feed)
    (pid, _) = sorted(child_processes())
    os.kill(pid, signal.SIGKILL)
    assert is_scripted_fragment(1, next(feed))
    with pytest.raises(RuntimeError, match=r"collector process \d \(environment \d\).* killed by SIGKILL"):
        next(feed)
    assert has_ended(feed)


def test_a_process_that_ends_itself_is_named_with_its_exit_code(one):
    feed, _ = one(Script(), Script().at("step", 2, lambda: os._exit(7)))
    with pytest.raises(RuntimeError, match=r"collector process 0 \(environments 0 to 1\).* ended with exit code 7"):
        next(feed)
    assert has_ended(feed)


def test_a_process_that_dies_at_the_call_is_named():
    with pytest.raises(RuntimeError, match=r"collector process 0 .* killed by SIGKILL") as caught:
        single.rollout(die, ScriptedActor(), T, 2)
    assert "environment 0, in env.make" in caught.value.__notes__[0]
    with pytest.raises(RuntimeError, match=r"collector process \d .* killed by SIGKILL"):
        multi.rollout(ScriptedEnv, ScriptedActor(Script().at("look", 1, die)), T, 2, 1)
    assert not child_processes()


# no progress


# on a busy machine the other process, which is idle, may take longer to end than `impatient` allows
@pytest.mark.filterwarnings("ignore:collector process 0 .* had not ended:RuntimeWarning")
def test_an_environment_that_blocks_is_named_after_the_timeout_and_killed(many, blockers, impatient, monkeypatch):
    timeout_counts_while(blockers[1].has_begun, monkeypatch)
    feed, _ = many(Script(), Script().at("step", T + 2, blockers[1]), timeout=0.5)
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(TimeoutError, match=r"0.5 s: collector process 1 \(environment 1\): environment 1, in env.step"):
        next(feed)
    with pytest.raises(StopIteration):
        next(feed)
    with pytest.warns(RuntimeWarning, match=r"collector process 1 .*was killed"):
        feed.close()
    assert not child_processes()


def test_a_factory_that_blocks_is_given_up_after_the_start_timeout(blockers, impatient, monkeypatch):
    start_timeout_begins_when(blockers[0].wait_until_entered, monkeypatch)
    with pytest.raises(TimeoutError, match=r"0.5 s: collector process 0 \(environments 0 to 1\).*env.make") as caught:
        single.rollout(blockers[0], ScriptedActor(), T, 2, start_timeout=0.5)
    (note,) = caught.value.__notes__
    assert re.search("collector process 0 .*was killed", note)
    assert not child_processes()


# closing


def test_a_feed_may_be_closed_before_the_first_fragment_and_often(one):
    feed, fleet = one(Script(), Script())
    for _ in range(2):
        feed.close()
        assert is_closed(feed)
        assert not child_processes()
    assert fleet.closed == [0, 0]


@pytest.mark.parametrize("other", [False, True])
def test_a_feed_may_be_closed_while_the_processes_wait_for_the_learner(many, other):
    feed, fleet = many(Script(), Script())
    fragment = next(feed)
    all_tokens_used_up(feed)
    if other:
        assert InThread(feed.close).wait().error is None
    else:
        feed.close()
    assert is_closed(feed)
    assert fleet.closed == [2 * T, 2 * T]
    assert is_scripted_fragment(0, fragment)
    assert not child_processes()


def test_closing_in_the_middle_of_a_fragment_stops_all_processes_at_the_end_of_their_steps(many, blockers):
    feed, fleet = many(Script().at("step", 3, blockers[0]), Script().at("step", 5, blockers[1]), n_steps=1000)
    consumer = InThread(feed.__next__)
    for blocker in blockers:
        blocker.wait_until_entered()
    closer = InThread(feed.close)
    assert "closed" in str(consumer.wait().error)
    until(lambda: all_told(feed))
    for blocker in blockers:
        blocker.release()
    assert closer.wait().error is None
    assert fleet.closed == [3, 5]
    assert is_closed(feed)
    assert not child_processes()


def test_a_process_that_is_stuck_is_killed_by_close(one, blockers, impatient):
    feed, fleet = one(Script(), Script().at("step", 3, blockers[0]))
    consumer = InThread(feed.__next__)
    blockers[0].wait_until_entered()
    with pytest.warns(RuntimeWarning, match=r"collector process 0 .*was killed"):
        feed.close()
    assert "closed" in str(consumer.wait().error)
    assert fleet.closed == [None, None]
    assert not child_processes()


def test_closed_feeds_leave_neither_memory_nor_descriptors_and_do_not_wait_for_the_garbage_collector(one):
    def open_and_close(end):
        feed, _ = one(
            Script(), Script().at("step", T + 1, raising(ValueError("from within"))) if end == "error" else Script()
        )
        next(feed)
        if end == "error":
            with pytest.raises(ValueError, match="from within"):
                list(feed)
        elif end == "close":
            feed.close()

    open_and_close("close")
    gc.collect()
    before = memory(), descriptors(), threading.active_count()
    gc.disable()
    try:
        for end in ("close", "error", "forget"):
            open_and_close(end)
            now = memory(), descriptors(), threading.active_count()
            assert all(one <= other for one, other in zip(now, before, strict=True)), (end, now, before)
            assert not child_processes()
    finally:
        gc.enable()


def test_a_feed_in_a_reference_cycle_is_ended_by_the_garbage_collector(many):
    cycle = list(many(Script(), Script()))
    cycle.append(cycle)
    fleet = cycle[1]
    next(cycle[0])
    del cycle
    gc.collect()
    assert not child_processes()
    assert None not in fleet.closed


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_fifty_feeds_with_collector_processes_leave_no_resources(tmp_path):
    def resident():
        return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")

    seen = []
    for k in range(60):
        engine = (
            multi.rollout(ScriptedEnv, ScriptedActor(), 1000, 2, 2)
            if k % 2
            else single.rollout(ScriptedEnv, ScriptedActor(), 1000, 4)
        )
        for _ in range(k % 3):
            next(engine)
        engine.close()
        del engine
        assert not child_processes()
        if k >= 10:
            seen.append((memory(), descriptors(), threading.active_count(), resident()))
    gc.collect()
    for what in range(3):
        assert max(row[what] for row in seen) <= seen[0][what]
    assert seen[-1][3] - seen[0][3] < 20e6


@pytest.mark.soak
@pytest.mark.timeout(1200)
def test_whenever_a_process_is_killed_it_is_named(many, tmp_path):
    for n in range(1, 41):
        feed, _ = many(Script(), Script().at("step", n, die), lag=n % 3)
        for k in range((n - 1) // T):
            assert is_scripted_fragment(k, next(feed))
        with pytest.raises(RuntimeError, match=r"collector process 1 .* killed by SIGKILL"):
            next(feed)
        assert has_ended(feed)


# pausing


class SharedStepCount(ScriptedEnv):
    """Counts its steps where everybody can see it: once they are over."""

    def __init__(self, script, where):
        super().__init__(script)
        self._count = np.memmap(where, np.int64, "r+", shape=())

    def step(self, action):
        result = super().step(action)
        self._count[()] += 1
        return result


def counted(folder, *scripts):
    """Return a factory of environments with these scripts, and a function that returns how often each was stepped."""
    files = [folder / f"count-{j}" for j in range(len(scripts))]
    for file in files:
        file.write_bytes(bytes(8))
    counts = [np.memmap(file, np.int64, "r", shape=()) for file in files]
    parts = dict(zip(seeds_of(0, len(scripts)), zip(scripts, files, strict=True), strict=True))
    return lambda seed: SharedStepCount(*parts[seed]), lambda: [int(count) for count in counts]


def test_paused_processes_stand_still_between_two_steps_and_go_on(tmp_path, blockers):
    factory, now = counted(tmp_path, Script().at("step", 40, blockers[0]), Script().at("step", 3, blockers[1]))

    def pause():
        with feed.pause():
            with feed.pause():
                pass
            entered.set()
            assert leave.wait(LONG)

    entered, leave = threading.Event(), threading.Event()
    with multi.rollout(factory, ScriptedActor(), 100, 2, 1, seed=0, lag=0, timeout=LONG) as feed:
        consumer = InThread(feed.__next__)
        for blocker in blockers:
            blocker.wait_until_entered()
        pauser = InThread(pause)
        until(lambda: all_told(feed))
        blockers[0].release()
        until(lambda: now()[0] == 40)
        assert not entered.wait(0.3)  # the other one is in the middle of its step
        assert now() == [40, 2]
        blockers[1].release()
        assert entered.wait(LONG)
        assert now() == [40, 3]
        consumer.join(0.3)
        assert now() == [40, 3]
        leave.set()
        pauser.wait()
        fragment = consumer.wait().value
        assert now() == [100, 100]
        assert fragment.state.rew[1:].T.tolist() == [list(range(1, 101))] * B


def test_a_pause_waits_for_parts_that_no_fragment_waits_for_and_lets_them_go_on(tmp_path, blockers):
    factory, now = counted(tmp_path, Script(), Script().at("step", 3, blockers[0]).at("step", 5, blockers[1]))
    with multi.rollout(factory, ScriptedActor(), 100, 2, 1, n_per_batch=1, seed=0, lag=0, timeout=LONG) as feed:
        next(feed)
        blockers[0].wait_until_entered()
        pauser = PauseInThread(feed)
        until(lambda: all_told(feed))
        assert not pauser.entered.wait(0.3)
        assert now() == [100, 2]
        blockers[0].release()
        assert pauser.entered.wait(LONG)
        assert now() == [100, 3]
        pauser.leave.set()
        assert pauser.wait().error is None
        blockers[1].wait_until_entered()  # it goes on, although nobody asks for a fragment
        assert now() == [100, 4]
        next(feed)
        assert now() == [200, 4]
        blockers[1].release()
        until(lambda: now()[1] == 100)
        with feed.pause():  # it has no step to pause at, so this waits for its part
            pass
        assert [next(feed).state.rew.shape, feed.version] == [(101, 1), (0,)]  # the part with the oldest weights


def test_processes_that_have_paused_go_on_after_a_pause_that_came_to_nothing(tmp_path, blockers, monkeypatch):
    def release_once_told(shut):
        if shut:
            assert all_told(feed)
            blockers[0].release()

    factory, now = counted(tmp_path, Script(), *(Script().at("step", 3, blocker) for blocker in blockers))
    with multi.rollout(factory, ScriptedActor(), 100, 3, 1, n_per_batch=1, seed=0, lag=0) as feed:
        next(feed)
        for blocker in blockers:
            blocker.wait_until_entered()
        feed._driver._gate.on_change(release_once_told)
        monkeypatch.setattr(feed._driver, "_timeout", 1.0)
        with pytest.raises(TimeoutError, match="cannot pause"), feed.pause():
            pass
        feed._driver._gate.remove_change(release_once_told)
        until(lambda: now()[1] == 100)
        assert now() == [100, 100, 2]
        blockers[1].release()


@pytest.mark.soak
def test_in_hundreds_of_pauses_all_processes_stand_still_and_none_stays_so(tmp_path):
    def pause():
        dice = random.Random(0)
        for _ in range(300):
            threading.Event().wait(0.005 * dice.random())  # in the midst of a fragment, or between two
            with feed.pause():
                before = now()
                threading.Event().wait(0.001)  # what would step meanwhile steps dozens of times
                assert now() == before

    factory, now = counted(tmp_path, Script(), Script(), Script())
    with multi.rollout(factory, ScriptedActor(), 200, 3, 1, n_per_batch=1, seed=0, lag=0) as feed:
        pausers = [InThread(pause) for _ in range(2)]
        while any(pauser.is_alive() for pauser in pausers):
            next(feed)
            threading.Event().wait(0.002)
        assert [pauser.wait().error for pauser in pausers] == [None, None]
        before = now()
        assert min(before) > 1000
        until(lambda: next(feed) and all(after > count for after, count in zip(now(), before, strict=True)))


# how the whole program ends


IMPORTS = """
import os
from rlplay.engine.rollout import single
"""

OPEN = """
feed = single.rollout(Env, Actor(), 5, 2)
next(feed)
"""

ENDS = {
    "the end of the script": (OPEN, 0, ""),
    "sys.exit": (OPEN + "sys.exit(3)", 3, ""),
    "os._exit": (OPEN + "os._exit(4)", 4, ""),
    "an exception": (OPEN + "raise ValueError('of the learner')", 1, "ValueError: of the learner"),
    "SIGKILL": (OPEN + "os.kill(os.getpid(), signal.SIGKILL)", -signal.SIGKILL, ""),
    "SIGKILL in the middle of a fragment": (
        "next(single.rollout(lambda: Env(lambda: os.kill(os.getppid(), signal.SIGKILL)), Actor(), 10**4, 1))",
        -signal.SIGKILL,
        "",
    ),
}


@pytest.mark.timeout(600)
def test_however_a_program_ends_its_processes_end_too():
    """They have inherited its standard output, which comes to an end only when the last of them has."""
    programs = [start_script(IMPORTS + script) for script, _, _ in ENDS.values()]
    for program, how, (_, code, last) in zip(programs, ENDS, ENDS.values(), strict=True):
        _, err = program.communicate(timeout=5 * LONG)  # six programs start at once, each with processes
        assert program.returncode == code, (how, err)
        assert is_traceback(err, last) if last else err == "", how


def test_an_interrupt_inside_next_ends_the_feed_and_with_it_the_program():
    script = """
    def slow():
        global steps
        steps += 1
        if steps == 7:
            print("ready", flush=True)
        threading.Event().wait(0.05)

    steps = 0
    for fragment in single.rollout(lambda: Env(slow), Actor(), 1000, 1):
        print("not within this test")
    """
    program = start_script(IMPORTS + dedent(script))
    assert program.stdout.readline() == "ready\n"
    program.send_signal(signal.SIGINT)
    _, err = program.communicate(timeout=LONG)
    assert program.returncode == -signal.SIGINT
    assert is_traceback(err, "KeyboardInterrupt")
