"""Collector processes yield the fragments of `same`, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from functools import partial
from pathlib import Path
from textwrap import dedent

import gym
import gym.spaces
import gymnasium.spaces
import numpy as np
import pytest
import torch
from torch import nn

from rlplay.engine.rollout import multi, same, single
from rlplay.testing import CountingActor, LaggingLane, make_ledger
from rlplay.zoo.actors import ActorCritic
from tests.support.actors import ReportsThreads
from tests.support.assertions import assert_same_bytes
from tests.support.rare import PixelEnv, RareDtypes, learn_nothing
from tests.support.training import (
    GruWithBuffer,
    assert_processes_yield_the_fragments_of_same,
    change_everything,
    record_training,
)

DIALECTS = {"gym": (gym.spaces, "new"), "gymnasium": (gymnasium.spaces, "new"), "old": (gym.spaces, "old")}

cartpole = partial(gym.make, "CartPole-v1")


def long(*values):
    """One case more of the same kind: not part of the ordinary tests."""
    return pytest.param(*values, marks=pytest.mark.soak)


def count(actor, dice, launch):
    with torch.no_grad():
        actor.weight += 1


@pytest.mark.parametrize(
    ("parts", "lag"), [((1, 5), 0), ((1, 5), 1), ((1, 5), 2), long((2, 2), 1), long((3, 1), 0), ((3, 2), 2)]
)
def test_collector_processes_yield_the_fragments_of_same_bit_for_bit(parts, lag):
    _, delivered = assert_processes_yield_the_fragments_of_same(cartpole, *parts, lag=lag, n_steps=11, final=True)
    assert [version for version, _, _ in delivered] == [max(0, k - lag) for k in range(5)]


@pytest.mark.parametrize(
    ("dialect", "parts", "sticky"),
    [
        *((dialect, (1, 3), True) for dialect in DIALECTS),
        *(("gymnasium", (2, 2), False), long("gym", (2, 2), False), long("old", (2, 2), False)),
    ],
)
def test_collector_processes_yield_the_fragments_of_same_in_every_dialect(dialect, parts, sticky):
    spaces, api = DIALECTS[dialect]
    fragments, delivered = assert_processes_yield_the_fragments_of_same(
        # made here, it travels by value
        lambda seed: make_ledger(spaces, seed % 256, api=api, form="dict", action="dict"),
        *parts,
        make_actor=partial(CountingActor, "dict", sampled=True),
        update=count,
        n_steps=6,
        sticky=sticky,
        final=True,
        lag=1,
        info={"even": int, "place": np.zeros(2, np.int32), "episode.r": np.float64, "nested.deep.over": bool},
    )
    assert [f.actor["weight"].unique().item() for f in fragments] == [0, 0, 1, 2, 3]
    assert sum(len(episodes) for _, _, episodes in delivered) > 5
    assert sticky == any(not f.env.valid.all() for f in fragments)


@pytest.mark.parametrize(("parts", "haste"), [long((1, 3), 0.0), ((1, 3), 0.5), ((2, 2), 0.0), long((2, 2), 0.5)])
def test_fragments_of_collector_processes_reach_the_lagging_device(parts, haste):
    device = LaggingLane(haste=haste, actor_on_host=True)
    assert_processes_yield_the_fragments_of_same(cartpole, *parts, lag=1, n_steps=11, final=True, device=device)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_images_and_rare_dtypes_pass_and_the_callers_default_dtype_holds(dtype):
    before = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        fragments, _ = assert_processes_yield_the_fragments_of_same(
            PixelEnv, 1, 3, make_actor=RareDtypes, update=learn_nothing, lag=1, n_steps=7, final=True, n_fragments=3
        )
    finally:
        torch.set_default_dtype(before)
    assert fragments[0].actor["none"].dtype == dtype
    assert fragments[0].actor["bfloat16"].dtype == torch.bfloat16


def test_autocast_and_the_default_dtype_at_the_first_ask_hold_in_the_processes():
    def first(rollout):
        torch.manual_seed(1)
        with rollout(actor=GruWithBuffer(), n_steps=5, seed=0, lag=1) as feed:
            with torch.autocast("cpu", dtype=torch.bfloat16):
                fragment = next(feed)
            return fragment, next(feed)

    got = first(partial(multi.rollout, cartpole, n_actors=2, n_per_actor=2))
    assert_same_bytes(first(partial(same.rollout, [cartpole] * 4, groups=2)), got)
    assert [fragment.actor["logits"].dtype for fragment in got] == [torch.bfloat16] * 2


def test_weights_that_have_changed_their_names_are_refused_and_the_feed_goes_on_once_they_are_back():
    def renamed(actor, dice, launch):
        change_everything(actor, dice, launch)
        weight = actor.head.weight
        del actor.head.weight
        actor.head.register_parameter("renamed", weight)
        with pytest.raises(ValueError, match=r"no longer.*renamed"):
            next(feeds[-1])
        del actor.head.renamed
        actor.head.register_parameter("weight", weight)

    feeds = []

    def spied(rollout):
        def opened(**options):
            feeds.append(rollout(**options))
            return feeds[-1]

        return opened

    expected, _ = record_training(spied(partial(same.rollout, [cartpole] * 3)), n_steps=5, lag=1, update=renamed)
    got, _ = record_training(spied(partial(single.rollout, cartpole, n_envs=3)), n_steps=5, lag=1, update=renamed)
    assert_same_bytes(expected, got)


def test_a_collector_process_has_the_number_of_torch_threads_that_was_given():
    with single.rollout(cartpole, ReportsThreads(), 2, 1, threads=2) as feed:
        assert next(feed).actor["threads"].unique().item() == 2


# what is wrong is said at the call


class LazyActor(ReportsThreads):
    def __init__(self):
        super().__init__()
        self.lazy = nn.LazyLinear(3)


REFUSED = {
    "no callable": (TypeError, "`factory`", {"factory": [cartpole]}),
    "an environment": (TypeError, "`factory`", {"factory": PixelEnv(0)}),
    "n_actors": (ValueError, "`n_actors`", {"n_actors": 0}),
    "n_per_actor": (ValueError, "`n_per_actor`", {"n_per_actor": 0}),
    "n_per_actor, kind": (TypeError, "`n_per_actor`", {"n_per_actor": 1.0}),
    "threads": (ValueError, "`threads`", {"threads": 0}),
    "n_steps": (ValueError, "`n_steps`", {"n_steps": 0}),
    "lag": (ValueError, "`lag`", {"lag": -1}),
    "seed": (ValueError, "`seed`", {"seed": -1}),
    "start_method": (TypeError, "start_method", {"start_method": "spawn"}),
    "device": (ValueError, "`device`", {"device": "cuda:99"}),
    "actor_device": (ValueError, "`actor_device`", {"actor_device": "cuda:99"}),
    "no actor": (TypeError, "BaseActorModule", {"actor": nn.Linear(1, 1)}),
    "wrapped actor": (TypeError, "DataParallel", {"actor": nn.DataParallel(ReportsThreads())}),
    "lazy actor": (ValueError, "lazy", {"actor": LazyActor()}),
    "n_per_batch": (ValueError, "`n_per_batch` must be at most", {"n_per_batch": 99}),
}


@pytest.mark.parametrize(("kind", "message", "wrong"), REFUSED.values(), ids=REFUSED)
def test_wrong_arguments_are_refused_before_any_process_is_started(kind, message, wrong):
    with pytest.raises(kind, match=message):
        multi.rollout(**{"factory": cartpole, "actor": ReportsThreads(), "n_actors": 2, **wrong})


def test_errors_of_single_name_its_own_arguments():
    with pytest.raises(ValueError, match="`n_envs`"):
        single.rollout(cartpole, ReportsThreads(), n_envs=0)


@pytest.mark.parametrize("engine", [pytest.param("single", marks=pytest.mark.soak), "multi"])
def test_a_script_needs_no_main_guard_and_is_not_run_again(engine, tmp_path):
    script = tmp_path / "script.py"
    (tmp_path / "beside.py").write_text("LENGTH = 3\n")
    script.write_text(
        dedent(f"""
        print("run", flush=True)
        import beside
        import numpy as np
        import torch
        from rlplay.engine import BaseActorModule
        from rlplay.engine.rollout import {engine}

        class Space:
            def __init__(self, dtype):
                self.shape, self.dtype = (), np.dtype(dtype)

            def __eq__(self, other):
                return self.dtype == other.dtype

        class Env:
            observation_space, action_space = Space("float32"), Space("int64")

            def reset(self, *, seed=None):
                self.t = 0
                return np.float32(0), {{}}

            def step(self, action):
                self.t += 1
                return np.float32(self.t), 1.0, self.t == beside.LENGTH, False, {{}}

            def close(self):
                print("closed\\n", end="", flush=True)  # in one piece

        class Actor(BaseActorModule):
            def forward(self, obs, **ignored):
                return torch.zeros(obs.shape, dtype=torch.int64), (), ()

        for fragment in {engine}.rollout(lambda: Env(), Actor(), 6, 2, {"1" if engine == "multi" else ""}):
            print(fragment.env.terminated.sum().item(), flush=True)
            break
        print("end", flush=True)
        """)
    )
    done = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=100, check=False)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout.split() == ["run", "4", "closed", "closed", "end"]


def test_processes_that_finish_first_go_on_where_they_stopped():
    torch.manual_seed(0)
    actor = ActorCritic(nn.Linear(16, 2), nn.Linear(16, 1), core=nn.GRU(4, 16))
    last, met = [], 0
    with multi.rollout(lambda: gym.make("CartPole-v1"), actor, 5, 3, 2, n_per_batch=2, seed=3, final=True) as feed:
        for k, fragment in zip(range(30), feed, strict=False):
            assert fragment.state.fin.shape == (6, 4)
            assert len(feed.version) == 2
            assert all(0 <= version <= k for version in feed.version)
            for part in (slice(0, 2), slice(2, 4)):
                rows = fragment.state.obs[:, part]
                before = [x for x in last if torch.equal(x, rows[0])]
                assert len(before) == 1 or fragment.state.stepno[0, part].sum() == 0
                last = [x for x in last if not torch.equal(x, rows[0])] + [rows[-1]]
                met += len(before)
            ended = (fragment.env.terminated | fragment.env.truncated).nonzero().tolist()
            assert torch.stack([fragment.env.final.t, fragment.env.final.b], 1).tolist() == ended
        assert met > 50


def test_a_fork_that_ends_leaves_feeds_and_their_processes_to_its_parent():
    code = f"""
        import os, sys
        sys.path.insert(0, {str(Path(__file__).parents[3])!r})
        from functools import partial
        import gym
        from rlplay.engine.rollout import evaluate, same
        from tests.support.actors import ReportsThreads

        cartpole = partial(gym.make, "CartPole-v1")

        class Env(gym.Wrapper):
            def close(self):
                print("closed\\n", end="", flush=True)  # in one piece

        feed = same.rollout([lambda: Env(cartpole())], ReportsThreads(), n_steps=2)
        examiner = evaluate.background(cartpole, ReportsThreads(), n_envs=1, n_steps=1)
        child = os.fork()
        if not child:
            sys.exit()  # through the exit handlers
        os.waitpid(child, 0)
        next(examiner)
        examiner.close()
        feed.close()
    """
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", dedent(code)], capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "closed\n"), done.stderr
