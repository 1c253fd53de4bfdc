"""Environments in worker processes and threads: equal fragments, factories, and refusals at the call."""

from __future__ import annotations

import os
import subprocess
import sys
from functools import cache, partial
from textwrap import dedent
from types import SimpleNamespace

import cloudpickle
import gym
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplay import nested
from rlplay.engine.envs.info import Entries
from rlplay.engine.rollout import same, threaded
from rlplay.engine.stepping.worker import PoolMemory
from rlplay.testing import ACTIONS, FORMS, CountingActor, LaggingLane, make_ledger
from tests.support import rows
from tests.support.assertions import assert_identical
from tests.support.rows import DIALECTS, ENTRIES, untold
from tests.support.training import N_FRAGMENTS, GruWithBuffer, run_training
from tests.support.workers import Space

cloudpickle.register_pickle_by_value(sys.modules[__name__])  # else every worker process would import torch with it

KINDS = ("process", "thread")
kinds = pytest.mark.parametrize("kind", KINDS)


def cartpole():
    return gym.make("CartPole-v1")


def engine_with_workers(kind, workers):
    """Return an engine whose workers make as many CartPoles as it is given environments."""

    def rollout(envs, actor, n_steps, **options):
        return threaded.rollout([cartpole] * len(envs), actor, n_steps, workers=workers, worker=kind, **options)

    return SimpleNamespace(rollout=rollout)


@cache
def expected(**options):
    return run_training(same, **options)


# --- the fragments of `same` ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("workers", [1, 2, 3, 5])
@kinds
def test_any_number_of_workers_yields_the_fragments_of_same_bit_for_bit(kind, workers, groups):
    for lag in (0, 1, 2) if kind == "thread" else ((workers + groups) % 3,):
        options = {"lag": lag, "groups": groups, "sticky": workers % 2 == 0}
        fragments, versions = run_training(engine_with_workers(kind, workers), **options)
        assert versions == [max(0, k - lag) for k in range(N_FRAGMENTS)]
        assert_identical(expected(**options)[0], fragments)


@kinds
def test_workers_yield_the_fragments_of_same_for_fragments_of_one_step(kind):
    options = {"lag": 1, "groups": 2, "n_steps": 1}
    assert_identical(expected(**options)[0], run_training(engine_with_workers(kind, 2), **options)[0])


@pytest.mark.usefixtures("no_stock")
@pytest.mark.parametrize("haste", [0.0, 0.5])
@pytest.mark.parametrize(("actor_on_host", "consumer_on_host"), [(False, False), (True, False), (False, True)])
@kinds
def test_workers_yield_the_fragments_of_same_on_the_lagging_device(kind, actor_on_host, consumer_on_host, haste):
    for lag, groups in ((0, 1), (2, 2)):
        lane = LaggingLane(haste=haste, actor_on_host=actor_on_host, consumer_on_host=consumer_on_host)
        fragments, _ = run_training(engine_with_workers(kind, 2), lag=lag, groups=groups, device=lane)
        assert_identical(run_training(same, lag=lag, groups=groups)[0], fragments)


@kinds
def test_a_worker_may_have_a_share_in_more_groups_than_a_byte_can_count(kind):
    n_envs = 260

    def fragment_of(module, **options):
        envs = [CountingEnv for _ in range(n_envs)]
        with module.rollout(envs, CountingActor(), 2, seed=0, lag=0, groups=n_envs, **options) as feed:
            return next(feed)

    assert_identical(fragment_of(same), fragment_of(threaded, workers=1, worker=kind))


# --- the rows ---------------------------------------------------------------------------------------------------------


def ledger(dialect, index, **options):
    """Make a ledger environment, wherever this is called."""
    from importlib import import_module

    module, api = DIALECTS[dialect]
    return make_ledger(import_module(module), index, api=api, **options)


def recorded(module, dialect, n_envs=5, n_fragments=3, *, options, **how):
    """Collect fragments of ledger environments; return each with the episodes, steps and version of the feed."""
    actor, pages = CountingActor(options.get("action", "discrete")), []
    factories = [partial(ledger, dialect, j, **options) for j in range(n_envs)]
    with module.rollout(factories, actor, seed=7, **how) as feed:
        for k in range(n_fragments):
            with torch.no_grad():
                actor.weight.fill_(k)
            pages.append((next(feed), feed.episodes(), feed.steps, feed.version))
    return pages


def assert_workers_yield_the_pages_of_same(dialect, *, options, workers, worker, **how):
    some = recorded(same, dialect, options=options, **how)
    others = recorded(threaded, dialect, options=options, workers=workers, worker=worker, **how)
    for one, other in zip(some, others, strict=True):
        assert one[1:] == other[1:]
        names = nested.names(one[0])
        for name, x, y in zip(names, nested.leaves(one[0]), nested.leaves(other[0]), strict=True):
            assert torch.equal(torch.isnan(x), torch.isnan(y)), name
            assert torch.equal(x.nan_to_num(), y.nan_to_num()), name
    assert any(len(page[1]) > 2 for page in some)


