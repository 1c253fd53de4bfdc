"""Errors reach the consumer after the fragments before them, and feeds end and can be closed whatever happens."""

from __future__ import annotations

import gc
import itertools
import math
import signal
import threading
import traceback
import warnings
import weakref
from contextlib import suppress
from functools import partial
from typing import ClassVar

import pytest
import torch
from torch import nn

from rlplay.engine.feed import driver
from rlplay.engine.rollout import same, threaded
from tests.support.assertions import is_closed
from tests.support.errors import TwoArgumentError, raising
from tests.support.scripted import LENGTH, B, Script, ScriptedActor, ScriptedEnv, T, is_scripted_fragment
from tests.support.starting import TimeInSteps, start_timeout_begins_when, timeout_counts_while
from tests.support.threads import LONG, InThread, ThreadBlocker, all_tokens_used_up, until

THREADED = {f"threaded-{lag}": partial(threaded.rollout, n_steps=T, seed=0, lag=lag) for lag in (0, 1, 2)}
ENGINES = {f"same-{lag}": partial(same.rollout, n_steps=T, seed=0, lag=lag) for lag in (0, 1, 2)} | THREADED


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def rollout(request):
    """Any engine, with any lag."""
    return request.param


@pytest.fixture(params=THREADED.values(), ids=THREADED)
def threaded_rollout(request):
    """An engine that collects in the background, with any lag."""
    return request.param


@pytest.fixture
def impatient(monkeypatch):
    """Shorten the time that closing waits for a step under way."""
    monkeypatch.setattr(driver.Driver, "stop_timeout", 0.05)


EARLIER = set()  # threads that tests before have left: the traceback of a failed test keeps feeds alive


@pytest.fixture(autouse=True)
def note_earlier_threads():
    EARLIER.clear()
    EARLIER.update(threading.enumerate())


def collector_threads():
    return [thread for thread in threading.enumerate() if thread.name.startswith("rlplay") and thread not in EARLIER]


def functions_in(error):
    return [frame.name for frame in traceback.extract_tb(error.__traceback__)]


# an error reaches the consumer, in its place


AFTER_THE_CALL = {
    # whose, which call, the how many-th from now on -> at which step of which fragment, doing what
    "first env.step": ("env", "step", 1, 0, 0, "env.step"),
    "later env.step": ("env", "step", 8, 2, 1, "env.step"),
    "last env.step of a fragment": ("env", "step", 10, 4, 1, "env.step"),
    "first env.reset after an episode": ("env", "reset", 1, 2, 0, "env.reset"),
    "later env.reset": ("env", "reset", 4, 1, 2, "env.reset"),
    "first actor.step": ("actor", "act", 1, 0, 0, "actor"),
    "later actor.step": ("actor", "act", 13, 2, 2, "actor"),
    "first virtual actor.step": ("actor", "look", 1, 5, 0, "actor"),
    "later virtual actor.step": ("actor", "look", 3, 5, 2, "actor"),
    "first actor.reset": ("actor", "forget", 1, 0, 0, "actor"),
    "later actor.reset": ("actor", "forget", 5, 2, 2, "actor"),
}


@pytest.mark.parametrize(("who", "call", "n", "step", "k", "doing"), AFTER_THE_CALL.values(), ids=AFTER_THE_CALL)
def test_an_error_is_raised_after_all_fragments_before_it(rollout, who, call, n, step, k, doing):
    mine, made, actor, error = ScriptedEnv(), ScriptedEnv(), ScriptedActor(), TwoArgumentError("one", 2)
    feed = rollout([mine, lambda: made], actor)
    script = made.script if who == "env" else actor.script
    script.at(call, n, raising(error))

    for number in range(k):
        assert is_scripted_fragment(number, next(feed))
    with pytest.raises(TwoArgumentError, match="one and 2") as caught:
        next(feed)

    assert caught.value is error
    assert "explode" in functions_in(error)
    *given, note = error.__notes__
    assert given == (["rlplay: obs was 1 x 2 x 2 float32"] if call in ("act", "look") else [])
    assert f"step {step} of fragment {k}" in note
    assert doing in note
    assert ("environment 1" in note) == (who == "env")
    assert not collector_threads()
    assert (mine.counts["close"], made.counts["close"]) == (0, 1)
    for _ in range(2):
        with pytest.raises(StopIteration):
            next(feed)
    assert not feed.open
    feed.close()
    assert is_closed(feed)
    assert (mine.counts["close"], made.counts["close"]) == (0, 1)


AT_THE_CALL = {
    "factory": ("env", "make"),
    "env.reset": ("env", "reset"),
    "actor.step": ("actor", "look"),
    "actor.reset": ("actor", "forget"),
}


