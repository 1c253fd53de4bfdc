"""What is learnt, and what must not be: seeded training runs on environments whose optimum is known.

They are marked ``learning`` and have a command of their own; a quick pair is part of the ordinary run.
"""

from __future__ import annotations

import copy
from functools import partial
from itertools import islice

import gym
import pytest
import torch
from torch import nn

from rlplay.algo import a2c, dqn, ppo, vtrace
from rlplay.engine.rollout import same, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.replay import Prioritized, Uniform
from rlplay.zoo.actors import ActorCritic, Duelling, GaussianActorCritic, QNetwork, mlp
from rlplay.zoo.envs import Catch, Chain, Endless, Recall, Regulator

learning = pytest.mark.learning
every_seed = pytest.mark.parametrize("seed", [0, 1, 2])
first_seed_always = pytest.mark.parametrize("seed", [0, *(pytest.param(seed, marks=learning) for seed in (1, 2))])


def descend(optim, loss):
    optim.zero_grad()
    loss.backward()
    nn.utils.clip_grad_norm_(optim.param_groups[0]["params"], 10.0)
    optim.step()


def mean_return(make, actor, n=200):
    """Let the actor play greedily."""
    rewards, _ = evaluate([make] * n, actor.eval())
    return rewards.sum(axis=0).mean()


def train(make, actor, losses, *, n_fragments, n_steps, seed, lr, lag=0):
    """Train an actor-critic by the losses that a function makes of each fragment."""
    optim = torch.optim.Adam(actor.parameters(), lr=lr)
    with same.rollout([make() for _ in range(16)], actor, n_steps, lag=lag, seed=seed, final=True) as feed:
        for fragment in islice(feed, n_fragments):
            for loss, _ in losses(fragment, actor):
                descend(optim, loss)


def once(loss, **options):
    """Make a function for :func:`train` of a loss that is taken once per fragment."""
    return lambda fragment, actor: [loss(fragment, actor, gamma=0.99, **options)]


# Values


@first_seed_always
def test_losses_bootstrap_at_time_limits(seed):
    learnt = {}
    for final in (True, False):
        torch.manual_seed(seed)
        actor = ActorCritic(nn.Linear(1, 2), nn.Linear(1, 1, bias=False))
        optim = torch.optim.SGD(actor.parameters(), lr=0.5)
        with same.rollout([Endless(limit=20) for _ in range(4)], actor, 16, seed=seed, final=final) as feed:
            for fragment in islice(feed, 200):
                descend(optim, a2c.loss(fragment, actor, gamma=0.99, C=0.95)[0])
        learnt[final] = actor.value.weight.item()
    assert learnt[True] == pytest.approx(Endless().value(0.99), abs=3)
    assert learnt[False] < 50


@first_seed_always
def test_dqn_learns_the_action_values_of_the_chain(seed):
    torch.manual_seed(seed)
    actor = QNetwork(nn.Linear(5, 2, bias=False), epsilon=0.5)
    target, buffer, draws = copy.deepcopy(actor), Uniform(4096), torch.Generator().manual_seed(seed)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-2)
    with same.rollout([Chain() for _ in range(8)], actor, 16, seed=seed, final=True) as feed:
        for k, fragment in zip(range(100), feed, strict=False):
            buffer.commit(fragment)
            if k % 5 == 0:
                target.load_state_dict(actor.state_dict())
            for _ in range(8):
                batch = buffer.sample(64, gamma=0.9, generator=draws)
                descend(optim, dqn.replayed(batch, actor, target=target)[0])
    expected = torch.as_tensor(Chain().q_values(0.9), dtype=torch.float32)
    torch.testing.assert_close(actor.q(torch.eye(5)), expected, rtol=0, atol=0.05)


# Policies


@learning
@every_seed
@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "vtrace"])
def test_actor_critic_losses_learn_catch(algorithm, seed):
    torch.manual_seed(seed)
    losses, n_fragments, lr, lag = {
        "a2c": (once(a2c.loss), 150, 5e-3, 0),
        "ppo": (partial(ppo.losses, gamma=0.99), 60, 3e-3, 0),
        "vtrace": (once(vtrace.loss), 150, 5e-3, 2),
    }[algorithm]
    actor = ActorCritic(mlp(50, 64, 3), mlp(50, 64, 1))
    train(Catch, actor, losses, n_fragments=n_fragments, n_steps=27, seed=seed, lr=lr, lag=lag)
    assert mean_return(Catch, actor) >= 0.95 * Catch().optimum


