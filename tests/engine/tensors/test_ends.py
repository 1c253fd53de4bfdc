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


@settings(deadline=None, max_examples=60)
@given(runs())
def test_ends_are_those_of_a_loop_over_transitions_however_fragments_are_cut(run):
    lengths, rew, fin, valid = run
    n_envs = rew.shape[1]
    expected, ret, stepno = [], np.zeros(n_envs), np.zeros(n_envs, int)
    blocks_of, under_way, start = RowLayout.of(LAYOUT, {}, n_envs), torch.zeros(n_envs, dtype=torch.float64), 0
    got, n_valid = [], 0
    for length in lengths:
        blocks = Blocks(torch.zeros(1 + length, blocks_of.block.size, dtype=torch.uint8), blocks_of)
        part = slice(start, start + length)
        for leaf, values in ((blocks.state.rew, rew), (blocks.state.fin, fin), (blocks.env.valid, valid)):
            leaf[1:] = torch.from_numpy(values[part])
        for t in range(length):
            blocks.state.stepno[t] = torch.from_numpy(stepno)
            for j in range(n_envs):
                if valid[start + t, j]:
                    ret[j], stepno[j] = ret[j] + rew[start + t, j], stepno[j] + 1
                    if fin[start + t, j]:
                        expected.append(Episode(j + 7, ret[j], stepno[j]))
                        ret[j], stepno[j] = 0.0, 0
        ends = Ends.empty(length, n_envs, Place.HOST, LANE)
        ends.n_valid.zero_()
        find_ends(blocks, under_way, ends)
        got += ends.episodes(7)
        n_valid += int(ends.n_valid)
        start += length
    assert [one._replace(ret=0.0) for one in got] == [one._replace(ret=0.0) for one in expected]
    np.testing.assert_allclose([one.ret for one in got], [one.ret for one in expected], rtol=0, atol=1e-9)
    np.testing.assert_allclose(under_way, ret, rtol=0, atol=1e-9)
    assert n_valid == valid.sum()


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
