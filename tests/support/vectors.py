"""Vector environments of every kind, made of the same environments as a list, and the comparison of both."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine.acting.group import split
from rlplay.engine.rollout import same, threaded
from rlplay.testing import LedgerEnv

N_ENVS = 3
ZEROS = np.zeros((2, 6), np.float32)
ENTRIES = {
    "code": float,
    "even": np.int64,
    "first": bool,
    "place": np.zeros(2, np.int32),
    "nested.deep.step": np.int32,
    "nested.deep.over": bool,
    "episode.r": float,
    "TimeLimit.truncated": bool,
    "a.b": float,
    "never": float,
}

engines = pytest.mark.parametrize("engine", [same, threaded], ids=["same", "threaded"])
of_every_kind = pytest.mark.parametrize("kind", ["gym", "SAME_STEP", "DISABLED", "NEXT_STEP"])


def library_of(kind):
    return pytest.importorskip("gym" if kind == "gym" else "gymnasium")


def vector_of(kind, makers, how="Sync", **options):
    """Make a vector environment: gym's, or gymnasium's in one of its modes."""
    vector = library_of(kind).vector
    mode = {} if kind == "gym" else {"autoreset_mode": vector.AutoresetMode[kind]}
    return getattr(vector, f"{how}VectorEnv")(makers, **mode, **options)


def ledgers(kind, cls=LedgerEnv, n_envs=N_ENVS, **options):
    spaces = library_of(kind).spaces
    return [lambda j=j: cls(spaces, j, **options) for j in range(n_envs)]


def collected(engine, envs, actor, n_steps, n_fragments, **options):
    with engine.rollout(envs, actor, n_steps, seed=5, final=True, **options) as feed:
        fragments = [next(feed) for _ in range(n_fragments)]
        assert feed.steps == sum(int(fragment.env.valid.sum()) for fragment in fragments)
        return fragments, feed.episodes()


def transitions_of(fragments):
    """Return for each environment its transitions, and the finals of its episodes."""

    def whole(fragment):
        state, actor = fragment.state, dict(fragment.actor)
        # at the beginning of an episode the reward is the previous one's, if there is any
        actor["rew"] = actor["rew"].masked_fill(state.fin, 0)
        before = nested.map(lambda x: x[:-1], (state.stepno, state.obs, state.fin, actor))
        after = nested.map(lambda x: x[1:], (state.act, state.rew))
        return before, after, fragment.env._replace(final=())

    steps = nested.map(lambda *xs: torch.cat(xs), *map(whole, fragments))
    ends = nested.map(lambda *xs: torch.cat(xs), *(fragment.env.final[1:] for fragment in fragments))
    valid = steps[2].valid
    return [
        (nested.map(lambda x, b=b: x[valid[:, b], b], steps), nested.map(lambda x, b=b: x[ends[0] == b], ends))
        for b in range(valid.shape[1])
    ]


def assert_equal(one, other, *, up_to=None, containers=True):
    assert nested.structure(one) == nested.structure(other) or not containers
    for x, y, name in zip(nested.leaves(one), nested.leaves(other), nested.names(other, ""), strict=True):
        assert x.dtype == y.dtype, name
        np.testing.assert_array_equal(x[:up_to].numpy(), y[:up_to].numpy(), name)


def check_against_list(
    kind, makers, actor, n_steps, n_fragments=4, *, engine=same, containers=True, how="Sync", n_vectors=None, **options
):
    """Check that a vector environment, or a list of `n_vectors`, gives the fragments and episodes of its parts."""
    parts = [make() for make in makers]
    groups = {} if n_vectors is None else {"groups": n_vectors}
    fragments, episodes = collected(same, parts, actor, n_steps, n_fragments, **groups, **options)
    columns = split(len(makers), n_vectors or 1)
    envs = [vector_of(kind, makers[part], how) for part in columns]
    try:
        made = envs if n_vectors else envs[0]
        got, played = collected(engine, made, actor, n_steps, n_fragments, **options)
    finally:
        for env in envs:
            env.close()
    assert len(played) > 5
    if kind != "NEXT_STEP":
        assert played == episodes
        assert_equal(got, fragments, containers=containers)
        return got
    for j in range(len(makers)):
        ours, theirs = ([episode for episode in some if episode.env == j] for some in (played, episodes))
        assert ours == theirs[: len(ours)]
    for one, other in zip(transitions_of(got), transitions_of(fragments), strict=True):
        for mine, its in zip(one, other, strict=True):
            assert_equal(mine, its, up_to=len(nested.leaves(mine)[0]), containers=containers)
    return got
