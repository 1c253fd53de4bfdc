"""Lists of whole episodes: which episodes, and that each is a fragment like any other."""

from __future__ import annotations

import gc
from itertools import count, islice

import gym
import gym.spaces
import gymnasium
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from rlplay import nested
from rlplay.algo import a2c, dqn, ppo, unroll, vtrace
from rlplay.engine import BaseActorModule, Episode
from rlplay.engine.feed import episode_feed
from rlplay.engine.rollout import episodic, same
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import CountingActor, LedgerEnv, encode
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import Catch
from tests.support.errors import TwoArgumentError, raising
from tests.support.scripted import Script, ScriptedActor, ScriptedEnv

LENGTHS = (16, 3, 1, 17, 32, 5, 33, 15)  # what fits into a piece, and what does not


def ledgers(n_envs, lengths=LENGTHS, **options):
    return [LedgerEnv(gym.spaces, j, lengths=lengths, **options) for j in range(n_envs)]


def collect_lists(feed, actor, n_lists):
    """Set the weight before each ask; yield each list with the episodes, version and steps of the feed."""
    for k in range(n_lists):
        with torch.no_grad():
            actor.weight.fill_(k)
        batch = next(feed)
        yield batch, feed.episodes(), feed.version, feed.steps


def assert_close(one, other):
    assert nested.structure(one) == nested.structure(other)
    torch.testing.assert_close(nested.leaves(one), nested.leaves(other), rtol=1e-6, atol=1e-6)


# Which episodes, and what they look like


def check_ledger(episode, env, number, version):
    """Check that an episode is the one with this number of a ledger environment, from beginning to end."""
    T, n = env.length(number), torch.arange(1 + env.length(number))
    state, info, end, j = episode.state, episode.actor, episode.env, env.index
    codes = [float(encode(j, number, t)) for t in range(1, 1 + T)]
    assert state.obs[:, 0, :3].tolist() == [[j, number, t] for t in range(1 + T)]
    assert state.stepno.tolist() == n[:, None].tolist()
    assert state.rew[1:, 0].tolist() == codes
    assert state.fin[:, 0].tolist() == [True, *[False] * (T - 1), True]
    last = torch.arange(T)[:, None] == T - 1
    terminated, truncated = env.end(number)
    assert torch.equal(end.terminated, last & terminated)
    assert torch.equal(end.truncated, last & truncated)
    assert end.valid.all()
    assert end.valid.shape == (T, 1)
    assert end.info["code"][:, 0].tolist() == codes

    assert_close(info["obs"], state.obs)
    assert_close((info["act"], info["rew"], info["stepno"]), (state.act, state.rew, state.stepno))
    assert info["fin"][:, 0].tolist() == [True, *[False] * T]
    assert info["virtual"][:, 0].tolist() == [False] * T + [True]
    assert info["weight"].eq(version).all()
    assert torch.equal(info["hx"]["count"][:, 0, 0], n)
    assert [hx.tolist() for hx in nested.leaves(episode.hx)] == [[[[0]]], [[[0.0, 0.0]]]]

    final = end.final
    assert (final.t.tolist(), final.b.tolist()) == ([T - 1], [0])
    assert_close((final.obs, final.actor), nested.map(lambda x: x[-1], (state.obs, info)))


def check_lists(n_envs, batch_size, lengths, n_lists=3):
    envs, actor = ledgers(n_envs, lengths), CountingActor()
    with episodic.rollout(envs, actor, batch_size=batch_size, info=["code"], seed=0) as feed:
        assert [(env.resets, env.stepno) for env in envs] == [(1, 0)] * n_envs
        assert (feed.version, feed.steps, feed.episodes()) == (None, 0, [])
        lists = list(collect_lists(feed, actor, n_lists))
    numbers, steps, acts = [count() for _ in envs], 0, [[] for _ in envs]
    for k, (batch, known, version, so_far) in enumerate(lists):
        players = sorted(e % n_envs for e in range(k * batch_size, (k + 1) * batch_size))
        assert [ended.env for ended in known] == players
        assert len(batch) == batch_size
        for episode, ended, j in zip(batch, known, players, strict=True):
            check_ledger(episode, envs[j], next(numbers[j]), k)
            assert ended == Episode(j, episode.state.rew[1:].sum(dtype=torch.float64), len(episode.env.valid))
            acts[j] += episode.state.act[1:, 0].tolist()
            steps += ended.length
        assert (version, so_far) == (k, steps)
    # and nothing else was played
    assert [env.actions for env in envs] == acts
    assert [env.resets - 1 for env in envs] == [next(number) for number in numbers]


