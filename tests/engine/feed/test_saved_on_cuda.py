"""A stream saved on a GPU goes on bit for bit; test_saved_on_device.py has the same on the lagging device."""

import gym
import pytest
import torch

from rlplay import nested
from rlplay.engine.rollout import same, threaded
from rlplay.zoo.actors import ActorCritic
from tests.support.assertions import assert_identical_on_any_device
from tests.support.saving import through_torch

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]


def run(segments, **options):
    """Collect fragments by ``(engine, n)``; between two segments save all, and begin anew from there."""
    saved, kept = None, []
    for engine, n in segments:
        torch.manual_seed(1)
        actor = ActorCritic(torch.nn.Linear(8, 2), torch.nn.Linear(8, 1), core=torch.nn.GRU(4, 8)).cuda()
        options["seed"] = 3 if saved is None else None
        if saved is not None:
            actor.load_state_dict(saved["actor"])
            options["state"] = saved["feed"]
        envs = [gym.make("CartPole-v1") for _ in range(4)]
        with engine.rollout(envs, actor, 7, final=True, lag=2, groups=2, **options) as feed:
            for _ in range(n):
                kept.append(nested.map(torch.clone, next(feed)))
                with torch.no_grad():
                    for weight in actor.parameters():
                        weight.mul_(0.9)
            state = feed.state_dict()
        saved = through_torch({"feed": state, "actor": actor.state_dict()})
    return kept


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize(("engine", "other"), [(same, threaded), (threaded, same)])
def test_a_saved_stream_goes_on(engine, other, compile):
    expected = run([(engine, 6)], compile=compile)
    assert_identical_on_any_device(expected, run([(engine, 2), (other, 2), (engine, 2)], compile=compile))
