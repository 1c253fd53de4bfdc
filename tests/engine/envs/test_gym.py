"""Stock environments of gym and gymnasium work without wrappers."""

from __future__ import annotations

import importlib
import subprocess
import sys

import numpy as np
import pytest
import torch
from torch import nn

from rlplay import sampling
from rlplay.algo import returns
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor, LedgerEnv
from tests.support.rows import untold

N_ENVS = 3

libraries = pytest.mark.parametrize("library", ["gym", "gymnasium"])
engines = pytest.mark.parametrize("engine", [same, threaded], ids=["same", "threaded"])


class PolicyAndValue(BaseActorModule):
    """The smallest actor that learns anything."""

    def __init__(self, n_obs, n_actions):
        super().__init__()
        self.policy, self.value = nn.Linear(n_obs, n_actions), nn.Linear(n_obs, 1)

    def forward(self, obs, *, hx=None, **ignored):
        logits = self.policy(obs).log_softmax(dim=-1)
        act = sampling.categorical(logits, generator=self.generator)
        return act, hx, {"logits": logits, "value": self.value(obs)[..., 0]}


def actor_for(env):
    torch.manual_seed(0)
    return PolicyAndValue(env.observation_space.shape[0], env.action_space.n)


def policy_gradient(fragment, actor):
    state, env = fragment.state, fragment.env
    _, _, info = actor(state.obs)
    gain = returns.returns(state.rew[1:], state.fin[1:], gamma=0.99, bootstrap=info["value"][-1].detach())
    logp = info["logits"][:-1].gather(-1, state.act[1:, :, None])[..., 0]
    advantage = gain - info["value"][:-1]
    return (-(logp * advantage.detach()) + advantage.square())[env.valid].mean()


@pytest.mark.parametrize("name", ["CartPole-v1", "Acrobot-v1"])
@libraries
@engines
def test_the_loop_of_the_readme_runs_over_stock_environments(engine, library, name):
    gym = pytest.importorskip(library)
    envs = [gym.make(name) for _ in range(N_ENVS)]
    actor = actor_for(envs[0])
    optim = torch.optim.SGD(actor.parameters(), lr=1e-2)
    before = actor.policy.weight.detach().clone()

    feed = engine.rollout(envs, actor, n_steps=30, seed=1)
    for _, fragment in zip(range(4), feed):  # noqa: B905 (as users write it)
        loss = policy_gradient(fragment, actor)
        optim.zero_grad()
        loss.backward()
        optim.step()
    feed.close()

    assert fragment.state.obs.shape == (31, N_ENVS, envs[0].observation_space.shape[0])
    assert fragment.state.obs.dtype == torch.float32
    assert feed.steps == 4 * 30 * N_ENVS
    assert not torch.equal(actor.policy.weight, before)
    ended = feed.episodes()
    assert bool(ended) == (name == "CartPole-v1")
    assert all(episode.ret == episode.length for episode in ended)


@untold
@libraries
def test_a_stock_environment_gives_what_it_gives_when_stepped_by_hand(library):
    gym = pytest.importorskip(library)
    env, other = gym.make("CartPole-v1", max_episode_steps=7), gym.make("CartPole-v1", max_episode_steps=7)
    seeds = []
    reset = env.reset

    def noted(*, seed=None, options=None):
        seeds.append(seed)
        return reset(seed=seed, options=options)

    env.reset = noted
    with threaded.rollout([env], actor_for(env), n_steps=25, final=True, info=("TimeLimit.truncated",)) as feed:
        fragment = next(feed)
    state, outcome, last = fragment.state, fragment.env, []
    obs, _ = other.reset(seed=seeds[0])
    for t in range(25):
        assert np.array_equal(state.obs[t, 0], obs)
        obs, rew, terminated, truncated, info = other.step(int(state.act[t + 1, 0]))
        assert (float(state.rew[t + 1, 0]), bool(state.fin[t + 1, 0])) == (rew, terminated or truncated)
        assert (bool(outcome.terminated[t, 0]), bool(outcome.truncated[t, 0])) == (terminated, truncated)
        entry = np.float32(info.get("TimeLimit.truncated", np.nan))
        np.testing.assert_array_equal(outcome.info["TimeLimit.truncated"][t, 0].numpy(), entry)
        if terminated or truncated:
            last.append(obs)
            obs, _ = other.reset()
    assert np.array_equal(outcome.final.obs, last)
    assert outcome.truncated.any()
    assert seeds[0] is not None
    assert set(seeds[1:]) == {None}


