"""Observations of which a part has no numbers, on a device."""

from __future__ import annotations

import gymnasium
import numpy as np
import torch

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same
from rlplay.testing import LaggingLane


class PartlyEmpty(gymnasium.Env):
    observation_space = gymnasium.spaces.Dict(
        none=gymnasium.spaces.Box(0, 255, (0,), np.uint8), some=gymnasium.spaces.Box(0, 255, (8,), np.uint8)
    )
    action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return {"none": np.zeros(0, np.uint8), "some": np.full(8, 7, np.uint8)}, {}

    def step(self, action):
        return self.reset()[0], 1.0, False, False, {}


class Zero(BaseActorModule):
    def forward(self, obs, **inputs):
        return torch.zeros(obs["some"].shape[:2], dtype=torch.int64), (), ()


def test_a_part_of_the_observation_without_numbers_is_delivered_on_a_device():
    lane = LaggingLane()
    with same.rollout([PartlyEmpty(), PartlyEmpty()], Zero(), 3, device=lane) as feed:
        fragment = next(feed)
        lane.synchronize()
        assert fragment.state.obs["none"].shape == (4, 2, 0)
        assert (fragment.state.obs["some"] == 7).all()
