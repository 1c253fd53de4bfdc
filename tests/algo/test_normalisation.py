"""Running statistics against those of all values at once; how they flow, and how they are saved."""

from __future__ import annotations

import math

import gym
import pytest
import torch

from rlplay import nested
from rlplay.algo import ReturnNorm, RunningNorm
from rlplay.engine.rollout import same, threaded
from rlplay.zoo.actors import ActorCritic, mlp
from tests.support.assertions import assert_identical
from tests.support.fragments import fragment_of, made_sticky, random_fragment


def exactly(got, expected, rtol=1e-9):
    torch.testing.assert_close(got, torch.as_tensor(expected, dtype=torch.float64), rtol=rtol, atol=1e-12)


@pytest.mark.parametrize("shape", [(), (3,), (2, 2)])
@pytest.mark.parametrize("offset", [0.0, 1e6])
def test_merged_statistics_are_those_of_all_values(shape, offset):
    torch.manual_seed(0)
    norm, seen = RunningNorm(shape), []
    for n in (1, 5, 3, 40):
        x = torch.randn(n, 2, *shape, dtype=torch.float64) * 3 + offset
        valid = torch.rand(n, 2) < 0.7
        norm.update(x, valid)
        seen.append(x[valid])
        values = torch.cat(seen)
        assert norm.count == len(values)
        if len(values):
            exactly(norm.mean, values.mean(0))
            exactly(norm.var, values.var(0, correction=0), rtol=1e-7)
    assert not norm.mean.requires_grad


def test_normalised_values_have_mean_zero_and_deviation_one():
    x = torch.randn(1000, 3, dtype=torch.float64) * torch.tensor([1.0, 5.0, 0.1]) + 7
    norm = RunningNorm((3,), clip=None)
    assert torch.allclose(norm(x), x)  # before the first update
    norm.update(x)
    y = norm(x)
    torch.testing.assert_close(y.mean(0), torch.zeros(3, dtype=torch.float64), rtol=0, atol=1e-9)
    torch.testing.assert_close(y.std(0, correction=0), torch.ones(3, dtype=torch.float64), rtol=0, atol=1e-5)
    clipped = RunningNorm((3,), clip=0.5)
    clipped.update(x)
    torch.testing.assert_close(clipped(x), y.clamp(-0.5, 0.5))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.uint8, torch.int64])
def test_the_dtype_is_that_of_the_observation_or_float32(dtype):
    x = torch.arange(12).view(4, 3).to(dtype)
    norm = RunningNorm((3,))
    norm.update(x)
    assert norm(x).dtype == (dtype if dtype.is_floating_point else torch.float32)
    exactly(norm.mean, [4.5, 5.5, 6.5])


def test_observations_without_numbers_are_counted():
    norm = RunningNorm((0,))
    norm.update(torch.zeros(4, 3, 0), torch.ones(4, 3, dtype=torch.bool))
    assert norm.count == 12
    assert norm(torch.zeros(4, 3, 0)).shape == (4, 3, 0)


def test_values_that_do_not_count_change_no_bit():
    x, valid = torch.randn(6, 2, 3), torch.rand(6, 2) < 0.5
    found = []
    for garbage in (0.0, math.nan, math.inf):
        norm = RunningNorm((3,))
        norm.update(torch.where(valid[..., None], x, garbage), valid)
        found.append([*norm.buffers()])
    assert all(map(torch.equal, found[0], found[1]))
    assert all(map(torch.equal, found[0], found[2]))
    norm = RunningNorm((3,))
    norm.update(x, valid & False)
    assert norm.count == 0
    assert norm(x).equal(x)


def test_wrong_arguments_are_named():
    norm = RunningNorm((3,))
    with pytest.raises(ValueError, match=r"`x` must be \(\.\.\., 3\), got \(5, 2\)"):
        norm.update(torch.zeros(5, 2))
    with pytest.raises(ValueError, match=r"`x` must be \(4, 3\), got \(5, 3\)"):
        norm.update(torch.zeros(5, 3), torch.ones(4, dtype=torch.bool))
    with pytest.raises(TypeError, match=r"`shape` must be a sequence of integers, got 3: write `\(3,\)`"):
        RunningNorm(3)
    with pytest.raises(ValueError, match="`clip` must be a number > 0, or None"):
        RunningNorm((3,), clip=-1.0)
    with pytest.raises(ValueError, match=r"`epsilon` must be a number > 0, got 0\.0"):
        RunningNorm((3,), epsilon=0.0)
    with pytest.raises(ValueError, match=r"`gamma` must be in \[0, 1\], got 99"):
        ReturnNorm(3, gamma=99)
    with pytest.raises(ValueError, match="must have 3 environments, got 4"):
        ReturnNorm(3, gamma=0.9).update(random_fragment())


