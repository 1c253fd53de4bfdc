"""Hindsight: every sample against the episodes that were committed."""

from __future__ import annotations

from collections import Counter

import pytest
import torch

from rlplay import nested
from rlplay.engine.rollout import episodic
from rlplay.replay import Hindsight
from rlplay.zoo.actors import QNetwork, mlp
from rlplay.zoo.envs import BitFlip
from rlplay.zoo.pages.her import Flat, outcome
from tests.support.replay import generator

GAMMA = 0.9


@pytest.fixture(scope="module")
def episodes():
    """Collect episodes of several lengths."""
    torch.manual_seed(0)
    actor = QNetwork(mlp(8, 4), body=Flat(), epsilon=1.0)
    with episodic.rollout([BitFlip(4) for _ in range(4)], actor, batch_size=12, seed=0) as feed:
        return next(feed)


def filled(episodes, capacity=1000, **how):
    buffer = Hindsight(capacity, **{"outcome": outcome} | how)
    for episode in episodes:
        buffer.commit(episode)
    return buffer


def test_a_buffer_that_is_filled_in_inference_mode_can_be_used_outside_of_it(episodes):
    with torch.inference_mode():
        buffer = filled(episodes[:3])
    for episode in episodes[3:]:
        buffer.commit(episode)
    assert not any(x.is_inference() for x in nested.leaves(buffer.sample(4, gamma=GAMMA)))


def rows_of(episodes):
    """Return for each row ever committed its episode and its place in there."""
    return [(k, t) for k, episode in enumerate(episodes) for t in range(len(episode.state.fin))]


def test_without_new_goals_transitions_are_those_of_the_episodes(episodes):
    def other(achieved, desired):  # is not asked about transitions that keep their goals
        return torch.full((len(achieved),), 7.0), torch.ones(len(achieved), dtype=torch.bool)

    buffer, rows = filled(episodes, fraction=0.0, outcome=other), rows_of(episodes)
    batch = buffer.sample(400, gamma=GAMMA, generator=generator())
    for j, number in enumerate(batch.ids.tolist()):
        k, t = rows[number]
        state, env = nested.map(lambda x: x[:, 0], (episodes[k].state, episodes[k].env._replace(final=())))
        assert all(map(torch.equal, *map(nested.leaves, (nested.map(lambda x, t=t: x[t], state), at(batch.state, j)))))
        following = nested.map(lambda x, t=t: x[t + 1], state)._replace(fin=torch.tensor(False))
        assert all(map(torch.equal, nested.leaves(following), nested.leaves(at(batch.next, j))))
        assert batch.act[0, j] == state.act[t + 1]
        assert batch.rew[0, j] == state.rew[t + 1]
        assert batch.discount[0, j] == pytest.approx(0.0 if env.terminated[t] else GAMMA)
    expected = [n for n, (k, t) in enumerate(rows) if t < len(episodes[k].env.valid)]
    assert set(batch.ids.tolist()) == set(expected)
    assert (batch.weight == 1).all()


def at(tree, j):
    return nested.map(lambda x: x[0, j], tree)


def test_goals_are_what_the_same_episode_achieves_later(episodes):
    buffer, rows = filled(episodes, fraction=1.0), rows_of(episodes)
    batch = buffer.sample(3000, gamma=GAMMA, generator=generator())
    chosen = Counter()
    for j, number in enumerate(batch.ids.tolist()):
        k, t = rows[number]
        achieved = episodes[k].state.obs["achieved_goal"][:, 0]
        goal = batch.state.obs["desired_goal"][0, j]
        assert torch.equal(goal, batch.next.obs["desired_goal"][0, j])
        later = [s for s in range(t + 1, len(achieved)) if torch.equal(achieved[s], goal)]
        assert later
        reached = torch.equal(achieved[t + 1], goal)
        assert batch.rew[0, j] == (0 if reached else -1) == batch.next.rew[0, j]
        assert batch.discount[0, j] == pytest.approx(0.0 if reached else GAMMA)
        assert torch.equal(batch.state.obs["observation"][0, j], episodes[k].state.obs["observation"][t, 0])
        if t == 0 and len(achieved) == 5:
            chosen[later[0]] += 1
    # every later row is drawn; the goal two steps back may be that of the first row
    assert set(chosen) == {1, 2, 3, 4} or set(chosen) == {1, 2, 3}


