"""What a fragment looks like when it is printed."""

import gymnasium as gym
import pytest
import torch

from rlplay.engine.rollout.same import rollout
from rlplay.zoo.actors import ActorCritic, mlp

TABLE = """\
Fragment         shape        dtype          device
state.stepno     65 x 64      torch.int64    cpu
state.obs        65 x 64 x 4  torch.float32  cpu
state.act        65 x 64      torch.int64    cpu
state.rew        65 x 64      torch.float32  cpu
state.fin        65 x 64      torch.bool     cpu
actor['logits']  65 x 64 x 2  torch.float32  cpu
actor['value']   65 x 64      torch.float32  cpu
env.terminated   64 x 64      torch.bool     cpu
env.truncated    64 x 64      torch.bool     cpu
env.valid        64 x 64      torch.bool     cpu
hx[0]            1 x 64 x 16  torch.float32  cpu
hx[1]            1 x 64 x 16  torch.float32  cpu"""


@pytest.mark.parametrize("show", [repr, str])
def test_a_fragment_is_shown_as_a_table_of_its_tensors(show):
    actor = ActorCritic(mlp(16, 2), mlp(16, 1), core=torch.nn.LSTM(4, 16))
    with rollout([gym.make("CartPole-v1") for _ in range(64)], actor, n_steps=64) as feed:
        fragment = next(feed)
    assert show(fragment) == TABLE
    assert max(map(len, show(fragment).splitlines())) <= 80
    assert show(fragment._replace(actor=None, hx=3)).splitlines()[-1] == "hx"  # what is no tensor is named, too