@untold
@pytest.mark.parametrize("sticky", [False, True], ids=["", "sticky"])
@pytest.mark.parametrize("dialect", DIALECTS)
@kinds
def test_workers_yield_every_number_of_same_in_every_dialect(kind, dialect, sticky):
    options = {"form": "dict", "action": "dict", "reuse": True}
    how = {"n_steps": 9, "final": True, "sticky": sticky, "info": ENTRIES, "lag": 1, "groups": 1 + sticky}
    assert_workers_yield_the_pages_of_same(dialect, options=options, workers=2 + sticky, worker=kind, **how)


@pytest.mark.parametrize(("form", "action"), [("tuple", "multidiscrete"), ("pair", "multibinary"), ("discrete", "box")])
def test_observations_and_actions_of_any_form_pass_through_shared_memory(form, action):
    options = {"form": form, "action": action}
    assert_workers_yield_the_pages_of_same(
        "gym", options=options, workers=2, worker="process", n_steps=6, final=True, lag=0, groups=2
    )


@untold
@settings(max_examples=30, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_worker_threads_yield_the_fragments_of_the_slow_twin_whatever_the_lengths(data):
    n_envs = data.draw(st.integers(1, 5), "n_envs")
    workers = data.draw(st.integers(1, n_envs), "workers")
    rollout = partial(threaded.rollout, workers=workers, worker="thread")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(rows.ENGINES, "workers", (SimpleNamespace(rollout=rollout), 0))
        rows.check_against_slow_twin(
            "workers",
            data.draw(st.sampled_from(sorted(DIALECTS)), "dialect"),
            n_envs,
            data.draw(st.integers(1, 4), "n_fragments"),
            n_steps=data.draw(st.integers(1, 7), "n_steps"),
            groups=data.draw(st.integers(1, n_envs), "groups"),
            lag=data.draw(st.integers(0, 3), "lag"),
            sticky=data.draw(st.booleans(), "sticky"),
            final=data.draw(st.booleans(), "final"),
            lengths=data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5), "lengths"),
            form=data.draw(st.sampled_from(FORMS), "form"),
            action=data.draw(st.sampled_from(ACTIONS), "action"),
            info=("even", "TimeLimit.truncated"),
        )


# --- factories --------------------------------------------------------------------------------------------------------


class CountingEnv:
    """Observes the number of its step plus a constant; its episodes have three steps."""

    observation_space, action_space = Space("float32"), Space("int64")

    def __init__(self, plus=0, log=None):
        self.plus, self.n, self.log = plus, 0, log

    def reset(self, *, seed=None):
        self.n = 0
        return np.float32(self.plus), {}

    def step(self, action):
        self.n += 1
        return np.float32(self.n + self.plus), 1.0, self.n == 3, False, self.info()

    def info(self):
        import os
        import threading

        names = {"pid": os.getpid(), "thread": threading.get_native_id(), "torch": "torch" in sys.modules}
        return {**names, "seed": self.plus}

    def close(self):
        if self.log:
            with open(self.log, "a") as file:
                file.write(f"{self.info()['thread']}\n")


INFO = {"pid": np.int64, "thread": np.int64, "torch": bool, "seed": np.int64}


def infos(envs, kind, workers, **options):
    """Return the first info of each environment."""
    with threaded.rollout(envs, CountingActor(), 2, seed=0, info=INFO, workers=workers, worker=kind, **options) as feed:
        return nested.map(lambda x: x[0].tolist(), next(feed).env.info)


@kinds
def test_factories_may_be_of_any_kind_and_are_called_in_the_worker(kind):
    seeded = lambda seed: CountingEnv(plus=seed)  # noqa: E731
    envs = [lambda: CountingEnv(1), partial(CountingEnv, plus=2), CountingEnv, seeded, partial(seeded, seed=3)]
    got = infos(envs, kind, 3)
    child = int(np.random.SeedSequence(0).spawn(5)[3].generate_state(1)[0]) >> 1
    assert got["seed"] == [1, 2, 0, child, 3]
    a, _, b, _, c = got["thread"]
    assert got["thread"] == [a, a, b, b, c]
    assert len({a, b, c}) == 3
    assert (len(set(got["pid"])) == 3) == (kind == "process")
    assert any(got["torch"]) == (kind == "thread")  # a worker process does not load it


@kinds
def test_an_environment_from_a_factory_is_closed_in_its_worker(kind, tmp_path):
    log = tmp_path / "closed"
    got = infos([partial(CountingEnv, log=log)] * 3, kind, 2)
    assert sorted(log.read_text().split()) == sorted(map(str, got["thread"]))


def test_instances_may_live_in_worker_threads_and_are_never_closed(tmp_path):
    log = tmp_path / "closed"
    got = infos([CountingEnv(1, log), CountingEnv(2, log)], "thread", 2)
    assert (got["seed"], log.exists()) == ([1, 2], False)
    assert len(set(got["thread"])) == 2


