"""The ends of a fragment, found for all its transitions at once: those of a loop over them."""

import numpy as np
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplay.engine.core import Episode, State
from rlplay.engine.feed import episode_log
from rlplay.engine.feed.episode_log import EpisodeLog
from rlplay.engine.memory.lane import Lane, Place
from rlplay.engine.memory.layout import Leaf
from rlplay.engine.memory.slot import Blocks, RowLayout
from rlplay.engine.tensors.ends import Ends, EpisodeArrays, find_ends

LANE = Lane(torch.device("cpu"), torch.device("cpu"))
SCALAR = Leaf((), torch.int64)
LAYOUT = State(SCALAR, SCALAR, SCALAR, Leaf((), torch.float32), Leaf((), torch.bool))


@st.composite
def runs(draw):
    """Rewards, flags and valid transitions of some environments, and where fragments are cut."""
    n_envs, lengths = draw(st.integers(1, 4)), draw(st.lists(st.integers(1, 6), min_size=1, max_size=4))
    shape = (sum(lengths), n_envs)
    seed = draw(st.integers(0, 2**32 - 1))
    random = np.random.default_rng(seed)
    rew = (random.normal(size=shape) * 10.0 ** random.integers(-2, 3)).astype(np.float32)
    fin, valid = random.random(shape) < draw(st.sampled_from([0.0, 0.3, 1.0])), random.random(shape) < 0.8
    return lengths, rew, fin, valid


def ends_of(rew, fin, valid, lengths):
    """Return episodes and valid transitions of fragments, by `find_ends`, and the returns under way at the end."""
    n_envs = rew.shape[1]
    layout, under_way = RowLayout.of(LAYOUT, {}, n_envs), torch.zeros(n_envs, dtype=torch.float64)
    got, n_valid, start, stepno = [], 0, 0, np.zeros(n_envs, int)
    for length in lengths:
        blocks = Blocks(torch.zeros(1 + length, layout.block.size, dtype=torch.uint8), layout)
        part = slice(start, start + length)
        for leaf, values in ((blocks.state.rew, rew), (blocks.state.fin, fin), (blocks.env.valid, valid)):
            leaf[1:] = torch.from_numpy(values[part])
        for t in range(length):
            blocks.state.stepno[t] = torch.from_numpy(stepno)
            stepno = np.where(valid[start + t], np.where(fin[start + t], 0, stepno + 1), stepno)
        ends = Ends.empty(length, n_envs, Place.HOST, LANE)
        ends.n_valid.zero_()
        find_ends(blocks, under_way, ends)
        got += ends.episodes(7)
        n_valid += int(ends.n_valid)
        start += length
    return got, n_valid, under_way.numpy()


def ends_by_loop(rew, fin, valid):
    """Return the same by a loop over transitions."""
    found, ret, stepno = [], np.zeros(rew.shape[1]), np.zeros(rew.shape[1], int)
    for t, j in zip(*valid.nonzero(), strict=True):
        ret[j], stepno[j] = ret[j] + rew[t, j], stepno[j] + 1
        if fin[t, j]:
            found.append(Episode(j + 7, ret[j], stepno[j]))
            ret[j], stepno[j] = 0.0, 0
    return found, valid.sum(), ret


@settings(deadline=None, max_examples=60)
@given(runs())
def test_ends_are_those_of_a_loop_over_transitions_however_fragments_are_cut(run):
    lengths, rew, fin, valid = run
    got, n_valid, under_way = ends_of(rew, fin, valid, lengths)
    expected, n_expected, ret = ends_by_loop(rew, fin, valid)
    assert [one._replace(ret=0.0) for one in got] == [one._replace(ret=0.0) for one in expected]
    np.testing.assert_allclose([one.ret for one in got], [one.ret for one in expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(under_way, ret, rtol=0, atol=1e-9)
    assert n_valid == n_expected


@settings(deadline=None, max_examples=200)
@given(runs(), st.integers(0, 2**32 - 1))
def test_rewards_of_one_episode_do_not_change_the_returns_of_others(run, seed):
    """Each episode has at most one reward that is not a small integer, so its sum is the same in any order."""
    lengths, rew, fin, valid = run
    random = np.random.default_rng(seed)
    rew = random.integers(-9, 10, rew.shape).astype(np.float32)
    has_one = np.zeros(rew.shape[1], bool)
    for t in range(len(rew)):
        given = ~has_one & (random.random(rew.shape[1]) < 0.5)
        rew[t, given] = random.choice([np.inf, -np.inf, np.nan, 1e30, -3e38], given.sum())
        has_one = (has_one | given) & ~(fin[t] & valid[t])
    got, n_valid, under_way = ends_of(rew, fin, valid, lengths)
    expected, n_expected, ret = ends_by_loop(rew, fin, valid)
    np.testing.assert_array_equal(np.array(got), np.array(expected))
    np.testing.assert_array_equal(under_way, ret)
    assert n_valid == n_expected


def arrays(first, n):
    return EpisodeArrays(np.zeros(n, int), np.arange(first, first + n, dtype=float), np.ones(n, int))


def test_the_log_keeps_the_last_episodes_of_fragments(monkeypatch):
    monkeypatch.setattr(episode_log, "_KEPT_EPISODES", 10)
    log = EpisodeLog()
    for k in range(8):
        log.add(arrays(3 * k, 3))
        assert len(log._arrays) <= 5
    assert [episode.ret for episode in log.take()] == list(range(14, 24))
    assert log.take() == []
    log.add(arrays(0, 4))
    assert log.take() == [Episode(0, float(k), 1) for k in range(4)]


def test_the_episodes_of_a_fragment_are_a_collection():
    some = arrays(0, 3)
    assert len(some) == 3
    assert Episode(0, 2.0, 1) in some
    assert Episode(0, 3.0, 1) not in some
