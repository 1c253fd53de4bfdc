"""The pages of algorithms: each is run for a few steps, and by the learning command each reaches its threshold."""

from __future__ import annotations

import importlib
import pkgutil
import subprocess
import sys
from functools import partial
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch

from rlplay.zoo import pages
from rlplay.zoo.pages import her, ppo, rnd

learning = pytest.mark.learning
every_seed = pytest.mark.parametrize("seed", [0, 1, 2])

THRESHOLDS = {
    "a2c": (475, 100),
    "c51": (475, 100),
    "dqn": (475, 100),
    "her": (-4.3, 100),
    "impala": (475, 100),
    "ppo": (475, 100),
    "qrdqn": (475, 100),
    "r2d2": (0.95, 100),
    "rainbow": (475, 100),
    "rnd": (0.9, 100),
    "sac": (-200, 10),
    "td3": (-200, 10),
}
"""Of each page: the mean return that it reaches, and the number of episodes that the mean is over."""

NAMES = [name for _, name, _ in pkgutil.iter_modules(pages.__path__)]


@pytest.fixture(autouse=True)
def one_thread():
    n = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(n)


def train_of(name):
    return importlib.import_module(f"rlplay.zoo.pages.{name}").train


def best_mean(train, threshold, last, **options):
    """Train until the mean return of the last episodes reaches the threshold; return the best mean."""
    returns, best = [], -float("inf")
    for _, ended in train(**options):
        returns = [*returns, *ended][-last:]
        if len(returns) == last:
            best = max(best, sum(returns) / last)
            if best >= threshold:
                break
    return best


@pytest.mark.parametrize("name", NAMES)
def test_every_page_runs_and_updates(name, monkeypatch):
    updates = []
    step = torch.optim.Adam.step
    monkeypatch.setattr(torch.optim.Adam, "step", lambda self, *args: updates.append(1) or step(self, *args))
    training = train_of(name)(seed=0, steps=1100 if name in ("sac", "td3") else 500)
    counts = [steps for steps, _ in training]
    assert counts == sorted(counts)
    assert updates
    assert set(NAMES) == set(THRESHOLDS)


@pytest.mark.parametrize(
    ("name", "options"),
    [
        ("ppo", {"n_envs": 2, "n_steps": 32, "normalise": False, "orthogonal": False, "log_std": -1.0, "max_kl": None}),
        ("sac", {"n_steps": 1, "warm_up": 20, "batch_size": 4, "hidden": (8, 8)}),
    ],
    ids=["ppo", "sac"],
)
def test_pages_take_their_hyperparameters_as_arguments(name, options):
    counts = [steps for steps, _ in train_of(name)("Pendulum-v1", 0, 128, **options)]
    assert counts == list(range(counts[0], 129, options["n_steps"] * options.get("n_envs", 1)))


@pytest.mark.parametrize("dtype", [np.float64, np.int16])
def test_environments_of_pages_have_float32_observations_and_get_clipped_actions(dtype):
    gymnasium = pytest.importorskip("gymnasium")

    class Echo(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-9, 9, (2,), dtype)
        action_space = gymnasium.spaces.Box(-1.0, 1.0, (2,))

        def reset(self, *, seed=None, options=None):
            return np.zeros(2, dtype), {}

        def step(self, action):
            return action.astype(dtype), 0.0, False, False, {}

    gymnasium.register("Echo-v0", Echo, disable_env_checker=True)
    try:
        (clipped,), (plain,) = pages.make("Echo-v0", 1, clip=True), pages.make("Echo-v0", 1)
    finally:
        del gymnasium.registry["Echo-v0"]
    for env, expected in ((clipped, [1.0, -1.0]), (plain, [1.0, -3.0])):
        env.reset()
        obs, *_ = env.step(np.array([1.0, -3.0], np.float32))
        assert env.observation_space.dtype == obs.dtype == np.float32
        np.testing.assert_array_equal(obs, expected)


@pytest.mark.parametrize("name", ["ppo", "r2d2"])
def test_a_page_repeats_with_its_seed(name):
    def returns(seed):
        return list(islice(train_of(name)(seed=seed), 3 if name == "ppo" else 8))

    assert returns(0) == returns(0) != returns(1)


def test_a_page_is_a_program():
    command = [sys.executable, "-m", "rlplay.zoo.pages.r2d2", "--env", "Recall", "--seed", "1", "--steps", "6000"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert "steps: mean return of the last 20 episodes" in done.stdout


def test_a_page_prints_a_line_for_each_interval_and_one_for_the_end(monkeypatch, capsys):
    def train(env, seed, steps):
        yield from [(40, []), (80, [1.0, 2.0]), (120, []), (steps, [6.0])]

    monkeypatch.setattr(sys, "argv", ["page", "--steps=160"])
    pages.run(train, env="CartPole-v1", steps=1, every=80)
    pages.run(train, env="CartPole-v1", steps=1, every=1000)
    assert capsys.readouterr().out.splitlines() == [
        "       80 steps: mean return of the last 2 episodes 1.5",
        "      160 steps: mean return of the last 3 episodes 3",
        "      160 steps: mean return of the last 3 episodes 3",
    ]


def test_a_page_that_ends_before_an_episode_does_says_so(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["page"])
    pages.run(lambda env, seed, steps: iter([(40, [])]), env="Pendulum-v1", steps=40)
    assert capsys.readouterr().out == "       40 steps: no episode has ended\n"


@pytest.mark.parametrize("option", ["--steps=0", "--seed=-1"])
def test_a_page_refuses_numbers_out_of_range(option, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["ppo", option])
    with pytest.raises(SystemExit, match="2"):
        pages.run(ppo.train, env="CartPole-v1", steps=1)
    assert "--seed must be at least 0, and --steps at least 1; got " in capsys.readouterr().err


@pytest.mark.parametrize("name", NAMES)
def test_pages_are_short_and_show_their_loop(name):
    lines = Path(importlib.import_module(f"rlplay.zoo.pages.{name}").__file__).read_text().splitlines()
    assert len(lines) <= 150
    assert any("loss.backward()" in line or "distilled).backward()" in line for line in lines)


@learning
@every_seed
@pytest.mark.timeout(900)
@pytest.mark.parametrize("name", THRESHOLDS)
def test_every_page_reaches_its_threshold(name, seed):
    threshold, last = THRESHOLDS[name]
    assert best_mean(train_of(name), threshold, last, seed=seed) >= threshold


@learning
@pytest.mark.timeout(900)
@pytest.mark.parametrize(
    ("train", "steps", "threshold"),
    [(partial(her.train, fraction=0.0), 20_000, -9), (partial(rnd.train, curiosity=0.0), 50_000, 0.9)],
    ids=["her", "rnd"],
)
def test_without_hindsight_or_curiosity_these_tasks_are_not_learnt(train, steps, threshold):
    assert best_mean(train, threshold, 100, seed=0, steps=steps) < threshold