@pytest.mark.parametrize(("who", "call"), AT_THE_CALL.values(), ids=AT_THE_CALL)
def test_an_error_at_the_call_is_raised_there(rollout, who, call):
    mine, early, late, actor, error = (
        ScriptedEnv(),
        ScriptedEnv(),
        ScriptedEnv(),
        ScriptedActor(),
        TwoArgumentError("one", 2),
    )
    script = late.script if who == "env" else actor.script
    script.at(call, 1, raising(error))

    def factory():
        late.script("make")
        return late

    with pytest.raises(TwoArgumentError) as caught:
        rollout([mine, lambda: early, factory], actor)

    assert caught.value is error
    assert "explode" in functions_in(error)
    if who == "env":
        (note,) = error.__notes__
        assert "environment 2" in note
        assert f"env.{call}" in note
    assert not collector_threads()
    assert [env.counts["close"] for env in (mine, early, late)] == [0, 1, call != "make"]
    assert not any(env.counts["step"] for env in (mine, early, late))


def test_the_loop_over_a_feed_does_not_end_silently_where_an_environment_raises_stop_iteration(rollout):
    env = ScriptedEnv(Script().at("step", 7, raising(StopIteration("from within"))))
    feed, seen = rollout([env, ScriptedEnv()], ScriptedActor()), []
    with pytest.raises(RuntimeError, match="from within") as caught:
        seen.extend(feed)
    assert len(seen) == 1
    assert isinstance(caught.value.__cause__, StopIteration)
    assert "explode" in functions_in(caught.value.__cause__)
    assert not collector_threads()
    assert list(feed) == []


def test_a_stop_iteration_of_the_actor_at_the_first_ask_does_not_end_the_users_loop(rollout):
    class Stops(ScriptedActor):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            if torch.is_autocast_enabled("cpu"):
                raise StopIteration("from within")
            return super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)

    with rollout([ScriptedEnv()], Stops()) as feed:
        with torch.autocast("cpu"), pytest.raises(RuntimeError, match=r"asking raised StopIteration\('from within'\)"):
            next(feed)
        next(feed)


@pytest.mark.parametrize("kind", [SystemExit, KeyboardInterrupt, GeneratorExit])
def test_exceptions_that_are_meant_for_the_interpreter_reach_the_consumer_too(rollout, kind):
    feed = rollout([ScriptedEnv(), ScriptedEnv(Script().at("step", 2, raising(kind("from within"))))], ScriptedActor())
    with pytest.raises(kind, match="from within") as caught:
        next(feed)
    assert "environment 1" in caught.value.__notes__[0]
    assert not collector_threads()
    with pytest.raises(StopIteration):
        next(feed)


def test_an_observation_that_no_longer_fits_is_an_error_with_the_environment_and_the_step(rollout):
    class Grows(ScriptedEnv):
        def _obs(self):
            return super()._obs().repeat(1 if self.counts["step"] < 7 else 2)

    feed = rollout([ScriptedEnv(), Grows()], ScriptedActor())
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(ValueError, match=r"expected shape \(2,\).*got shape \(4,\)") as caught:
        next(feed)
    assert "environment 1" in caught.value.__notes__[0]
    assert "step 1 of fragment 1" in caught.value.__notes__[0]


def test_an_answer_of_the_actor_that_no_longer_fits_is_an_error_and_not_broadcast(rollout):
    class Shrinks(ScriptedActor):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            act, hx, info = super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)
            return act, hx, info if self.script.counts["act"] < 7 else {**info, "weight": info["weight"][:, :1]}

    feed = rollout([ScriptedEnv(), ScriptedEnv()], Shrinks())
    assert is_scripted_fragment(0, next(feed))
    with pytest.raises(ValueError, match=r"expected \(1, 2\), got \(1, 1\)"):
        next(feed)


def test_an_info_entry_that_does_not_fit_is_an_error_with_the_environment_the_step_and_the_entry(rollout):
    class Tells(ScriptedEnv):
        def step(self, action):
            return *super().step(action)[:4], {"speed": 1.0 if self.counts["step"] < 7 else "fast"}

    feed = rollout([ScriptedEnv(), Tells()], ScriptedActor(), info=("speed",))
    assert next(feed).env.info["speed"].nan_to_num(-1).tolist() == [[-1, 1]] * T
    with pytest.raises(ValueError, match=r"'speed'.*'fast'") as caught:
        next(feed)
    assert "environment 1" in caught.value.__notes__[0]
    assert "step 1 of fragment 1" in caught.value.__notes__[0]