@pytest.mark.parametrize("batch_size", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("n_envs", [1, 3])
def test_episodes_are_whole_and_none_is_left_out(n_envs, batch_size):
    check_lists(n_envs, batch_size, LENGTHS)


@settings(max_examples=15, deadline=None, derandomize=True)
@given(st.integers(1, 4), st.integers(1, 6), st.lists(st.integers(1, 50), min_size=1, max_size=5))
def test_episodes_are_whole_whatever_their_lengths(n_envs, batch_size, lengths):
    check_lists(n_envs, batch_size, lengths, n_lists=2)


def test_short_episodes_are_not_preferred():
    envs = [LedgerEnv(gym.spaces, j, lengths=(length,)) for j, length in enumerate((1, 60, 2))]
    with episodic.rollout(envs, CountingActor(), batch_size=6) as feed:
        assert [[len(episode.env.valid) for episode in batch] for batch in islice(feed, 2)] == [
            [1, 1, 60, 60, 2, 2]
        ] * 2


@pytest.mark.parametrize(("form", "action"), [("dict", "dict"), ("tuple", "box"), ("discrete", "multidiscrete")])
def test_episodes_may_have_nested_observations_and_actions(form, action):
    envs = ledgers(2, form=form, action=action)
    with episodic.rollout(envs, CountingActor(action), batch_size=4) as feed:
        for episode in next(feed):
            assert_close((episode.actor["obs"], episode.actor["act"]), (episode.state.obs, episode.state.act))
            assert_close(episode.env.final.obs, nested.map(lambda x: x[-1], episode.state.obs))


def test_a_seed_repeats_the_episodes():
    def played(seed):
        with episodic.rollout(ledgers(3), CountingActor(sampled=True), batch_size=4, seed=seed) as feed:
            return list(islice(feed, 2))

    torch.manual_seed(0)
    one, other = played(None), played(None)
    torch.manual_seed(0)
    again = played(None)
    assert_close(one, again)
    assert_close(played(3), played(3))
    assert any(not torch.equal(x.state.act, y.state.act) for x, y in zip(one[1], other[1], strict=True))


def test_episodes_hold_no_inference_tensors():
    with torch.inference_mode(), episodic.rollout(ledgers(1), CountingActor()) as feed:
        assert not any(leaf.is_inference() for leaf in nested.leaves(next(feed)))


# Fragments like any other


class Everything(BaseActorModule):
    """Has whatever a loss may ask for; what it does depends on the step alone."""

    def __init__(self, recurrent):
        super().__init__()
        self.core = nn.LSTM(3, 8, num_layers=2) if recurrent else nn.Linear(3, 8)
        self.first = nn.Parameter(torch.randn(8))
        self.head = nn.Linear(8, 6)

    def reset(self, hx, at):
        def begun(x):
            x = x.clone()
            x[:, at] = self.first.detach()
            return x

        return nested.map(begun, hx)

    def forward(self, obs, *, stepno, hx=None, **ignored):
        x = obs[..., :3] / 9
        z, hx = self.core(x, hx) if isinstance(self.core, nn.LSTM) else (self.core(x).tanh(), None)
        out = self.head(z)
        return stepno % 5, hx, {"logits": out[..., :5], "q": out[..., :5], "value": out[..., 5]}


recurrence = pytest.mark.parametrize("recurrent", [False, True], ids=["", "recurrent"])


@recurrence
def test_replaying_an_episode_gives_the_recorded_reactions(recurrent):
    torch.manual_seed(0)
    actor = Everything(recurrent)
    with episodic.rollout(ledgers(2), actor, batch_size=6) as feed:
        for episode in next(feed):
            info, _, final = unroll(episode, actor)
            assert_close([x[:-1] for x in nested.leaves(info)], [x[:-1] for x in nested.leaves(episode.actor)])
            assert_close(final, episode.env.final.actor)
            assert [hx.eq(actor.first).all().item() for hx in nested.leaves(episode.hx)] == [True] * 2 * recurrent
            assert all(hx.is_contiguous() for hx in nested.leaves(episode.hx))  # as cuDNN will have it


class Remembering(CountingActor):
    """What it remembers outlives an episode."""

    def reset(self, hx, at):
        return nested.map(torch.clone, hx)


def test_the_recurrent_state_of_an_episode_is_its_own():
    with episodic.rollout(ledgers(2), Remembering(), batch_size=4) as feed:
        for episode in (episode for batch in islice(feed, 2) for episode in batch):
            assert_close(episode.hx, nested.map(lambda x: x[:1], episode.actor["hx"]))
            assert torch.equal(unroll(episode, Remembering()).final["hx"]["count"], episode.actor["hx"]["count"][-1])


LOSSES = {
    "a2c": lambda fragment, actor: a2c.loss(fragment, actor, gamma=0.9),
    "a2c of few steps": lambda fragment, actor: a2c.loss(fragment, actor, gamma=0.9, n_lookahead=2),
    "ppo": lambda fragment, actor: ppo.loss(fragment, actor, gamma=0.9, normalise=False),
    "vtrace": lambda fragment, actor: vtrace.loss(fragment, actor, gamma=0.9),
    "dqn": lambda fragment, actor: dqn.loss(fragment, actor, gamma=0.9, huber=None),
}


@recurrence
@pytest.mark.parametrize("name", LOSSES)
def test_losses_of_episodes_are_those_of_a_fragment_that_holds_them(name, recurrent):
    torch.manual_seed(0)
    actor, lengths = Everything(recurrent), (4, 1, 18, 3, 2)
    rewards = {"reward": lambda code: code % 7 - 3.0}

    def gradients(loss):
        return torch.autograd.grad(loss, [*actor.core.parameters(), *actor.head.parameters()])

    with same.rollout(ledgers(1, lengths, **rewards), actor, sum(lengths), seed=0, final=True) as feed:
        whole, _ = LOSSES[name](next(feed), actor)
    with episodic.rollout(ledgers(1, lengths, **rewards), actor, batch_size=len(lengths), seed=0) as feed:
        parts = [len(episode.env.valid) * LOSSES[name](episode, actor)[0] for episode in next(feed)]
    mean = sum(parts) / sum(lengths)
    torch.testing.assert_close(mean, whole)
    torch.testing.assert_close(gradients(mean), gradients(whole), rtol=1e-4, atol=1e-4)


# When things end, or go wrong


def test_an_episode_feed_closes_what_factories_made_and_no_instances():
    made, instance = [], ScriptedEnv()

    def factory():
        made.append(ScriptedEnv())
        return made[-1]

    feed = episodic.rollout([factory, instance], ScriptedActor(), batch_size=2)
    next(feed)
    feed.close()
    feed.close()
    assert not feed.open
    assert (made[0].counts["close"], instance.counts["close"]) == (1, 0)
    with pytest.raises(RuntimeError, match="closed"):
        next(feed)
    with episodic.rollout([factory], ScriptedActor()) as feed:
        assert feed.open
    forgotten = episodic.rollout([factory], ScriptedActor())
    next(forgotten)
    del forgotten
    gc.collect()
    assert [env.counts["close"] for env in made] == [1, 1, 1]


def test_an_environment_serves_one_feed_at_a_time():
    env = ScriptedEnv()
    first = episodic.rollout([env], ScriptedActor())
    with pytest.warns(RuntimeWarning, match="open feed"):
        second = same.rollout([env], ScriptedActor(), 2)
    with pytest.warns(RuntimeWarning, match="open feed") as caught:
        third = episodic.rollout([env], ScriptedActor())
    assert caught[0].filename == __file__
    assert (first.open, second.open, third.open) == (False, False, True)
    assert len(next(third)[0].env.valid) == 3


def test_an_error_comes_with_a_note_and_ends_the_episode_feed():
    script = Script().at("step", 5, raising(TwoArgumentError("one", 2)))
    feed = episodic.rollout([ScriptedEnv(), ScriptedEnv(script)], ScriptedActor(), batch_size=2)
    next(feed)
    with pytest.raises(TwoArgumentError) as caught:
        next(feed)
    assert "environment 1, in env.step" in caught.value.__notes__[0]
    assert next(feed, None) is None
    assert not feed.open


def test_an_error_at_the_call_closes_what_factories_made():
    script = Script().at("look", 1, raising(TwoArgumentError("one", 2)))
    env = Script()
    with pytest.raises(TwoArgumentError) as caught:
        episodic.rollout([lambda: ScriptedEnv(env)], ScriptedActor(script))
    assert any("actor.step" in note for note in caught.value.__notes__)
    assert env.counts["close"] == 1


def test_a_call_of_next_that_is_refused_half_way_can_be_repeated():
    actor, script = ScriptedActor(), Script()
    feed = episodic.rollout([ScriptedEnv(script, 20)], actor)
    kept = actor.weight
    script.at("step", 10, lambda: setattr(actor, "weight", nn.Parameter(torch.zeros(2))))
    with pytest.raises(ValueError, match="weight"):
        next(feed)
    actor.weight = kept
    (episode,) = next(feed)
    assert episode.state.obs[:, 0].tolist() == [[0, t] for t in range(21)]
    assert (feed.version, len(feed.episodes())) == (0, 1)
    feed.close()


@pytest.mark.parametrize("where", ["while playing", "while cutting"])
def test_an_interrupt_closes_the_episode_feed(where, monkeypatch):
    script = Script()
    feed = episodic.rollout([lambda: ScriptedEnv(script)], ScriptedActor())
    if where == "while playing":
        script.at("step", 2, raising(KeyboardInterrupt()))
    else:
        monkeypatch.setattr(episode_feed, "_join", lambda *args: raising(KeyboardInterrupt())())
    with pytest.raises(KeyboardInterrupt):
        next(feed)
    assert not feed.open
    assert script.counts["close"] == 1


@pytest.mark.parametrize(
    ("error", "match", "options"),
    [
        (ValueError, "batch_size", {"batch_size": 0}),
        (TypeError, "batch_size", {"batch_size": True}),
        (ValueError, "empty", {"envs": []}),
        (ValueError, "stand still", {"envs": gymnasium.make_vec("CartPole-v1", 2)}),
        (TypeError, "BaseActorModule", {"actor": nn.Linear(1, 1)}),
        (ValueError, "seed", {"seed": -1}),
        (ValueError, "`device`", {"device": "gpu"}),
        (ValueError, "`actor_device`", {"actor_device": "gpu"}),
    ],
    ids=["batch_size", "bool", "empty", "vector", "actor", "seed", "device", "actor_device"],
)
def test_an_episode_feed_refuses_wrong_arguments(error, match, options):
    arguments = {"envs": [ScriptedEnv()], "actor": ScriptedActor()} | options
    with pytest.raises(error, match=match):
        episodic.rollout(**arguments)


def test_an_episode_feed_warns_of_a_reset_that_does_not_honour_masks():
    class InPlace(ScriptedActor):
        def reset(self, hx, at):
            hx = hx.clone()
            hx[:, at].zero_()
            return hx

    with pytest.warns(RuntimeWarning, match="mask") as caught:
        episodic.rollout([ScriptedEnv(), ScriptedEnv()], InPlace()).close()
    assert caught[0].filename == __file__


def test_an_episode_feed_can_be_paused_and_has_statistics():
    with episodic.rollout([ScriptedEnv()], ScriptedActor()) as feed:
        with feed.pause(), pytest.raises(RuntimeError, match="paused"):
            next(feed)
        next(feed)
        assert feed.stats.steps == feed.steps == 3


# Learning


@pytest.mark.learning
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_whole_episodes_teach_catch(seed):
    torch.manual_seed(seed)
    actor = ActorCritic(mlp(50, 64, 3), mlp(50, 64, 1))
    optim = torch.optim.Adam(actor.parameters(), lr=3e-3)
    with episodic.rollout([Catch() for _ in range(16)], actor, batch_size=16, seed=seed) as feed:
        for batch in islice(feed, 300):
            losses = [a2c.loss(episode, actor, gamma=0.99)[0] for episode in batch]
            optim.zero_grad()
            torch.stack(losses).mean().backward()
            optim.step()
    rewards, _ = evaluate([Catch] * 200, actor.eval())
    assert rewards.sum(axis=0).mean() >= 0.95 * Catch().optimum


def test_the_trace_of_an_episode_feed_shows_learner_and_collector():
    with episodic.rollout([ScriptedEnv()], ScriptedActor()) as feed, feed.trace() as trace:
        next(feed)
    assert {event["ph"] for event in trace.events} >= {"X", "M"}
