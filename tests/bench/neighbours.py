"""Losses beside those of Stable-Baselines3: the same weights, the same batch, the largest difference.

Stable-Baselines3 is no requirement of rlplay. In a virtual environment of its own::

    python -m venv /tmp/neighbours
    /tmp/neighbours/bin/pip install torch==2.13.0
    /tmp/neighbours/bin/pip install stable-baselines3 gym optree cloudpickle tqdm
    /tmp/neighbours/bin/python -m tests.bench.neighbours

Learning rates are zero, so that Stable-Baselines3's ``train`` logs all losses for the same weights. It prints one line
for each loss, and exits with 1 if a difference is larger than 1e-5 (relative, or absolute below 1).
"""

from __future__ import annotations

import sys
import warnings
from typing import Any

import gymnasium
import numpy as np
import torch
from gymnasium import spaces
from torch import nn

from rlplay.algo import ppo, sac, td3
from rlplay.engine import BaseActorModule, Fragment, Outcome, State
from rlplay.replay import Batch

N, GAMMA = 64, 0.99
failures: list[str] = []


def compare(name: str, ours: Any, theirs: Any) -> None:
    """Print both numbers and their difference."""
    ours, theirs = float(ours), float(theirs)
    error = abs(ours - theirs) / max(1.0, abs(theirs))
    print(f"{name:45} ours {ours:12.7f}   theirs {theirs:12.7f}   difference {error:.1e}")
    if not error <= 1e-5:
        failures.append(name)


class Noise(gymnasium.Env):
    """Random observations and rewards, for any action space; episodes end by chance."""

    def __init__(self, action_space: Any) -> None:
        self.observation_space, self.action_space = spaces.Box(-1.0, 1.0, (3,), np.float32), action_space

    def reset(self, *, seed: int | None = None, options: Any = None) -> Any:
        super().reset(seed=seed)
        return self.np_random.uniform(-1, 1, 3).astype(np.float32), {}

    def step(self, action: Any) -> Any:
        obs = self.np_random.uniform(-1, 1, 3).astype(np.float32)
        return obs, float(self.np_random.normal()), bool(self.np_random.random() < 0.1), False, {}


def replayed(act: torch.Tensor) -> tuple[Batch, torch.Tensor]:
    """Draw a batch, a third of which terminates; return it with the flags."""

    def state() -> State:
        empty = torch.zeros(1, N)
        return State(empty.long(), torch.rand(1, N, 3) * 2 - 1, act, empty, empty.bool())

    done = torch.rand(N) < 0.3
    batch = Batch(state(), act, torch.randn(1, N), GAMMA * ~done[None], state(), torch.arange(N), torch.ones(N))
    return batch, done


def their_batch(batch: Batch, done: torch.Tensor) -> Any:
    """Convert a batch to the samples of Stable-Baselines3."""
    from stable_baselines3.common.type_aliases import ReplayBufferSamples

    column = done.float()[:, None]
    return ReplayBufferSamples(
        batch.state.obs[0], batch.act[0], batch.next.obs[0], column, batch.rew[0][:, None], torch.full((N, 1), GAMMA)
    )


def logged(model: Any, *args: Any) -> dict[str, float]:
    """Run ``train`` of Stable-Baselines3, and return what it logs."""
    from stable_baselines3.common.logger import Logger

    found: dict[str, float] = {}
    logger = Logger(folder=None, output_formats=[])
    logger.record = lambda key, value, exclude=None: found.update({key.removeprefix("train/"): value})
    model.set_logger(logger)
    model.train(*args)
    return found


class Critic(nn.Module):
    """Calls critics of Stable-Baselines3."""

    def __init__(self, critic: nn.Module) -> None:
        super().__init__()
        self.critic = critic

    def forward(self, obs: torch.Tensor, act: torch.Tensor) -> torch.Tensor:
        return torch.cat(self.critic(obs[0], act[0]), dim=-1)[None]