def test_an_error_of_a_vector_environment_names_the_vector_environment(rollout):
    class Vector:
        metadata: ClassVar = {"autoreset_mode": "SAME_STEP"}
        num_envs, single_observation_space, single_action_space = (
            B,
            ScriptedEnv.observation_space,
            ScriptedEnv.action_space,
        )

        def reset(self, *, seed):
            return torch.zeros(B, 2).numpy(), {}

        def step(self, action):
            raise TwoArgumentError("one", 2)

    feed = rollout(Vector(), ScriptedActor())
    with pytest.raises(TwoArgumentError) as caught:
        next(feed)
    assert "the vector environment, in env.step, at step 0 of fragment 0" in caught.value.__notes__[0]


def test_a_step_that_returns_nonsense_is_an_error_that_says_what_was_expected(rollout):
    class Silent(ScriptedEnv):
        def step(self, action):
            return None if self.counts["step"] else super().step(action)

    feed = rollout([Silent(), ScriptedEnv()], ScriptedActor())
    with pytest.raises(ValueError, match=r"expected `step` to return .*got None: is a `return` missing\?") as caught:
        next(feed)
    assert "environment 0" in caught.value.__notes__[0]


def test_an_error_does_not_change_the_fragments_received_before_it(rollout):
    feed = rollout(
        [ScriptedEnv(), ScriptedEnv(Script().at("step", 13, raising(TwoArgumentError("one", 2))))], ScriptedActor()
    )
    fragments = [next(feed), next(feed)]
    with pytest.raises(TwoArgumentError):
        next(feed)
    assert all(itertools.starmap(is_scripted_fragment, enumerate(fragments)))


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_an_environment_that_calls_next_on_its_own_feed_is_refused(lag):
    script = Script()
    feed = same.rollout([ScriptedEnv(script), ScriptedEnv()], ScriptedActor(), T, lag=lag)
    script.at("step", 2, lambda: next(feed))
    with pytest.raises(RuntimeError, match=r"inside next\(\)") as caught:
        next(feed)
    assert "environment 0" in caught.value.__notes__[0]


def test_an_environment_in_a_background_collector_that_calls_next_is_refused(threaded_rollout):
    script = Script()
    feed = threaded_rollout([ScriptedEnv(script), ScriptedEnv()], ScriptedActor())
    script.at("step", 2, lambda: next(feed))
    with pytest.raises(RuntimeError, match="one of the feed's own environments") as caught:
        next(feed)
    assert "environment 0, in env.step" in caught.value.__notes__[0]
    assert not collector_threads()


@pytest.mark.parametrize(
    "engine",
    [
        same.rollout,
        partial(threaded.rollout, timeout=math.inf),
        partial(threaded.rollout, timeout=math.inf, workers=2, worker="thread"),
    ],
)
def test_an_environment_that_pauses_its_own_feed_is_refused_at_once(engine):
    def pause():
        with feed.pause():
            pass

    script = Script()
    feed = engine([ScriptedEnv(script), ScriptedEnv()], ScriptedActor(), T)
    script.at("step", 2, pause)
    with pytest.raises(RuntimeError, match=r"pause\(\) was called by one of the feed's own environments") as caught:
        next(feed)
    assert "environment 0, in env.step" in caught.value.__notes__[0]


# environments that were made for a feed are closed with it


def test_environments_from_factories_are_closed_once_with_the_feed_and_instances_never(rollout):
    mine, made = ScriptedEnv(), ScriptedEnv()
    with rollout([mine, lambda: made], ScriptedActor()) as feed:
        next(feed)
        assert made.counts["close"] == 0
    feed.close()
    del feed
    gc.collect()
    assert (mine.counts["close"], made.counts["close"]) == (0, 1)


def test_an_environment_that_two_factories_return_is_refused_and_closed_once(rollout):
    made = ScriptedEnv()
    with pytest.raises(ValueError, match="twice"):
        rollout([lambda: made, lambda: made], ScriptedActor())
    assert made.counts["close"] == 1


@pytest.mark.parametrize("kind", [ValueError, SystemExit])
def test_an_error_in_closing_an_environment_is_a_warning_and_the_others_are_closed(rollout, kind):
    good, bad = [ScriptedEnv(), ScriptedEnv()], ScriptedEnv(Script().at("close", 1, raising(kind("no"))))
    feed = rollout([lambda: good[0], lambda: bad, lambda: good[1]], ScriptedActor())
    next(feed)
    with pytest.warns(RuntimeWarning, match=r"closing .* failed: .*no"):
        feed.close()
    assert [env.counts["close"] for env in (*good, bad)] == [1, 1, 1]
    assert not collector_threads()


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_other_environments_are_closed_even_if_warnings_are_errors(rollout):
    good, bad = [ScriptedEnv(), ScriptedEnv()], ScriptedEnv(Script().at("close", 1, raising(ValueError("no"))))
    feed = rollout([lambda: good[0], lambda: bad, lambda: good[1]], ScriptedActor())
    next(feed)
    with warnings.catch_warnings(), suppress(RuntimeWarning):
        warnings.simplefilter("error", RuntimeWarning)
        feed.close()
    assert [env.counts["close"] for env in (*good, bad)] == [1, 1, 1]


