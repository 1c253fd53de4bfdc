"""What belongs to the whole process is changed and put back by one thread at a time."""

import gc
import random
import warnings

import pytest
import torch

from rlplay import process_state
from rlplay.engine.acting.compile.step_checks import NoGraph, no_foreign_draws
from rlplay.engine.feed.options import seed_of
from rlplay.engine.rollout import same
from rlplay.process_state import compiling, garbage_collector_off, generators_held, global_generator_kept
from tests.support.scripted import ScriptedActor, ScriptedEnv
from tests.support.threads import InThread, TellingLock, ThreadBlocker, until

CPU = torch.device("cpu")


@pytest.fixture
def lock(monkeypatch):
    lock = TellingLock()
    monkeypatch.setattr(process_state, "_generators", lock)
    return lock


def ended_or_waiting(thread, lock):
    """Wait until the thread has ended, or waits for the lock."""
    until(lambda: lock.awaited.is_set() or not thread.is_alive())


def test_two_threads_that_compile_leave_the_warning_filters_as_they_were(lock):
    def compile_in_turn():
        with compiling():
            blocker()

    before, blocker = list(warnings.filters), ThreadBlocker()
    with compiling():
        assert warnings.filters != before
        other = InThread(compile_in_turn)
        until(lambda: lock.awaited.is_set() or blocker.entered.is_set())
    until(blocker.entered.is_set)
    blocker.release.set()
    other.wait()
    assert warnings.filters == before


def test_feeds_made_in_two_threads_have_different_seeds(lock):
    class Steps(ScriptedActor):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            if not others:  # the trial step, after which the global generator is set back
                others.append(InThread(lambda: seed_of(None)))
                ended_or_waiting(others[0], lock)
            return super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)

    others = []
    with same.rollout([ScriptedEnv()], Steps(), 4, seed=0):
        (other,) = others
        assert other.wait().value != seed_of(None)


BLOCKS = {
    "a trial step": lambda: global_generator_kept(CPU),
    "a check of a step": no_foreign_draws,
    "compiling": compiling,
}


@pytest.mark.parametrize("block", BLOCKS.values(), ids=BLOCKS)
def test_another_thread_cannot_draw_or_restore_the_global_generators_meanwhile(block, lock):
    def draw_and_put_back():
        with pytest.raises(NoGraph), no_foreign_draws():
            random.random()

    with block():
        other = InThread(draw_and_put_back)
        ended_or_waiting(other, lock)
        assert other.is_alive()
    assert other.wait().error is None


def test_a_thread_that_is_stuck_in_a_trial_does_not_keep_others_from_drawing_for_ever(monkeypatch):
    def stuck():
        with generators_held():
            blocker()

    monkeypatch.setattr(process_state, "_PATIENCE", 0.0)
    blocker = ThreadBlocker()
    thread = InThread(stuck)
    until(blocker.entered.is_set)
    assert seed_of(None) != seed_of(None)
    blocker.release.set()
    assert thread.wait().error is None


@pytest.mark.parametrize("enabled", [True, False])
def test_the_garbage_collector_stays_off_until_the_last_of_two_captures_has_ended(enabled):
    def capture():
        with garbage_collector_off():
            blocker()

    blocker, before = ThreadBlocker(), gc.isenabled()
    (gc.enable if enabled else gc.disable)()
    try:
        with garbage_collector_off():
            other = InThread(capture)
            until(blocker.entered.is_set)
        assert not gc.isenabled()
        blocker.release.set()
        assert other.wait().error is None
        assert gc.isenabled() == enabled
    finally:
        (gc.enable if before else gc.disable)()
