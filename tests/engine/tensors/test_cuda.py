"""Environments in torch on a GPU: fragments and episodes of captured, eager and host's steps, and failed captures.

On the lagging device the same code of the engine is tested in test_captured.py and test_hazards.py.
"""

import pytest
import torch

from rlplay.engine.rollout import same, threaded
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch
from tests.support.assertions import assert_identical_on_any_device
from tests.support.cuda import fragments_beside_a_learner

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

N_ENVS, N_STEPS, N_FRAGMENTS = 6, 11, 6


def make_env():
    return CartPoleBatch(N_ENVS, "cuda", limit=9)


def collected(engine, make=make_env, *, sleep=False, **options):
    """Collect and learn without ever waiting; return the fragments, the episodes and the environment."""
    torch.manual_seed(1)
    actor, env = ActorCritic(mlp(4, 64, 2), mlp(4, 64, 1)).cuda(), make()
    with engine.rollout(env, actor, N_STEPS, seed=3, **options) as feed:
        kept = fragments_beside_a_learner(feed, actor, N_FRAGMENTS, sleep=sleep)
        return kept, feed.episodes(), env


def check(expected, got):
    assert_identical_on_any_device(expected[0], got[0])
    assert got[1] == expected[1]


@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("lag", [0, 2])
def test_captured_steps_are_the_eager_ones_bit_for_bit(lag, final, captures):
    expected = collected(same, lag=lag, final=final)
    assert expected[1]
    assert not captures
    check(expected, collected(threaded, lag=lag, final=final, sleep=True))
    for engine in (same, threaded):
        check(expected, collected(engine, lag=lag, final=final, compile=True, sleep=engine is threaded))
    assert captures


class CountsCalls(CartPoleBatch):
    n_steps = 0

    def __init__(self):
        super().__init__(N_ENVS, "cuda", limit=9)

    def step(self, action):
        self.n_steps += 1
        return super().step(action)


def test_python_code_of_a_captured_environment_runs_at_the_capture_alone(captures):
    assert collected(threaded, CountsCalls, compile=True)[2].n_steps == 2  # in train and in eval mode


class Reads(CountsCalls):
    def step(self, action):
        action.sum().item()
        return super().step(action)


class Rebinds(CountsCalls):
    def step(self, action):
        self.stepno = self.stepno + 0
        return super().step(action)


@pytest.mark.parametrize("kind", [Reads, Rebinds])
@pytest.mark.parametrize("engine", [same, threaded])
def test_an_environment_whose_capture_fails_runs_eagerly_behind_a_captured_actor(kind, engine, captures):
    """It is the second of a list, so the graphs of the first one are dropped, and captured again without its step."""

    def make():
        return [make_env(), kind()]

    expected = collected(same, make, lag=1)
    with pytest.warns(RuntimeWarning, match="its step can be captured .* but it runs eagerly") as caught:
        got = collected(engine, make, lag=1, compile=True)
    check(expected, got)
    assert len(caught) == 1
    assert captures
    assert got[2][1].n_steps >= N_FRAGMENTS * N_STEPS


def test_a_reward_on_the_host_is_refused():
    class OnTheHost(CountsCalls):
        def step(self, action):
            obs, reward, *rest = super().step(action)
            return obs, reward.cpu(), *rest

    with pytest.raises(ValueError, match=r"the reward .* to be on cuda:0, .* on cpu"):
        collected(same, OnTheHost)
