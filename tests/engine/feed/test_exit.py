"""A process with open feeds ends promptly, with its own exit code and no output of the library."""

from __future__ import annotations

import signal
import subprocess

import pytest

from tests.support.scripts import is_traceback, start_script
from tests.support.threads import LONG

EACH = ["same-0", "threaded-0", "threaded-1", "threaded-2"]
ALL = [*EACH, "same-1", "same-2"]
each = pytest.mark.parametrize(
    "engine", [pytest.param(x, marks=[pytest.mark.soak] if x in ("threaded-0", "threaded-2") else []) for x in EACH]
)


def finish(process):
    """Wait for the process; return its exit code, what it printed, and the last lines of its tracebacks."""
    try:
        out, err = process.communicate(timeout=LONG)
    except subprocess.TimeoutExpired:
        process.kill()
        out, err = process.communicate()
        raise AssertionError(f"the process did not end: {out!r}, {err!r}") from None
    assert out.endswith("left: MainThread\n"), (out, err)
    return process.returncode, out.splitlines()[:-1], err


def test_a_script_ends_normally_with_feeds_open():
    # in all states: not asked yet, asked once (with fragments in the queue, and in the making), closed
    script = """
        feeds = [rollout([Env(), Env], Actor()) for rollout in ENGINES for _ in range(4)]
        for feed in feeds[1::4]:
            next(feed)
        for feed in feeds[2::4]:
            for _ in range(3):
                next(feed)
        for feed in feeds[3::4]:
            next(feed), feed.close()
        print("done")
    """
    assert finish(start_script(script, *ALL)) == (0, ["done"], "")


def test_sys_exit_ends_a_script_with_its_code():
    script = """
        feeds = [rollout([Env(), Env], Actor()) for rollout in ENGINES]
        for fragments in zip(*feeds):
            sys.exit(3)
    """
    assert finish(start_script(script, *ALL)) == (3, [], "")


def test_an_exception_in_the_training_loop_is_the_only_one_that_is_shown():
    script = """
        feeds = [rollout([Env(), Env], Actor()) for rollout in ENGINES]
        for fragments in zip(*feeds):
            raise ValueError("of the learner")
    """
    code, out, err = finish(start_script(script, *ALL))
    assert (code, out) == (1, [])
    assert is_traceback(err, "ValueError: of the learner")


def test_an_exception_of_an_environment_ends_the_script_with_its_traceback_and_the_note():
    script = """
        def fail():
            raise ValueError("of the environment")

        feed = ENGINES[0]([Env(), Env(fail)], Actor())
        for fragment in feed:
            pass
    """
    code, out, err = finish(start_script(script, "threaded-1"))
    assert (code, out) == (1, [])
    assert is_traceback(err[: err.index("rlplay: ")], "ValueError: of the environment")
    assert err.endswith("rlplay: environment 1, in env.step, at step 0 of fragment 0\n")


def test_a_feed_that_was_forgotten_in_a_function_is_gone_when_it_returns():
    script = """
        def train(rollout):
            feed = rollout([Env(), Env], Actor())
            for fragment in feed:
                break

        for rollout in ENGINES:
            train(rollout)
            print(threading.active_count())
    """
    assert finish(start_script(script, *ALL)) == (0, ["1"] * len(ALL), "")


def test_a_script_ends_while_collectors_are_inside_of_torch():
    script = """
        def busy(rollout):
            acting, acts = threading.Event(), iter(range(10**6))

            def compute(x=torch.rand(500, 500)):
                if next(acts) == 5:  # of the second fragment, while nobody waits for it
                    acting.set()
                if acting.is_set():
                    for _ in range(20):
                        x @ x

            feed = rollout([Env()], Actor(compute))
            next(feed)
            assert acting.wait(50)
            return feed

        feeds = [busy(rollout) for rollout in ENGINES]
        print("acting")
    """
    assert finish(start_script(script, "threaded-1", "threaded-2")) == (0, ["acting"], "")


def test_a_script_ends_although_an_environment_never_returns_from_its_step():
    script = """
        from rlplay.engine.feed import driver

        driver.Driver.stop_timeout = 0.2
        never, there = threading.Event(), threading.Event()

        def block():
            there.set()
            never.wait()

        steps = iter([bool] * 6)
        feed = ENGINES[0]([Env(lambda: next(steps, block)())], Actor())
        next(feed)
        assert there.wait(50)
        atexit.unregister(report)
    """
    process = start_script(script, "threaded-1")
    _, err = process.communicate(timeout=LONG)
    assert process.returncode == 0
    assert "RuntimeWarning: the collector has not ended within 0.2 s" in err
    assert "environment 0, in env.step, at step 1 of fragment 1" in err
    assert not any(word in err for word in ("Traceback", "terminate", "Fatal", "Exception ignored")), err


def interrupted(script, engine):
    process = start_script(script, engine)
    assert process.stdout.readline() == "ready\n", process.communicate()
    process.send_signal(signal.SIGINT)
    return finish(process)


@each
def test_an_interrupt_while_next_waits_ends_the_script(engine):
    script = """
        steps = iter(range(10**6))

        def slow():
            if next(steps) == 7:
                print("ready", flush=True)
            threading.Event().wait(0.05)

        feed = ENGINES[0]([Env(slow)], Actor(), n_steps=1000)
        for fragment in feed:
            print("not within this test")
    """
    code, out, err = interrupted(script, engine)
    err, *note = err.split("\nrlplay: ")
    assert (code, out) == (-signal.SIGINT, [])
    assert is_traceback(err, "KeyboardInterrupt")
    assert len(note) == (engine == "same-0")  # where the interrupt was raised in the environment itself


@each
def test_an_interrupt_in_the_learner_ends_the_script_or_the_learner_goes_on(engine):
    script = """
        feed = ENGINES[0]([Env(), Env], Actor(), n_steps=50)
        seen, interrupts, go = 0, 0, threading.Event()
        threading.Thread(target=lambda: go.wait() and signal.raise_signal(signal.SIGINT), daemon=True).start()
        for fragment in feed:
            seen += 1
            try:
                while seen == 3:
                    print("ready", flush=True)
                    threading.Event().wait(50)
            except KeyboardInterrupt:
                interrupts += 1
            if seen == 6:
                print("interrupts:", interrupts)
                go.set()
                while True:
                    fragment.state.obs.sum()
    """
    code, out, err = interrupted(script, engine)
    assert (code, out) == (-signal.SIGINT, ["interrupts: 1"])
    assert is_traceback(err, "KeyboardInterrupt")
