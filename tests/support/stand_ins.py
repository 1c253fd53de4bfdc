"""Stand-ins for simulators on a GPU, written from the public documentation of their vector environments.

They have the names, fields and habits of Isaac Lab's `DirectRLEnv` and of ManiSkill's `ManiSkillVectorEnv`, and none of
their physics: each part counts its steps.
"""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces


class IsaacLabStandIn(gymnasium.Env):
    """Observations in a dict with the key "policy"; flags in buffers that are overwritten; resets in the same step.

    It does not say its autoreset mode, and tells no last observations.
    """

    metadata = {"render_modes": [None]}  # noqa: RUF012

    def __init__(self, num_envs=6, device="cpu"):
        self.num_envs, self.device = num_envs, device
        self.single_observation_space = spaces.Dict({"policy": spaces.Box(-np.inf, np.inf, (3,), np.float32)})
        self.single_action_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.observation_space = gymnasium.vector.utils.batch_space(self.single_observation_space, num_envs)
        self.action_space = gymnasium.vector.utils.batch_space(self.single_action_space, num_envs)
        self.episode_length_buf = torch.zeros(num_envs, dtype=torch.long, device=device)
        self.reset_terminated = torch.zeros(num_envs, dtype=torch.bool, device=device)
        self.reset_time_outs = torch.zeros_like(self.reset_terminated)
        self.reward_buf = torch.zeros(num_envs, device=device)
        self.part = torch.arange(num_envs, device=device)
        self.extras = {}

    @staticmethod
    def seed(seed=-1):
        return seed

    def reset(self, seed=None, options=None):
        self.episode_length_buf.zero_()
        return self._get_observations(), self.extras

    def step(self, action):
        self.episode_length_buf += 1
        torch.sum(action, 1, out=self.reward_buf)
        torch.ge(self.episode_length_buf, 4 + self.part, out=self.reset_time_outs)
        torch.eq(self.episode_length_buf, 3 + 2 * self.part, out=self.reset_terminated)
        ended = self.reset_terminated | self.reset_time_outs
        self.episode_length_buf.masked_fill_(ended, 0)
        self.extras = {"log": {"Episode_Reward/alive": self.reward_buf.mean()}}
        obs = self._get_observations()
        return obs, self.reward_buf, self.reset_terminated, self.reset_time_outs, self.extras

    def _get_observations(self):
        numbers = [self.part, self.episode_length_buf, self.reward_buf]
        return {"policy": torch.stack([x.float() for x in numbers], 1)}


class ManiSkillStandIn:
    """Flags and infos as tensors; last observations and infos in the infos of steps that have ended an episode."""

    def __init__(self, num_envs=6, device="cpu"):
        self.num_envs, self.device = num_envs, torch.device(device)
        self.single_observation_space = spaces.Box(-np.inf, np.inf, (2,), np.float32)
        self.single_action_space = spaces.Box(-1, 1, (2,), np.float32)
        self.observation_space = spaces.Box(-np.inf, np.inf, (num_envs, 2), np.float32)
        self.action_space = spaces.Box(-1, 1, (num_envs, 2), np.float32)
        self.elapsed_steps = torch.zeros(num_envs, dtype=torch.int32, device=device)
        self.returns = torch.zeros(num_envs, device=device)
        self.part = torch.arange(num_envs, device=device)

    @property
    def unwrapped(self):
        return self

    def reset(self, *, seed=None, options=None):
        env_idx = (options or {}).get("env_idx", slice(None))
        self.elapsed_steps[env_idx], self.returns[env_idx] = 0, 0.0
        return self._get_obs(), {"elapsed_steps": self.elapsed_steps.clone(), "reconfigure": False}

    def step(self, actions):
        self.elapsed_steps += 1
        rew = actions.sum(1)
        self.returns += rew
        infos = {
            "elapsed_steps": self.elapsed_steps.clone(),
            "success": self.elapsed_steps % 3 == 2,
            "episode": {"return": self.returns.clone(), "episode_len": self.elapsed_steps.clone()},
        }
        terminations, truncations = self.part + 5 == self.elapsed_steps, self.elapsed_steps >= 7
        dones = terminations | truncations
        obs = self._get_obs()
        if dones.any():
            final_obs, final_info = obs.clone(), infos
            obs, infos = self.reset(options={"env_idx": torch.arange(self.num_envs, device=self.device)[dones]})
            infos |= {"final_observation": final_obs, "final_info": final_info, "_final_info": dones}
            infos |= {"_final_observation": dones, "_elapsed_steps": dones}
        return obs, rew, terminations, truncations, infos

    def _get_obs(self):
        return torch.stack([self.part.float(), self.elapsed_steps.float()], 1)