def test_what_one_worker_process_notes_as_told_stays_noted_while_another_one_notes():
    names, memory = ("a", "b", "c"), np.zeros(PoolMemory.size(2, 2, 3), np.uint8)
    pool, first, second = PoolMemory(memory, 2, 2, 3), Entries(names), Entries(names)

    class Untold(set):
        def __contains__(self, name):
            if name == "b":  # the other process notes it while this one is about to
                PoolMemory(memory, 2, 2, 3).note_told(second)
            return super().__contains__(name)

    first.untold, second.untold = Untold({"b", "c"}), {"a", "c"}
    pool.note_told(first)
    assert pool.told.tolist() == [1, 1, 0]


def run_script(source):
    """Run a script from a file, as users do."""
    environ = {**os.environ, "PYTHONUNBUFFERED": ""}
    ran = subprocess.run([sys.executable, source], capture_output=True, text=True, timeout=60, check=False, env=environ)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout.splitlines()


def test_a_script_without_a_guard_is_not_run_twice_and_what_it_defines_works_in_workers(tmp_path):
    source = tmp_path / "train.py"
    source.write_text(
        dedent("""
        import os
        print("once", flush=True)

        import numpy as np
        from rlplay.engine.rollout.threaded import rollout
        from rlplay.testing import CountingActor

        class Space:
            def __init__(self, dtype):
                self.shape, self.dtype = (), np.dtype(dtype)

            def __eq__(self, other):
                return self.dtype == other.dtype

        class Mine(Exception):
            pass

        class Env:
            observation_space, action_space = Space("float32"), Space("int64")
            last = 8
            n = 0

            def reset(self, *, seed=None):
                return np.float32(0), {}

            def step(self, action):
                self.n += 1
                if self.n == self.last:
                    raise Mine(LIMIT)
                print(f"step {self.n}\\n", end="")  # into a buffer, which is not to be lost
                return np.float32(0), 1.0, False, False, {}

            def close(self):
                print("closed\\n", end="")

        class Calm(Env):
            last = 9  # so that it is always worker 0 that fails

        LIMIT = 8
        try:
            for fragment in rollout([Env, lambda: Calm()], CountingActor(), 5, workers=2):
                print("fragment", flush=True)
        except Mine as error:
            print(error, error.__notes__[0][:26], flush=True)
    """)
    )
    printed = run_script(source)
    assert [printed.count(line) for line in ("once", "fragment", "closed", "step 7")] == [1, 1, 2, 2]
    assert "8 rlplay: worker 0 (environm" in printed


# --- refusals ---------------------------------------------------------------------------------------------------------


class OtherSpace(CountingEnv):
    observation_space = Space("float64")


class HoldsLock(CountingEnv):
    def __init__(self):
        super().__init__()
        self.lock = __import__("threading").Lock()


REFUSALS = {
    # envs, options -> the error, and what it says
    "negative": (lambda: [CountingEnv], {"workers": -1}, ValueError, "`workers` must be at least 0, got -1"),
    "no integer": (lambda: [CountingEnv], {"workers": 1.0}, TypeError, "`workers` must be an integer, got 1.0"),
    "a flag": (lambda: [CountingEnv], {"workers": True}, TypeError, "`workers` must be an integer, got True"),
    "too many": (lambda: [CountingEnv] * 2, {"workers": 3}, ValueError, "at most the number of environments, 2, got 3"),
    "kind": (lambda: [CountingEnv], {"workers": 1, "worker": "fork"}, ValueError, "'process' or 'thread', got 'fork'"),
    "vector": (lambda: gym.vector.make("CartPole-v1", 2), {"workers": 1}, ValueError, "vector environment"),
    "instance": (
        lambda: [CountingEnv, CountingEnv()],
        {"workers": 2},
        TypeError,
        r"`envs\[1\]` is an instance.*factories",
    ),
}


@pytest.mark.parametrize(("envs", "options", "kind", "says"), REFUSALS.values(), ids=REFUSALS)
def test_wrong_arguments_about_workers_are_refused_at_the_call(envs, options, kind, says):
    with pytest.raises(kind, match=says):
        threaded.rollout(envs(), CountingActor(), **options)


@kinds
@pytest.mark.parametrize("workers", [1, 2, 4])
def test_unequal_spaces_in_workers_are_refused_and_the_environment_is_named(kind, workers):
    with pytest.raises(ValueError, match="environment 3 has the observation_space"):
        threaded.rollout([CountingEnv] * 3 + [OtherSpace], CountingActor(), workers=workers, worker=kind)


@pytest.mark.parametrize(("workers", "groups"), [(1, 2), (2, 1)])
def test_an_environment_that_stands_twice_is_refused_although_its_workers_differ(workers, groups):
    env = CountingEnv()
    with pytest.raises(ValueError, match="twice"):
        threaded.rollout([env, env], CountingActor(), workers=workers, groups=groups, worker="thread")


def test_a_factory_that_cannot_be_pickled_is_refused_by_name_with_the_remedy():
    held = HoldsLock()
    with pytest.raises(TypeError, match=r"environment 1 .*lock.*worker='thread'"):
        threaded.rollout([CountingEnv, lambda: held], CountingActor(), workers=2)


@kinds
def test_an_actor_that_is_refused_leaves_no_worker(kind):
    with pytest.raises(RuntimeError, match="input_size"):
        threaded.rollout([CountingEnv] * 2, GruWithBuffer(), workers=2, worker=kind)
