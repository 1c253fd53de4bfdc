"""Environments in torch: CartPole as gymnasium has it, and the regulator by its definition."""

import gymnasium
import numpy as np
import pytest
import torch

from rlplay.engine.rollout import same
from rlplay.testing import CountingActor
from rlplay.zoo.envs import CartPoleBatch, Regulator, RegulatorBatch


def policies():
    """Random pushes, and pushes that keep the pole up for the whole of an episode."""
    random = np.random.default_rng(0)
    return [lambda state: int(random.integers(2)), lambda state: int(state @ [0.1, 0.4, 1.0, 0.5] > 0)]


@pytest.mark.parametrize("which", [0, 1], ids=["random", "steady"])
def test_cartpole_has_the_dynamics_of_gymnasium(which):
    """Over whole episodes in float64: equal lengths and flags, states within 1e-9."""
    n, policy = 6, policies()[which]
    theirs = [gymnasium.make("CartPole-v1") for _ in range(n)]
    ours, lengths = CartPoleBatch(n, dtype=torch.float64), []
    ours.reset(seed=1)
    for j, env in enumerate(theirs):
        env.reset(seed=j)
        ours.state[:, j] = torch.from_numpy(np.array(env.unwrapped.state))
    running = np.ones(n, bool)
    for step in range(1, 501):
        acts = [policy(np.array(env.unwrapped.state)) for env in theirs]
        obs, rew, terminated, truncated, infos = ours.step(torch.tensor(acts))
        for j, env in enumerate(theirs):
            if not running[j]:
                continue
            expected, reward, *flags, _ = env.step(acts[j])
            assert flags == [terminated[j], truncated[j]]
            assert rew[j] == reward
            np.testing.assert_allclose(infos["final_obs"][j], expected, rtol=0, atol=1e-6)
            if any(flags):
                running[j] = False
                lengths.append(step)
                assert (ours.state[:, j].abs() <= 0.05).all()
                assert ours.stepno[j] == 0
                torch.testing.assert_close(obs[j].double(), ours.state[:, j], rtol=0, atol=1e-8)
            else:
                np.testing.assert_allclose(ours.state[:, j], env.unwrapped.state, rtol=0, atol=1e-9)
                assert torch.equal(obs[j], infos["final_obs"][j])
    assert not running.any()
    assert set(lengths) == {500} if which else len(set(lengths)) > 1


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_regulator_follows_its_definition(dtype):
    env, definition = RegulatorBatch(3, dtype=dtype, noise=0.0, limit=7), Regulator(noise=0.0)
    obs, _ = env.reset(seed=2)
    for step in range(1, 20):
        u = torch.tensor([[0.5], [-1.0], [2.0]])
        x = obs
        obs, rew, terminated, truncated, infos = env.step(u)
        torch.testing.assert_close(rew.float(), -(definition.q * x**2 + definition.r * u**2)[:, 0])
        torch.testing.assert_close(infos["final_obs"], definition.a * x + definition.b * u)
        assert not terminated.any()
        assert truncated.tolist() == [step % 7 == 0] * 3
        assert torch.equal(obs, infos["final_obs"]) != (step % 7 == 0)


def test_states_are_drawn_as_described():
    env = CartPoleBatch(20_000)
    env.reset(seed=0)
    assert env.state.abs().max() <= 0.05
    torch.testing.assert_close(env.state.var(dim=1), torch.full((4,), 0.1**2 / 12), rtol=0.05, atol=0)
    regulator = RegulatorBatch(20_000, noise=0.5)
    regulator.reset(seed=0)
    torch.testing.assert_close(regulator.state.var(), torch.tensor(1.0), rtol=0.05, atol=0)
    regulator.state.zero_()
    regulator.step(torch.zeros(20_000, 1))
    torch.testing.assert_close(regulator.state.var(), torch.tensor(0.25), rtol=0.05, atol=0)


@pytest.mark.parametrize("make", [CartPoleBatch, RegulatorBatch])
def test_a_seed_repeats_and_another_does_not(make):
    action = "discrete" if make is CartPoleBatch else "box"

    class Acts(CountingActor):
        @staticmethod
        def action_of(action, m):
            return m % 2 if action == "discrete" else (m % 3 - 1).float()[..., None]

    def collected(seed):
        with same.rollout(make(4), Acts(action), 30, seed=seed) as feed:
            return next(feed).state.obs

    assert torch.equal(collected(1), collected(1))
    assert not torch.equal(collected(1), collected(2))


def test_no_environments_are_refused():
    with pytest.raises(ValueError, match="`n` must be at least 1, got 0"):
        CartPoleBatch(0)