@pytest.mark.usefixtures("bfloat16_by_default")
def test_discounts_and_weights_are_float32_whatever_the_default_dtype(episodes):
    batch = filled(episodes).sample(20, gamma=GAMMA)
    assert batch.discount.dtype == batch.weight.dtype == torch.float32
    assert set(batch.discount.unique().tolist()) <= {0.0, torch.tensor(GAMMA, dtype=torch.float32).item()}


def test_a_fraction_gets_new_goals(episodes):
    buffer, rows = filled(episodes, fraction=0.5), rows_of(episodes)
    batch = buffer.sample(4000, gamma=GAMMA, generator=generator())
    kept = [
        torch.equal(batch.state.obs["desired_goal"][0, j], episodes[k].state.obs["desired_goal"][t, 0])
        for j, (k, t) in enumerate(rows[n] for n in batch.ids.tolist())
    ]
    assert 0.5 <= sum(kept) / 4000 < 0.65  # some new goals are the old ones


def test_the_oldest_rows_are_overwritten(episodes):
    capacity = 23
    buffer, rows = filled(episodes, capacity), rows_of(episodes)
    assert len(buffer) == capacity < len(rows)
    batch = buffer.sample(500, gamma=GAMMA, generator=generator())
    held = range(len(rows) - capacity, len(rows))
    expected = {n for n in held if rows[n][1] < len(episodes[rows[n][0]].env.valid)}
    assert set(batch.ids.tolist()) == expected
    for j, number in enumerate(batch.ids.tolist()):
        k, t = rows[number]
        assert torch.equal(batch.next.obs["observation"][0, j], episodes[k].state.obs["observation"][t + 1, 0])
    again = buffer.sample(500, gamma=GAMMA, generator=generator())
    assert all(map(torch.equal, nested.leaves(batch), nested.leaves(again)))


def test_what_is_no_episode_is_refused(episodes):
    buffer, one = filled(episodes[:2]), episodes[2]
    cut = one._replace(env=one.env._replace(terminated=one.env.terminated & False, truncated=one.env.truncated & False))
    wide = one._replace(env=one.env._replace(valid=one.env.valid.expand(-1, 2)))
    for wrong in (cut, wide):
        with pytest.raises(ValueError, match="Only whole episodes are stored"):
            buffer.commit(wrong)
    flat = one._replace(state=one.state._replace(obs=one.state.obs["observation"]))
    with pytest.raises(TypeError, match="must be dicts with 'achieved_goal' and 'desired_goal', got Tensor"):
        buffer.commit(flat)
    other = nested.map(lambda x: x.double() if x.dtype == torch.float32 else x, one)
    with pytest.raises(ValueError, match=r"structure, shapes and dtypes of the first one.*got .*torch.float64"):
        buffer.commit(other)
    with pytest.raises(ValueError, match="has no room in a `capacity` of 1"):
        filled([one], capacity=1)
    buffer = Hindsight(100, outcome=lambda achieved, desired: (achieved == desired).min(-1, keepdim=True))
    buffer.commit(one)
    with pytest.raises(ValueError, match=r"`outcome` must return two tensors \(5,\), got \(5, 1\) and \(5, 1\)"):
        buffer.sample(5, gamma=GAMMA)
    buffer = Hindsight(100, outcome=lambda achieved, desired: 2 * (outcome(achieved, desired)[0],))
    buffer.commit(one)
    with pytest.raises(ValueError, match=r"a bool, for each pair of goals; got torch\.float32 and torch\.float32"):
        buffer.sample(5, gamma=GAMMA)
    mixed = one.state.obs | {"achieved_goal": one.state.obs["achieved_goal"].double()}
    with pytest.raises(ValueError, match="'achieved_goal' and 'desired_goal' must have one structure, shape and dtype"):
        filled([one._replace(state=one.state._replace(obs=mixed))])
    with pytest.raises(RuntimeError, match="`commit` an episode first"):
        filled([]).sample(3, gamma=GAMMA)
    with pytest.raises(ValueError, match="`fraction`"):
        filled([], fraction=1.5)
    with pytest.raises(RuntimeError, match="device type"):  # torch's
        filled([], device="gpu")
