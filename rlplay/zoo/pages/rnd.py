"""Random network distillation (RND): curiosity, a reward for observations that are new.

Run ``python -m rlplay.zoo.pages.rnd --env DeepSea --seed 0``.
It takes environments with a flat Box of observations and a Discrete space of actions. ``DeepSea`` has a reward that
chance finds once in sixteen thousand episodes.

Burda et al. (2019), "Exploration by Random Network Distillation": a network learns to predict the outputs of a fixed
random network. The error of the prediction is large where observations are new; it is added to the reward, in units of
its running deviation. Here the learner is PPO with one critic for both rewards.
"""

from __future__ import annotations

import torch
from torch import nn

from rlplay.algo import RunningNorm, ppo
from rlplay.engine.rollout import threaded
from rlplay.zoo.actors import ActorCritic, mlp

from . import Training, make, run

CURIOSITY = 0.1  # the weight of the intrinsic reward; 0: plain PPO


def train(env: str = "DeepSea", seed: int = 0, steps: int = 150_000, curiosity: float = CURIOSITY) -> Training:
    """Train by proximal policy optimisation (PPO) with random network distillation (RND)."""
    torch.manual_seed(seed)
    envs = make(env, 16)
    n_obs, n_act = envs[0].observation_space.shape[0], envs[0].action_space.n

    actor = ActorCritic(mlp(n_obs, 64, n_act), mlp(n_obs, 64, 1))
    fixed, predictor = mlp(n_obs, 64, 32, activation=nn.ReLU), mlp(n_obs, 64, 32, activation=nn.ReLU)
    scale = RunningNorm(())
    optim = torch.optim.Adam([*actor.parameters(), *predictor.parameters()], lr=1e-3, fused=True)

    with threaded.rollout(envs, actor, n_steps=40, lag=0, seed=seed, final=True) as feed:
        for fragment in feed:
            # the state after each transition; where an episode ended, the true last one
            reached = fragment.state.obs[1:].clone()
            final = fragment.env.final
            reached[final.t, final.b] = final.obs

            with torch.no_grad():
                novelty = (predictor(reached) - fixed(reached)).square().mean(dim=-1)
                scale.update(novelty, fragment.env.valid)
                rew = fragment.state.rew.clone()
                rew[1:] += curiosity * novelty / scale.var.sqrt().clamp(min=1e-8).float()
            fragment = fragment._replace(state=fragment.state._replace(rew=rew))

            for loss, _ in ppo.losses(fragment, actor, gamma=0.99, n_epochs=4, n_minibatches=4):
                distilled = (predictor(reached) - fixed(reached).detach()).square().mean()
                optim.zero_grad()
                (loss + distilled).backward()
                nn.utils.clip_grad_norm_(actor.parameters(), 0.5)
                optim.step()

            yield feed.steps, [episode.ret for episode in feed.episodes()]
            if feed.steps >= steps:
                break


if __name__ == "__main__":
    run(train, env="DeepSea", steps=150_000, every=10_000)