def test_an_error_in_closing_does_not_hide_the_error_before_it(rollout):
    script = Script().at("step", 3, raising(TwoArgumentError("one", 2))).at("close", 1, raising(ValueError("no")))
    feed = rollout([ScriptedEnv(), lambda: ScriptedEnv(script)], ScriptedActor())
    with pytest.raises(TwoArgumentError) as caught:
        next(feed)
    assert any("failed: ValueError('no')" in note for note in caught.value.__notes__)
    assert not collector_threads()


# no progress


def test_an_environment_that_blocks_is_named_after_the_timeout(threaded_rollout, impatient, monkeypatch):
    blocker, script = ThreadBlocker(), Script()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    made = ScriptedEnv(script.at("step", 8, blocker))
    feed = threaded_rollout([ScriptedEnv(), lambda: made], ScriptedActor(), timeout=0.3)
    assert is_scripted_fragment(0, next(feed))
    (thread,) = collector_threads()
    with pytest.raises(TimeoutError, match=r"0.3 s.*environment 1, in env.step, at step 2 of fragment 1.*`timeout`"):
        next(feed)
    with pytest.raises(StopIteration):
        next(feed)
    with pytest.warns(RuntimeWarning, match="environment 1, in env.step.*cannot be killed"):
        feed.close()
    assert made.counts["close"] == 0
    blocker.release.set()
    thread.join(LONG)
    assert not thread.is_alive()
    assert made.counts["close"] == 1


def test_close_waits_and_warns_again_until_a_blocked_step_has_returned(threaded_rollout, impatient, monkeypatch):
    blocker, script = ThreadBlocker(), Script()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    feed = threaded_rollout([ScriptedEnv(), ScriptedEnv(script.at("step", 2, blocker))], ScriptedActor(), timeout=0.2)
    (thread,) = collector_threads()
    with pytest.raises(TimeoutError):
        next(feed)
    for _ in range(2):
        with pytest.warns(RuntimeWarning, match="left behind"):
            feed.close()
    blocker.release.set()
    thread.join(LONG)
    feed.close()


def test_the_timeout_is_raised_even_if_warnings_are_errors(threaded_rollout, impatient, monkeypatch):
    blocker, script = ThreadBlocker(), Script()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    feed = threaded_rollout([ScriptedEnv(), ScriptedEnv(script.at("step", 2, blocker))], ScriptedActor(), timeout=0.2)
    (thread,) = collector_threads()
    try:
        with pytest.raises(TimeoutError, match=r"environment 1, in env.step"):
            next(feed)
    finally:
        blocker.release.set()
    thread.join(LONG)
    assert not thread.is_alive()


def test_an_actor_that_blocks_is_named_after_the_timeout(threaded_rollout, impatient, monkeypatch):
    blocker, actor = ThreadBlocker(), ScriptedActor()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    feed = threaded_rollout([ScriptedEnv(), ScriptedEnv()], actor, timeout=0.3)
    actor.script.at("act", 2, blocker)
    (thread,) = collector_threads()
    with pytest.raises(TimeoutError, match=r"actor.step, at step 1 of fragment 0"):
        next(feed)
    blocker.release.set()
    thread.join(LONG)
    assert not thread.is_alive()


def test_a_fragment_may_take_longer_than_the_timeout_while_there_is_progress(tmp_path, monkeypatch):
    clock, script = TimeInSteps(tmp_path, 0.3, monkeypatch), Script()
    for n in range(1, 9):
        script.at("step", n, clock.step)
    with threaded.rollout([ScriptedEnv(script)], ScriptedActor(), 8, timeout=0.4) as feed:
        try:
            next(feed)
        finally:
            clock.give_up()


def test_a_factory_that_blocks_is_named_and_what_it_makes_is_closed_when_it_returns(impatient, monkeypatch):
    blocker, early, late = ThreadBlocker(), ScriptedEnv(), ScriptedEnv()
    start_timeout_begins_when(partial(until, blocker.entered.is_set), monkeypatch, processes=False)

    def factory():
        blocker()
        return late

    with pytest.raises(TimeoutError, match=r"0.2 s.*environment 1, in env.make"):
        threaded.rollout([lambda: early, factory], ScriptedActor(), start_timeout=0.2)
    (thread,) = collector_threads()
    blocker.release.set()
    thread.join(LONG)
    assert not thread.is_alive()
    assert (early.counts["close"], late.counts["close"]) == (1, 1)


