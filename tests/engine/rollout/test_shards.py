"""Shards: n feeds with `shard=(i, n)` yield the parts of one feed, and number environments as in the whole."""

from __future__ import annotations

from functools import partial

import gymnasium
import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine.rollout import multi, same, single, threaded
from tests.support.assertions import assert_identical
from tests.support.training import GruWithBuffer

N_PER_SHARD, N_STEPS, N_FRAGMENTS, N_SHARDS = 4, 11, 4, 2


def make_env():
    return gymnasium.make("CartPole-v1", max_episode_steps=9)


def make_vector(n=2):
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    return gymnasium.vector.SyncVectorEnv([make_env] * n, autoreset_mode=mode)


def run(rollout, **options):
    torch.manual_seed(0)
    with rollout(actor=GruWithBuffer(), n_steps=N_STEPS, seed=3, lag=1, final=True, **options) as feed:
        fragments = [nested.map(torch.clone, next(feed)) for _ in range(N_FRAGMENTS)]
        return fragments, feed.episodes()


def columns_of(fragments, part):
    """Return some columns of fragments; `final` is left out."""

    def cut(fragment):
        return nested.map(lambda x: x[:, part], fragment._replace(env=fragment.env._replace(final=())))

    return [cut(fragment) for fragment in fragments]


KINDS = {
    "same": (same, 1, lambda: {"envs": [make_env] * N_PER_SHARD}),
    "same, two groups": (same, 2, lambda: {"envs": [make_env] * N_PER_SHARD, "groups": 2}),
    "same, vectors": (same, 2, lambda: {"envs": [make_vector(), make_vector()]}),
    "threaded": (threaded, 1, lambda: {"envs": [make_env] * N_PER_SHARD}),
    "threads": (threaded, 2, lambda: {"envs": [make_env] * N_PER_SHARD, "groups": 2, "workers": 3, "worker": "thread"}),
    "processes": (threaded, 1, lambda: {"envs": [make_env] * N_PER_SHARD, "workers": 2}),
    "single": (single, 1, lambda: {"factory": make_env, "n_envs": N_PER_SHARD}),
    "multi": (multi, 2, lambda: {"factory": make_env, "n_actors": 2, "n_per_actor": 2}),
}


@pytest.mark.parametrize(
    ("engine", "groups", "options"),
    [pytest.param(*KINDS[x], id=x, marks=[pytest.mark.soak] if x in ("single", "processes") else []) for x in KINDS],
)
def test_shards_yield_the_parts_of_one_feed(engine, groups, options):
    whole, episodes = run(partial(same.rollout, [make_env] * (N_SHARDS * N_PER_SHARD)), groups=N_SHARDS * groups)
    for i in range(N_SHARDS):
        part, own = run(engine.rollout, **options(), shard=(i, N_SHARDS))
        columns = slice(i * N_PER_SHARD, (i + 1) * N_PER_SHARD)
        assert_identical(columns_of(whole, columns), columns_of(part, slice(None)))
        assert own == [episode for episode in episodes if columns.start <= episode.env < columns.stop]
        assert len(own) > N_PER_SHARD
        for expected, fragment in zip(whole, part, strict=True):
            inside = (expected.env.final.b >= columns.start) & (expected.env.final.b < columns.stop)
            assert_identical(expected.env.final.obs[inside], fragment.env.final.obs)
            assert torch.equal(expected.env.final.b[inside] - columns.start, fragment.env.final.b)


class FailsAtOnce(gymnasium.Wrapper):
    def step(self, action):
        raise ArithmeticError


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"workers": 1, "worker": "thread"}], ids=str)
def test_messages_have_the_numbers_of_the_whole(options):
    feed = threaded.rollout([lambda: FailsAtOnce(make_env())] * 2, GruWithBuffer(), 3, seed=0, shard=(2, 3), **options)
    with pytest.raises(ArithmeticError) as caught:
        next(feed)
    assert "environment 4, in env.step" in caught.value.__notes__[0]


@pytest.mark.parametrize("engine", [same, threaded])
def test_shards_that_are_none_are_refused(engine):
    def refuses(error, match, envs=(make_env,), seed=0, **options):
        with pytest.raises(error, match=match):
            engine.rollout(list(envs), GruWithBuffer(), 3, seed=seed, **options)

    refuses(ValueError, "needs a `seed`", seed=None, shard=(0, 2))
    refuses(ValueError, "i from 0 to n - 1", shard=(2, 2))
    refuses(ValueError, "`i of `shard`` must be at least 0", shard=(-1, 2))
    refuses(TypeError, "must be a pair", shard=3)
    refuses(TypeError, "integer", shard=(0.0, 2))
    refuses(ValueError, "known before they are made", envs=[make_vector], shard=(0, 2))


def test_numpy_integers_and_a_single_shard_are_taken():
    envs = [make_env] * 2
    expected, _ = run(partial(same.rollout, envs))
    got, _ = run(partial(same.rollout, envs), shard=(np.int64(0), 1))
    assert_identical(expected, got)