@pytest.mark.parametrize("sticky", [False, True])
def test_rewards_are_scaled_by_the_deviation_of_discounted_sums(sticky):
    gamma, scale, sums = 0.8, ReturnNorm(4, gamma=0.8, clip=None), []
    running = [0.0] * 4
    for seed in range(3):
        fragment = random_fragment(seed)
        fragment = made_sticky(fragment) if sticky else fragment
        if sticky:
            fragment.state.rew[1:][~fragment.env.valid] = math.nan
        scale.update(fragment)
        T, B = fragment.env.valid.shape
        for b in range(B):
            for t in range(T):
                if fragment.state.fin[t, b]:
                    running[b] = 0.0
                if fragment.env.valid[t, b]:
                    running[b] = gamma * running[b] + fragment.state.rew[t + 1, b].item()
                    sums.append(running[b])
    values = torch.tensor(sums, dtype=torch.float64)
    exactly(scale.stats.var, values.var(correction=0))
    got = scale(fragment)
    expected = fragment.state.rew / values.std(correction=0).float()
    torch.testing.assert_close(got.state.rew, expected, equal_nan=True)
    assert got.state.obs is fragment.state.obs
    scale = ReturnNorm(4, gamma=gamma, clip=0.1)
    scale.update(fragment)
    assert scale(fragment).state.rew.nan_to_num().abs().max() <= 0.1


def test_an_episode_that_goes_on_keeps_its_sum():
    scale = ReturnNorm(1, gamma=0.5)
    scale.update(fragment_of([0, 1, 2], [4.0, 2.0], fin0=True))
    assert scale.ret.tolist() == [4.0]
    scale.update(fragment_of([2, 3], [1.0]))
    assert scale.ret.tolist() == [3.0]
    scale.update(fragment_of([3, 4], [1.0], fin0=True))
    assert scale.ret.tolist() == [1.0]


def test_updates_never_wait_for_the_device():
    fragment = nested.map(lambda x: x.to("meta"), random_fragment())
    norm, scale = RunningNorm((2,)).to("meta"), ReturnNorm(4, gamma=0.9).to("meta")
    norm.update(fragment.state.obs[:-1], fragment.env.valid)
    scale.update(fragment)
    assert scale(fragment).state.rew.device.type == norm(fragment.state.obs).device.type == "meta"


def test_statistics_flow_into_the_behaviour_copy_and_are_saved():
    def run(engine):
        torch.manual_seed(0)
        actor, fragments = ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1), body=RunningNorm((4,))), []
        with engine.rollout([gym.make("CartPole-v1") for _ in range(3)], actor, 6, lag=1, seed=0) as feed:
            for _ in range(4):
                fragment = next(feed)
                if len(fragments) == 2:  # collected with the statistics of the first ask but one
                    seen = fragments[0].state.obs[:-1].double().flatten(0, 1)
                    with torch.no_grad():
                        z = (fragment.state.obs - seen.mean(0)) / seen.std(0, correction=0)
                        expected = actor.policy(z.float().clamp(-10, 10))
                    torch.testing.assert_close(fragment.actor["logits"], expected, rtol=1e-4, atol=1e-5)
                fragments.append(fragment)
                actor.body.update(fragment.state.obs[:-1], fragment.env.valid)
        return fragments, actor

    (fragments, actor), (others, _) = run(same), run(threaded)
    assert_identical(fragments, others)
    other = ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1), body=RunningNorm((4,)))
    other.load_state_dict(actor.state_dict())
    assert other.body.count == 72
    assert torch.equal(other.body.var, actor.body.var)


def test_before_the_first_update_values_are_only_clipped():
    x = torch.tensor([[-30.0, 1.5]])
    assert torch.equal(RunningNorm((2,))(x), torch.tensor([[-10.0, 1.5]]))
    assert torch.equal(RunningNorm((2,), clip=None)(x), x)
