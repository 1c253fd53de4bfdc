"""PPO on many CartPoles in torch, for a test of learning and for a measurement."""

from __future__ import annotations

from time import perf_counter, process_time

import torch
from torch import nn

from rlplay.algo import ReturnNorm, ppo
from rlplay.engine.rollout import same
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch


def train(n, n_steps, seed, *, limit, goal=475.0, device="cpu", compile=True):
    """Train until the mean return of the last 100 episodes is the goal, or `limit` steps are done.

    Return the steps, that mean, and the seconds that this took, by the clock and of this process.
    """
    torch.manual_seed(seed)
    actor, scale = ActorCritic(mlp(4, 64, 64, 2), mlp(4, 64, 64, 1)).to(device), ReturnNorm(n, gamma=0.99).to(device)
    optim = torch.optim.Adam(actor.parameters(), lr=2e-3, fused=True)
    options = {"gamma": 0.99, "C": 0.95, "n_epochs": 4, "n_minibatches": 8, "entropy_weight": 0.0, "max_kl": 0.05}
    returns = [0.0]
    with same.rollout(CartPoleBatch(n, device), actor, n_steps, seed=seed, final=True, compile=compile) as feed:
        began = perf_counter(), process_time()
        for fragment in feed:
            scale.update(fragment)
            for loss, _ in ppo.losses(scale(fragment), actor, **options):
                optim.zero_grad()
                loss.backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
                optim.step()
            returns = [*returns, *(episode.ret for episode in feed.episodes())][-100:]
            mean = sum(returns) / len(returns)
            if (mean >= goal and len(returns) == 100) or feed.steps >= limit:
                return feed.steps, mean, perf_counter() - began[0], process_time() - began[1]