def test_close_warns_of_an_environment_that_does_not_return(threaded_rollout, impatient):
    blocker, made = ThreadBlocker(), ScriptedEnv()
    feed = threaded_rollout([lambda: made, ScriptedEnv()], ScriptedActor())
    made.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    with pytest.warns(RuntimeWarning, match="environment 0, in env.step"):
        feed.close()
    assert "closed" in str(consumer.wait().error)
    (thread,) = collector_threads()
    blocker.release.set()
    thread.join(LONG)
    assert not thread.is_alive()
    assert made.counts["close"] == 1


def test_an_environment_that_closing_could_not_wait_for_is_closed_when_it_returns(rollout, impatient):
    blocker, made = ThreadBlocker(), ScriptedEnv()
    feed = rollout([lambda: made, ScriptedEnv()], ScriptedActor())
    made.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    with pytest.warns(RuntimeWarning, match="environment 0, in env.step"):
        feed.close()
    threads = [consumer, *collector_threads()]
    blocker.release.set()
    for thread in threads:
        thread.join(LONG)
    assert "closed" in str(consumer.error)
    assert made.counts["close"] == 1


# closing


def test_close_may_be_called_before_the_first_fragment_and_often(rollout):
    mine, made = ScriptedEnv(), ScriptedEnv()
    feed = rollout([mine, lambda: made], ScriptedActor())
    for _ in range(3):
        feed.close()
        assert is_closed(feed)
        assert not collector_threads()
    assert (mine.counts["close"], made.counts["close"]) == (0, 1)
    assert not mine.counts["step"]


def test_fragments_that_wait_in_the_queue_are_dropped_by_close(threaded_rollout):
    env = ScriptedEnv()
    feed = threaded_rollout([env, ScriptedEnv()], ScriptedActor())
    first = next(feed)
    all_tokens_used_up(feed)
    feed.close()
    assert is_closed(feed)
    assert not collector_threads()
    assert is_scripted_fragment(0, first)


def test_close_may_be_called_from_another_thread(rollout):
    feed = rollout([ScriptedEnv(), lambda: ScriptedEnv()], ScriptedActor())
    next(feed)
    assert InThread(feed.close).wait().error is None
    assert is_closed(feed)
    assert not collector_threads()


def test_close_in_the_middle_of_a_fragment_stops_at_the_end_of_the_step(threaded_rollout):
    blocker, env, made = ThreadBlocker(), ScriptedEnv(), ScriptedEnv()
    feed = threaded_rollout([env, lambda: made], ScriptedActor())
    env.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    closer = InThread(feed.close)
    consumer.wait()  # before the environment returns
    assert isinstance(consumer.error, RuntimeError)
    assert "closed" in str(consumer.error)
    until(lambda: feed._driver._gate.shut)
    blocker.release.set()
    assert closer.wait().error is None
    assert (env.counts["step"], made.counts["step"], made.counts["close"]) == (3, 3, 1)
    assert not collector_threads()


def test_close_makes_a_next_under_way_in_another_thread_raise(rollout):
    blocker, env, made = ThreadBlocker(), ScriptedEnv(), ScriptedEnv()
    feed = rollout([env, lambda: made], ScriptedActor())
    env.script.at("step", 8, blocker)
    next(feed)
    consumers = [InThread(lambda: list(feed)) for _ in range(2)]
    assert blocker.entered.wait(LONG)
    closer = InThread(feed.close)
    until(lambda: feed._driver._gate.closed)  # later than `feed.open` is False
    blocker.release.set()
    assert closer.wait().error is None
    for consumer in consumers:
        assert isinstance(consumer.wait().error, RuntimeError)
        assert "closed" in str(consumer.error)
    assert env.counts["step"] == 8
    assert made.counts["close"] == 1
    assert not collector_threads()


def test_an_environment_may_close_its_own_feed(rollout):
    env, made = ScriptedEnv(), ScriptedEnv()
    feed = rollout([env, lambda: made], ScriptedActor())
    env.script.at("step", 3, feed.close)
    with pytest.raises(RuntimeError, match="closed"):
        list(feed)
    until(lambda: not collector_threads())
    assert env.counts["step"] == 3
    assert made.counts["close"] == 1


