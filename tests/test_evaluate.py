"""Playing whole episodes."""

import gym
import numpy as np
import pytest
import torch

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same
from rlplay.engine.rollout.evaluate import evaluate


class Actor(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, obs, *, hx=None, stepno, virtual, **ignored):
        logits = self.head(obs)
        drawn = sampling.categorical(logits, generator=self.generator)
        act = drawn if self.training else logits.argmax(dim=-1)
        return act, hx, {"stepno": stepno, "virtual": torch.full_like(stepno, virtual), "act": act}


class Countdown(gym.Env):
    """Ends after so many steps, with rewards 1, 2, 3, ..."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length):
        self.length, self.t, self.steps, self.shown = length, 0, 0, 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.t += 1
        self.steps += 1
        return np.zeros(4, np.float32), float(self.t), self.t == self.length, False, {}

    def render(self):
        self.shown += 1


def test_every_environment_is_played_to_the_end_of_one_episode():
    envs = [Countdown(length) for length in (3, 1, 5)]
    rewards, info = evaluate(envs, Actor())
    assert rewards.dtype == np.float32
    assert rewards.T.tolist() == [[1, 2, 3, 0, 0], [1, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert [env.steps for env in envs] == [3, 1, 5]
    assert info["stepno"].shape == (6, 3)
    assert info["stepno"][:, 2].tolist() == [0, 1, 2, 3, 4, 0]
    assert info["virtual"][:, 0].tolist() == [0, 0, 0, 0, 0, 1]


def test_at_most_n_steps_are_taken():
    envs = [Countdown(length) for length in (3, 9)]
    rewards, info = evaluate(envs, Actor(), n_steps=4)
    assert rewards.T.tolist() == [[1, 2, 3, 0], [1, 2, 3, 4]]
    assert envs[1].steps == 4
    assert len(info["stepno"]) == 5
    assert info["stepno"][-1, 1] == 4


def test_every_state_is_rendered_once():
    env = Countdown(3)
    evaluate([env], Actor(), render=True)
    assert env.shown == 4


def test_the_mode_of_the_actor_decides_whether_it_is_greedy():
    actor = Actor().eval()
    envs = [gym.make("CartPole-v1") for _ in range(3)]
    torch.manual_seed(0)
    first, _ = evaluate(envs, actor)
    torch.manual_seed(0)
    again, _ = evaluate(envs, actor)
    assert np.array_equal(first, again)
    torch.manual_seed(0)
    sampled, _ = evaluate(envs, actor.train())
    assert sampled.shape != first.shape or not np.array_equal(first, sampled)


def test_an_open_feed_over_the_same_environments_is_closed_first():
    env = Countdown(3)
    feed = same.rollout([env], Actor(), 2)
    with pytest.warns(RuntimeWarning, match="open feed"):
        evaluate([env], Actor())
    with pytest.raises(RuntimeError, match="closed"):
        next(feed)


def test_factories_are_closed_and_errors_are_noted():
    made = []

    class Closing(Countdown):
        def __init__(self):
            super().__init__(3)
            self.closed = 0
            made.append(self)

        def close(self):
            self.closed += 1

    class Failing(Closing):
        def step(self, action):
            raise OSError("the simulator is gone")

    evaluate([Closing, Closing], Actor())
    assert [env.closed for env in made] == [1, 1]
    with pytest.raises(OSError, match="gone") as caught:
        evaluate([Closing, Failing], Actor())
    assert "environment 1" in caught.value.__notes__[0]
    assert made[-1].closed == 1


def test_wrong_arguments_are_refused():
    with pytest.raises(ValueError, match="n_steps"):
        evaluate([Countdown(3)], Actor(), n_steps=0)
    with pytest.raises(ValueError, match="empty"):
        evaluate([], Actor())