@learning
@every_seed
@pytest.mark.parametrize("algorithm", ["a2c", "ppo", "vtrace"])
@pytest.mark.parametrize("recurrent", [False, True], ids=["feed-forward", "recurrent"])
def test_recurrent_actor_critics_learn_recall(recurrent, algorithm, seed):
    torch.manual_seed(seed)
    losses, n_fragments, lr, lag = {
        "a2c": (once(a2c.loss, C=0.95, entropy_weight=0.03), 400, 3e-3, 0),
        "ppo": (partial(ppo.losses, gamma=0.99), 100, 3e-3, 0),
        "vtrace": (once(vtrace.loss, entropy_weight=0.03), 400, 3e-3, 2),
    }[algorithm]
    memory = {"core": nn.LSTM(4, 32)} if recurrent else {"body": mlp(4, 32)}
    actor = ActorCritic(nn.Linear(32, 3), nn.Linear(32, 1), **memory)
    train(Recall, actor, losses, n_fragments=n_fragments, n_steps=28, seed=seed, lr=lr, lag=lag)
    got = mean_return(Recall, actor, n=500)
    if recurrent:
        assert got >= 0.95 * Recall().optimum
    else:  # five deviations of a mean over 500 answers that are right by chance
        assert got == pytest.approx(Recall().chance, abs=5 * (2 / 9 / 500) ** 0.5)


@learning
@every_seed
@pytest.mark.parametrize("sticky", [False, True], ids=["", "sticky"])
def test_a_recurrent_q_network_learns_recall(sticky, seed):
    torch.manual_seed(seed)
    actor = QNetwork(nn.Linear(32, 3), core=nn.GRU(4, 32), epsilon=0.2)
    target, draws = copy.deepcopy(actor), torch.Generator().manual_seed(seed)
    buffer = Prioritized(28 * 16 * 20, sequences=True)
    optim = torch.optim.Adam(actor.parameters(), lr=5e-3)
    with same.rollout([Recall() for _ in range(16)], actor, 28, sticky=sticky, seed=seed) as feed:
        for fragment in islice(feed, 200 if sticky else 60):  # sticky ones hold a quarter of the steps
            buffer.commit(fragment)
            target.load_state_dict(actor.state_dict())
            for _ in range(4):
                columns, ids, weight = buffer.sample_sequences(16, beta=0.5, generator=draws)
                loss, info = dqn.loss(columns, actor, target=target, gamma=0.99, weight=weight)
                descend(optim, loss)
                size = info["td_error"].abs()
                buffer.update(ids, 0.9 * size.amax(dim=0) + 0.1 * size.mean(dim=0))
    assert mean_return(Recall, actor) >= 0.95 * Recall().optimum


@learning
@every_seed
def test_gaussian_actor_critics_learn_the_regulator(seed):
    torch.manual_seed(seed)
    actor = GaussianActorCritic(nn.Linear(1, 1), mlp(1, 32, 1), 1)
    nn.init.zeros_(actor.policy.weight)  # or it might push away from the origin, faster and faster
    losses = partial(ppo.losses, gamma=0.9, entropy_weight=0.0)
    train(Regulator, actor, losses, n_fragments=200, n_steps=25, seed=seed, lr=3e-3)
    env = Regulator()
    learnt = env.value(1.0, 0.9, gain=-actor.policy.weight.item())
    nothing = env.value(1.0, 0.9, gain=0.0)
    assert learnt - nothing >= 0.95 * (env.value(1.0, 0.9) - nothing)


@learning
@every_seed
@pytest.mark.timeout(600)
def test_dqn_with_prioritized_replay_learns_cartpole(seed):
    torch.manual_seed(seed)
    value, advantage = (mlp(4, 128, 128, n, activation=nn.ReLU) for n in (1, 2))
    actor = QNetwork(Duelling(value, advantage), epsilon=1.0)
    target, draws = copy.deepcopy(actor), torch.Generator().manual_seed(seed)
    buffer = Prioritized(50_000)
    optim = torch.optim.Adam(actor.parameters(), lr=1e-3)
    decay = torch.optim.lr_scheduler.LinearLR(optim, 1.0, 0.05, total_iters=250)
    returns = []
    with threaded.rollout([gym.make("CartPole-v1") for _ in range(8)], actor, 32, seed=seed, final=True) as feed:
        for k, fragment in zip(range(400), feed, strict=False):
            buffer.commit(fragment)
            target.load_state_dict(actor.state_dict())
            done = min(1.0, k / 250)
            actor.epsilon.fill_(max(0.02, 1 - 5 * done))
            for _ in range(64):
                batch = buffer.sample(128, n_steps=10, gamma=0.99, beta=0.4 + 0.6 * done, generator=draws)
                loss, info = dqn.replayed(batch, actor, target=target)
                descend(optim, loss)
                buffer.update(batch.ids, info["td_error"].abs())
            decay.step()
            returns = [*returns, *(episode.ret for episode in feed.episodes())][-100:]
            if len(returns) == 100 and sum(returns) >= 475 * 100:
                return
    pytest.fail(f"after 400 fragments the mean return of the last 100 episodes is {sum(returns) / 100}")