def test_leaving_the_with_block_closes_the_feed_whatever_the_reason(rollout):
    made, error = ScriptedEnv(), TwoArgumentError("one", 2)
    feed = rollout([lambda: made, ScriptedEnv()], ScriptedActor())
    next(feed)
    with pytest.raises(TwoArgumentError) as caught, feed:
        raise error
    assert caught.value is error
    assert made.counts["close"] == 1
    assert is_closed(feed)
    assert not collector_threads()


def test_fragments_outlive_their_feed(rollout):
    with rollout([ScriptedEnv(), ScriptedEnv()], ScriptedActor()) as feed:
        fragments = [next(feed) for _ in range(4)]
    del feed
    gc.collect()
    assert all(itertools.starmap(is_scripted_fragment, enumerate(fragments)))


def test_a_keyboard_interrupt_inside_next_ends_the_feed(rollout):
    made, main = ScriptedEnv(), threading.main_thread().ident
    feed = rollout([ScriptedEnv(), lambda: made], ScriptedActor())

    def interrupt():  # while the main thread cannot but be inside next: this is the first fragment
        signal.pthread_kill(main, signal.SIGINT)
        until(lambda: feed._driver._gate.shut)

    made.script.at("step", 2, interrupt)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        with pytest.raises(KeyboardInterrupt):
            next(feed)
    finally:
        signal.signal(signal.SIGINT, before)
    with pytest.raises(StopIteration):
        next(feed)
    assert not collector_threads()
    assert (made.counts["step"], made.counts["close"]) == (2, 1)


# forgetting


def test_dropping_the_last_reference_ends_the_feed_at_once(rollout):
    made = ScriptedEnv()
    feed = rollout([ScriptedEnv(), lambda: made], ScriptedActor())
    next(feed)
    del feed
    assert not collector_threads()
    assert made.counts["close"] == 1


def test_a_feed_that_was_never_asked_is_ended_when_it_is_dropped(rollout):
    made = ScriptedEnv()
    rollout([ScriptedEnv(), lambda: made], ScriptedActor())
    assert not collector_threads()
    assert made.counts["close"] == 1


def test_leaving_a_loop_ends_a_feed_that_no_variable_holds(rollout):
    made = ScriptedEnv()
    for fragment in rollout([lambda: made, ScriptedEnv()], ScriptedActor()):
        assert is_scripted_fragment(0, fragment)
        break
    assert not collector_threads()
    assert made.counts["close"] == 1


def test_a_feed_in_a_reference_cycle_is_ended_by_the_garbage_collector(rollout):
    made = ScriptedEnv()
    cycle = [rollout([ScriptedEnv(), lambda: made], ScriptedActor())]
    cycle.append(cycle)
    next(cycle[0])
    del cycle
    gc.collect()
    assert not collector_threads()
    assert made.counts["close"] == 1


def test_a_feed_that_its_actor_holds_is_ended_by_the_garbage_collector(rollout):
    made, actor = ScriptedEnv(), ScriptedActor()
    actor.feed = rollout([ScriptedEnv(), lambda: made], actor)
    next(actor.feed)
    del actor
    gc.collect()
    assert not collector_threads()
    assert made.counts["close"] == 1


@pytest.mark.parametrize("close", [False, True])
def test_the_registry_of_environments_keeps_neither_feeds_nor_environments_alive(rollout, close):
    env, actor = ScriptedEnv(), ScriptedActor()
    feed = rollout([env, ScriptedEnv()], actor)
    next(feed)
    if close:
        feed.close()
    gone = [weakref.ref(thing) for thing in (feed, env, actor)]
    del feed, env, actor
    gc.collect()
    assert [ref() for ref in gone] == [None, None, None]


def test_an_error_keeps_nothing_alive_once_it_is_forgotten(rollout):
    env = ScriptedEnv(Script().at("step", 2, raising(TwoArgumentError("one", 2))))
    feed = rollout([env, ScriptedEnv()], ScriptedActor())
    with suppress(TwoArgumentError):
        next(feed)
    gone = [weakref.ref(feed), weakref.ref(env)]
    del feed, env
    gc.collect()
    assert [ref() for ref in gone] == [None, None]


# one feed for an environment


