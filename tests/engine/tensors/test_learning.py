"""PPO learns on many CartPoles in torch. Takes about a minute."""

import pytest

from tests.support.torch_ppo import train

pytestmark = pytest.mark.learning


@pytest.mark.parametrize(("n", "n_steps"), [(64, 64), (256, 32)])
@pytest.mark.parametrize("seed", [0, 1])
def test_ppo_learns_cartpole_with_many_environments_in_torch(n, n_steps, seed):
    steps, mean, *_ = train(n, n_steps, seed, limit=400_000, compile=False)
    assert mean >= 475, f"{mean} after {steps} steps"
