"""A vector environment in torch with known numbers, in all the habits of simulators; and stand-ins for two of them."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch
from gymnasium import spaces

from rlplay import nested
from rlplay.testing import CountingActor

N = 5


def wide(mask, like):
    return mask.view(-1, *(1,) * (like.ndim - 1))


class Script(gymnasium.Env):
    """`n` parts whose episodes have known lengths, and whose numbers tell part, episode, step and last action.

    Part `j` has episodes of 2, 3, 4 ... steps by turns (1 if `j` is 3), every second one ends by a time limit.
    """

    def __init__(
        self, n=N, mode="SAME_STEP", *, declared=True, obs="vector", action="discrete", in_place=False, columns=False,
        dones=False, final_name="final_obs", batched=False, final_info=False, numbers=torch.bool, late_flags=False,
        tell_always=True, capturable=False, start=0,
    ):  # fmt: skip
        self.num_envs, self.mode, self.action_kind = n, mode, action
        self.metadata = {"autoreset_mode": mode} if declared else {}
        self._obs, self._in_place, self._columns, self._dones = obs, in_place, columns, dones
        self._final_name, self._final_info, self._numbers, self._late_flags = (
            final_name,
            final_info,
            numbers,
            late_flags,
        )
        self._tell_always, self.capturable = tell_always, capturable
        box = spaces.Box(-np.inf, np.inf, (n, 3) if batched else (3,), np.float32)
        self.single_observation_space = {
            "vector": box,
            "nested": spaces.Dict({"code": box, "inner": spaces.Dict({"pixel": spaces.Box(0, 255, (2, 2), np.uint8)})}),
            "counted": spaces.Discrete(100, start=start),
        }[obs]
        self.single_action_space = {
            "discrete": spaces.MultiDiscrete([5] * n) if batched else spaces.Discrete(5, start=start),
            "box": spaces.Box(-2, 2, (n, 2) if batched else (2,), np.float32),
            "dict": spaces.Dict({"move": spaces.Discrete(3), "aim": spaces.Box(-1, 1, (2,), np.float32)}),
        }[action]
        if batched:
            self.observation_space, self.action_space = self.single_observation_space, self.single_action_space
        self.stepno, self.episode = (torch.zeros(n, dtype=torch.int64) for _ in range(2))
        self.last_act, self.part = torch.zeros(n), torch.arange(n)
        self.ended = torch.zeros(n, dtype=torch.bool)
        self._memory = None
        self.n_resets = self.n_steps = 0
        self.seed_given = None
        self.actions = []
        self.closed = False

    def close(self):
        self.closed = True

    def reset(self, *, seed=None, options=None):
        self.n_resets += 1
        if options is None:
            self.seed_given = seed
            for x in (self.stepno, self.episode, self.last_act, self.ended):
                x.zero_()
            self.offset = float((seed or 0) % 7)
            return self._shown(self._observe()), {}
        mask = options["reset_mask"]
        self._begin(mask)
        # what it tells of parts that are not reset is of no use
        return self._shown(nested.map(lambda x: torch.where(wide(mask, x), x, 77).to(x.dtype), self._observe())), {}

    def _begin(self, mask):
        self.episode += mask
        self.stepno.masked_fill_(mask, 0)
        self.last_act.masked_fill_(mask, 0)

    def _length(self):
        return torch.where(self.part == 3, 1, 2 + (self.part + self.episode) % 4)

    def _observe(self):
        code = torch.stack([self.part + self.offset, 100.0 * self.episode + self.stepno, self.last_act], 1)
        if self._obs == "vector":
            return code
        if self._obs == "counted":
            return self.single_observation_space.start + (7 * self.part + 3 * self.episode + self.stepno) % 100
        pixel = (self.part + self.stepno).byte().view(-1, 1, 1).expand(-1, 2, 2)
        return {"code": code, "inner": {"pixel": pixel.clone()}}

    def _shown(self, obs):
        """The observation as the user gets it: in memory that the next step overwrites, or new."""
        if not self._in_place:
            return nested.map(torch.clone, obs)
        if self._memory is None:
            self._memory = nested.map(torch.clone, obs)
        nested.map(lambda mine, x: mine.copy_(x), self._memory, obs)
        return self._memory

    def step(self, action):
        self.n_steps += 1
        self.actions.append(nested.map(torch.clone, action))
        value = sum(x.float().reshape(self.num_envs, -1).sum(1) for x in nested.leaves(action))
        for leaf in nested.leaves(action):
            leaf.zero_()  # it is the environment's own
        resetting = self.ended.clone() if self.mode == "NEXT_STEP" else torch.zeros_like(self.ended)
        self.stepno += 1
        self.last_act.copy_(value)
        over = self.stepno >= self._length()
        cut = over & (self.episode % 2 == 1)
        reward = self.part + 10.0 * self.stepno + value
        infos = {"speed": self.stepno * 0.5, "place": torch.stack([self.part, self.episode], 1), "all": 3.0}
        infos["deep"] = {"code": (self.part + 1).float()}
        if self.mode == "NEXT_STEP":
            self._begin(resetting)
            if not self._late_flags:
                over, cut = over & ~resetting, cut & ~resetting
            self.ended.copy_(over & ~resetting)
        last = self._observe()
        if self.mode == "SAME_STEP":
            if self._tell_always or over.any():
                infos[self._final_name] = last
            if self._final_info:
                infos["final_info"] = {"speed": infos["speed"].clone()}
                infos["speed"] = torch.where(over, -1.0, infos["speed"])
            self._begin(over)
        obs = self._shown(self._observe() if self.mode == "SAME_STEP" else last)
        reward = reward[:, None] if self._columns else reward
        terminated, truncated = ((x[:, None] if self._columns else x).to(self._numbers) for x in (over & ~cut, cut))
        if self._dones:
            return obs, reward, (terminated + truncated), infos | {"time_outs": truncated}
        return obs, reward, terminated, truncated, infos


class ScriptActor(CountingActor):
    """A counting actor for the action space of a `Script`."""

    def __init__(self, env):
        super().__init__("discrete" if env.action_kind == "dict" else env.action_kind)
        self.action = env.action_kind

    @staticmethod
    def action_of(action, m):
        if action != "dict":
            return CountingActor.action_of(action, m)
        return {"move": m % 3, "aim": torch.stack([m % 5 - 2, m % 7 - 3], -1).float() / 4}