def test_a_new_feed_over_an_environment_in_use_closes_the_older_one_with_a_warning(rollout):
    env, made = ScriptedEnv(), ScriptedEnv()
    older = rollout([lambda: made, env], ScriptedActor())
    next(older)
    with pytest.warns(RuntimeWarning, match="environment 0.*closed") as caught:
        newer = rollout([env, ScriptedEnv()], ScriptedActor())
    assert len(caught) == 1
    assert caught[0].filename == __file__
    assert is_closed(older)
    assert made.counts["close"] == 1
    resets, steps = env.counts["reset"], env.counts["step"]
    with newer:
        fragment = next(newer)
    g = torch.arange(1 + T)
    assert torch.equal(fragment.state.obs[:, 0, 0], resets - 1.0 + g // LENGTH)
    assert torch.equal(fragment.state.rew[1:, 0], steps + g[1:].float())  # stepped by nobody else


def test_an_older_feed_over_an_environment_in_use_is_closed_even_if_warnings_are_errors(rollout):
    env = ScriptedEnv()
    older = rollout([env, ScriptedEnv()], ScriptedActor())
    with pytest.raises(RuntimeWarning, match="environment 0"):  # as the settings of these tests have it
        rollout([env, ScriptedEnv()], ScriptedActor())
    assert is_closed(older)
    assert not collector_threads()


@pytest.mark.parametrize("end", ["close", "del", "error"])
def test_an_environment_whose_feed_has_ended_is_free_without_a_warning(rollout, end):
    env = ScriptedEnv()
    older = rollout([env, ScriptedEnv()], ScriptedActor())
    if end == "close":
        older.close()
    elif end == "del":
        del older
    else:
        env.script.at("step", 1, raising(TwoArgumentError("one", 2)))
        with pytest.raises(TwoArgumentError):
            next(older)
    rollout([env, ScriptedEnv()], ScriptedActor()).close()


def test_environments_from_factories_serve_as_many_feeds_as_are_made(rollout):
    with (
        rollout([ScriptedEnv, ScriptedEnv], ScriptedActor()) as one,
        rollout([ScriptedEnv, ScriptedEnv], ScriptedActor()) as other,
    ):
        for k in range(2):
            assert is_scripted_fragment(k, next(one))
            assert is_scripted_fragment(k, next(other))


# pausing


def release_once_shut(blocker, feed):
    """Let the step of an environment end once a pause has begun to wait for that."""
    InThread(lambda: [until(lambda: feed._driver._gate.shut), blocker.release.set()])


def test_a_paused_collector_stands_still_between_two_steps(rollout):
    env, other, blocker = ScriptedEnv(), ScriptedEnv(), ThreadBlocker()
    feed = rollout([env, other], ScriptedActor(), n_steps=200)
    env.script.at("step", 20, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    pauser = feed.pause()
    release_once_shut(blocker, feed)  # so that the pause begins in the middle of a step
    with pauser:
        counts = env.counts["step"], other.counts["step"]
        assert counts[0] == counts[1] < 200
        moved = ThreadBlocker()
        moved.release.set()
        other.script.at("step", 1, moved)
        assert not moved.entered.wait(0.2)
        assert (env.counts["step"], other.counts["step"]) == counts
        assert consumer.is_alive()
    fragment = consumer.wait().value
    assert torch.equal(fragment.state.stepno[:, 0], torch.arange(201) % LENGTH)
    feed.close()


def test_pauses_may_be_nested(rollout):
    env, blocker = ScriptedEnv(), ThreadBlocker()
    feed = rollout([env, ScriptedEnv()], ScriptedActor(), n_steps=50)
    env.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    release_once_shut(blocker, feed)
    with feed.pause():
        with feed.pause():
            pass
        moved = ThreadBlocker()
        moved.release.set()
        env.script.at("step", 1, moved)
        assert not moved.entered.wait(0.2)
    assert consumer.wait().error is None
    assert moved.entered.is_set()
    feed.close()


def test_the_collector_goes_on_after_an_exception_in_a_paused_block(rollout):
    with rollout([ScriptedEnv(), ScriptedEnv()], ScriptedActor()) as feed:
        next(feed)
        with pytest.raises(TwoArgumentError), feed.pause():
            raise TwoArgumentError("one", 2)
        assert is_scripted_fragment(1, next(feed))


def test_a_pause_longer_than_the_timeout_is_not_taken_for_a_lack_of_progress(threaded_rollout, monkeypatch):
    env, blocker, stands = ScriptedEnv(), ThreadBlocker(), threading.Event()
    timeout_counts_while(stands.is_set, monkeypatch)
    feed = threaded_rollout([env, ScriptedEnv()], ScriptedActor(), timeout=0.2)
    env.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    release_once_shut(blocker, feed)
    with feed.pause():
        stands.set()
        consumer.join(0.6)
        assert consumer.is_alive()
        stands.clear()
    assert is_scripted_fragment(0, consumer.wait().value)
    feed.close()


def test_a_feed_may_be_paused_before_the_first_fragment_and_after_the_last(rollout):
    feed = rollout([ScriptedEnv(), ScriptedEnv()], ScriptedActor())
    with feed.pause():
        pass
    assert is_scripted_fragment(0, next(feed))
    feed.close()
    with feed.pause():
        pass


def test_a_feed_may_be_closed_inside_a_paused_block(rollout):
    made, blocker = ScriptedEnv(), ThreadBlocker()
    feed = rollout([lambda: made, ScriptedEnv()], ScriptedActor(), n_steps=50)
    made.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    release_once_shut(blocker, feed)
    with feed.pause():
        feed.close()
        assert not collector_threads()
    assert "closed" in str(consumer.wait().error)
    assert made.counts["close"] == 1


def test_a_pause_gives_up_on_an_environment_that_blocks_and_the_feed_goes_on_when_it_returns(
    threaded_rollout, monkeypatch
):
    env, blocker = ScriptedEnv(), ThreadBlocker()
    timeout_counts_while(lambda: False, monkeypatch)  # that of `next`
    feed = threaded_rollout([ScriptedEnv(), env], ScriptedActor())
    env.script.at("step", 3, blocker)
    consumer = InThread(feed.__next__)
    assert blocker.entered.wait(LONG)
    with monkeypatch.context() as patch:
        patch.setattr(feed._driver, "_timeout", 0.2)
        with pytest.raises(TimeoutError, match=r"cannot pause.*environment 1, in env.step"), feed.pause():
            raise AssertionError("it is not paused")
    blocker.release.set()
    assert is_scripted_fragment(0, consumer.wait().value)
    feed.close()


def test_next_inside_a_pause_of_the_same_thread_is_refused(rollout):
    feed = rollout([ScriptedEnv(), ScriptedEnv()], ScriptedActor())

    def asks_within():
        with feed.pause():
            for _ in range(4):
                next(feed)

    asker = InThread(asks_within)
    asker.join(LONG)
    hangs = asker.is_alive()
    feed.close()
    asker.wait()
    assert not hangs
    assert isinstance(asker.error, RuntimeError)
    assert "pause" in str(asker.error)


# changes of the learner's parameters


@pytest.mark.parametrize("change", ["renamed", "reshaped", "retyped", "added"])
def test_a_changed_parameter_is_refused_by_next_and_the_feed_goes_on_once_it_is_repaired(rollout, change):
    actor = ScriptedActor()
    original = actor.weight
    with rollout([ScriptedEnv(), ScriptedEnv()], actor) as feed:
        for k in range(2):
            assert is_scripted_fragment(k, next(feed))
        if change == "renamed":
            del actor.weight
            actor.heft = original
        elif change == "reshaped":
            actor.weight = nn.Parameter(torch.zeros(3))
        elif change == "retyped":
            actor.weight = nn.Parameter(torch.zeros((), dtype=torch.float64))
        else:
            actor.register_buffer("heft", torch.zeros(()))
        for _ in range(2):
            with pytest.raises(ValueError, match="'heft'" if change in ("renamed", "added") else "'weight'"):
                next(feed)
        assert feed.open
        for name in ("weight", "heft"):
            if hasattr(actor, name):
                delattr(actor, name)
        actor.weight = original
        for k in range(2, 5):
            assert is_scripted_fragment(k, next(feed))
        assert feed.version == 4 - rollout.keywords["lag"]


def test_a_parameter_replaced_by_one_of_the_same_form_is_followed(rollout):
    actor, seen = ScriptedActor(), []
    with rollout([ScriptedEnv(), ScriptedEnv()], actor) as feed:
        for k in range(6):
            actor.weight = nn.Parameter(torch.tensor(float(k)))
            seen.append(next(feed).actor["weight"].unique().tolist())
    lag = rollout.keywords["lag"]
    assert seen == [[max(0, k - lag)] for k in range(6)]


def test_a_changed_parameter_is_refused_by_the_first_next_too(rollout):
    actor = ScriptedActor()
    original = actor.weight
    with rollout([ScriptedEnv(), ScriptedEnv()], actor) as feed:
        actor.weight = nn.Parameter(torch.zeros(3))
        with pytest.raises(ValueError, match="'weight'"):
            next(feed)
        actor.weight = original
        assert is_scripted_fragment(0, next(feed))


class Linear(ScriptedActor):
    """Its info is of the dtype that autocast has it compute in."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(2, 2)

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        act, hx, _ = super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)
        return act, hx, self.body(obs)


def test_an_actor_that_failed_at_the_first_next_is_checked_again_by_the_second(rollout):
    actor = Linear()
    with rollout([ScriptedEnv(), ScriptedEnv()], actor) as feed, torch.autocast("cpu", dtype=torch.bfloat16):
        # it was looked at without autocast at the call, and so is looked at again
        actor.script.at("look", 1, raising(TwoArgumentError("one", 2)))
        with pytest.raises(TwoArgumentError):
            next(feed)
        assert next(feed).actor.dtype == torch.bfloat16