@pytest.mark.skipif(np.lib.NumpyVersion(np.__version__) < "2.0.0", reason="NumPy 1 has all the names that gym uses")
@engines
def test_gym_works_on_numpy_2_and_numpy_is_not_changed(engine):
    """In a process of its own, in which nobody can have done anything yet."""
    script = f"""
import sys
import gym, numpy as np
from rlplay.engine.rollout.{engine.__name__.rpartition(".")[2]} import rollout
from rlplay.testing import CountingActor

class Actor(CountingActor):
    def forward(self, obs, **inputs):
        act, hx, info = super().forward(obs, **inputs)
        return act % 2, hx, info

before = dict(vars(np))
assert "gym.envs.classic_control.acrobot" not in sys.modules
with rollout([lambda: gym.make("Acrobot-v1")], Actor(), 20) as feed:  # its module is imported when it is made
    next(feed)
    assert gym.envs.classic_control.acrobot.np.float_ is np.float64
with rollout([gym.make("CartPole-v1"), lambda: gym.make("CartPole-v1")], Actor(), 20) as feed:
    next(feed)
assert set(vars(np)) - set(before) <= {{"__warningregistry__"}}
assert all(vars(np)[name] is value for name, value in before.items())
assert not hasattr(np, "bool8") and not hasattr(np, "float_")
checker = gym.utils.passive_env_checker
assert gym.spaces.box.np is gym.envs.classic_control.cartpole.np is gym.core.np is np
assert checker.np is not np and checker.np.bool8 is np.bool_ and checker.np.ndarray is np.ndarray
assert not hasattr(checker.np, "float_")
print("all is well")
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "all is well", done.stderr


def test_gymnasium_is_not_changed():
    gymnasium = pytest.importorskip("gymnasium")
    with same.rollout([gymnasium.make("Acrobot-v1")], actor_for(gymnasium.make("Acrobot-v1")), 3) as feed:
        next(feed)
    for name in ("gymnasium.utils.passive_env_checker", "gymnasium.envs.classic_control.acrobot"):
        assert importlib.import_module(name).np is np


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
@engines
def test_the_loop_of_the_readme_runs_over_a_vector_environment(engine, mode):
    gymnasium = pytest.importorskip("gymnasium")
    kwargs = {"autoreset_mode": gymnasium.vector.AutoresetMode[mode]}
    envs = gymnasium.make_vec("CartPole-v1", num_envs=4, vectorization_mode="sync", vector_kwargs=kwargs)
    actor = PolicyAndValue(4, 2)
    with engine.rollout(envs, actor, n_steps=20) as feed:
        for _, fragment in zip(range(2), feed):  # noqa: B905
            assert fragment.state.obs.shape == (21, 4, 4)
            policy_gradient(fragment, actor).backward()


# --- what cannot be recorded ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("where", ["observation_space", "action_space"])
@pytest.mark.parametrize("kind", ["Text", "Sequence", "Dict"])
@libraries
@engines
def test_spaces_whose_values_have_no_fixed_shape_are_refused(engine, library, kind, where):
    spaces = pytest.importorskip(f"{library}.spaces")
    env = LedgerEnv(spaces)
    odd = {
        "Text": lambda: spaces.Text(5),
        "Sequence": lambda: spaces.Sequence(spaces.Discrete(2)),
        "Dict": lambda: spaces.Dict({"good": spaces.Discrete(2), "odd": spaces.Text(5)}),
    }[kind]()
    setattr(env, where, odd)
    with pytest.raises(TypeError, match=r"cannot record .*(Text|Sequence)\(.*Box, Discrete"):
        engine.rollout([env], CountingActor(), 3)
    assert env.resets == 0