class SoftActor(BaseActorModule):
    """Calls a SAC actor of Stable-Baselines3."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, obs: torch.Tensor, **ignored: Any) -> Any:
        mean, log_std, _ = self.actor.get_action_dist_params(obs[0])
        pre_tanh = mean + log_std.exp() * torch.randn(mean.shape)
        return pre_tanh.tanh()[None], (), {"mean": mean[None], "log_std": log_std[None], "pre_tanh": pre_tanh[None]}


class HardActor(BaseActorModule):
    """Calls a TD3 actor of Stable-Baselines3."""

    def __init__(self, actor: Any) -> None:
        super().__init__()
        self.actor = actor

    def forward(self, obs: torch.Tensor, **ignored: Any) -> Any:
        act = self.actor(obs[0])[None]
        return act, (), {"mean": act}


def beside_sac() -> None:
    """Compare all losses of SAC."""
    from stable_baselines3 import SAC

    batch, done = replayed(torch.rand(1, N, 2) * 2 - 1)
    model = SAC("MlpPolicy", Noise(spaces.Box(-1.0, 1.0, (2,))), learning_rate=0.0, ent_coef="auto_0.3", seed=0)
    model.replay_buffer.sample = lambda *args, **rest: their_batch(batch, done)
    torch.manual_seed(1)
    theirs = logged(model, 1)

    torch.manual_seed(1)
    actor, critic = SoftActor(model.actor), Critic(model.critic)
    log_alpha = model.log_ent_coef[0]
    loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
    compare("Stable-Baselines3 SAC actor", loss, theirs["actor_loss"])
    temperature = sac.temperature_loss(info["log_p"], log_alpha, target_entropy=model.target_entropy)
    compare("Stable-Baselines3 SAC temperature", temperature, theirs["ent_coef_loss"])
    loss, _ = sac.critic_loss(batch, actor, critic, target=Critic(model.critic_target), log_alpha=log_alpha)
    compare("Stable-Baselines3 SAC critics", loss, theirs["critic_loss"])


def beside_td3() -> None:
    """Compare the losses of TD3 and of DDPG. Theirs of the critics are sums of squares, ours of half the squares."""
    from stable_baselines3 import DDPG, TD3

    for name, kind, options in (("TD3", TD3, {"policy_delay": 1}), ("DDPG", DDPG, {})):
        batch, done = replayed(torch.rand(1, N, 2) * 2 - 1)
        model = kind("MlpPolicy", Noise(spaces.Box(-1.0, 1.0, (2,))), learning_rate=0.0, seed=0, **options)
        model.replay_buffer.sample = lambda *args, batch=batch, done=done, **rest: their_batch(batch, done)
        torch.manual_seed(1)
        theirs = logged(model, 1)
        torch.manual_seed(1)
        noise = model.target_policy_noise
        nets = {"target": Critic(model.critic_target), "low": -1.0, "high": 1.0}
        clip = model.target_noise_clip
        loss, _ = td3.critic_loss(
            batch, HardActor(model.actor_target), Critic(model.critic), noise=noise, noise_clip=clip, **nets
        )
        compare(f"Stable-Baselines3 {name} critics", 2 * loss, theirs["critic_loss"])
        loss, _ = td3.actor_loss(batch, HardActor(model.actor), Critic(model.critic))
        compare(f"Stable-Baselines3 {name} actor", loss, theirs["actor_loss"])


class TheirPolicy(BaseActorModule):
    """Calls an actor-critic of Stable-Baselines3."""

    def __init__(self, policy: Any) -> None:
        super().__init__()
        self.policy = policy

    def forward(self, obs: torch.Tensor, **ignored: Any) -> Any:
        flat, lead = obs.flatten(0, 1), obs.shape[:2]
        found, value = self.policy.get_distribution(flat).distribution, self.policy.predict_values(flat)
        if isinstance(found, list):
            info: dict[str, Any] = {"logits": tuple(x.logits.unflatten(0, lead) for x in found)}
        elif hasattr(found, "logits"):
            info = {"logits": found.logits.unflatten(0, lead)}
        else:
            info = {"mean": found.mean.unflatten(0, lead), "log_std": found.stddev.log().unflatten(0, lead)}
        return (), (), info | {"value": value.view(lead)}


def beside_ppo() -> None:
    """Compare PPO for all spaces that Stable-Baselines3 has."""
    from stable_baselines3 import PPO

    kinds = {
        "Discrete": spaces.Discrete(3),
        "MultiDiscrete": spaces.MultiDiscrete([3, 4]),
        "MultiBinary": spaces.MultiBinary(4),
        "Box": spaces.Box(-1.0, 1.0, (2,)),
    }
    for kind, space in kinds.items():
        options = {"n_steps": N, "batch_size": N, "n_epochs": 1, "normalize_advantage": False, "clip_range": 0.1}
        model = PPO("MlpPolicy", Noise(space), learning_rate=0.0, gamma=GAMMA, seed=0, **options)
        model.learn(N)
        actor, buffer = TheirPolicy(model.policy), model.rollout_buffer
        fin = torch.tensor(np.append(buffer.episode_starts[:, 0], model._last_episode_starts[0])).bool()[:, None]
        obs = torch.tensor(np.concatenate([buffer.observations.reshape(N, 3), model._last_obs])).float()[:, None]
        act = torch.tensor(buffer.actions.reshape(N, *space.shape))[:, None]
        if kind != "Box":
            act = act.to(torch.int8 if kind == "MultiBinary" else torch.int64)
        act, rew = torch.cat([act[:1], act]), torch.tensor(buffer.rewards).view(N, 1)
        state = State(torch.zeros(N + 1, 1).long(), obs, act, torch.cat([rew[:1], rew]), fin)
        outcome = Outcome(fin[1:], fin[1:] & False, torch.ones(N, 1).bool(), {}, ())
        with torch.no_grad():
            _, _, said = actor(obs)
            fragment = Fragment(state, said, outcome, ())
            for weight in model.policy.parameters():
                weight += 0.1 * torch.randn_like(weight)
        theirs = logged(model)
        _, info = ppo.loss(fragment, actor, gamma=GAMMA, C=0.95, clip=0.1, normalise=False)
        names = {"policy_loss": "policy_gradient_loss", "value_loss": "value_loss", "kl": "approx_kl"}
        names |= {"clipped": "clip_fraction"}
        for name, their_name in names.items():
            compare(f"Stable-Baselines3 PPO {kind} {name}", info[name], theirs[their_name])
        compare(f"Stable-Baselines3 PPO {kind} entropy", info["entropy"], -theirs["entropy_loss"])


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in (beside_sac, beside_td3, beside_ppo):
        part()
    print("larger than 1e-5:", failures or "none")
    sys.exit(bool(failures))
