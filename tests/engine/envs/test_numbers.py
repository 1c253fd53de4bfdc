"""Rewards and flags may be anything that is one number; of a vector environment, one for each part."""

from __future__ import annotations

from fractions import Fraction

import numpy as np
import pytest
import torch
from gym.spaces import Box, Discrete

from rlplay.engine.rollout import same, threaded
from tests.support.scripted import LENGTH, ScriptedActor, ScriptedEnv

FORMS = {
    "list": lambda x: [x],
    "tuple in a list": lambda x: [(x,)],
    "array without dimensions": np.asarray,
    "array": lambda x: np.array([x]),
    "array (1, 1)": lambda x: np.array([[x]]),
    "numpy scalar": lambda x: np.asarray(x)[()],
    "numpy float": lambda x: np.float32(x),
    "tensor": torch.tensor,
    "tensor (1,)": lambda x: torch.tensor([x]),
    "tensor with a graph": lambda x: torch.tensor([float(x)], requires_grad=True),
    "bfloat16": lambda x: torch.tensor(float(x), dtype=torch.bfloat16),
    "int": int,
    "float": float,
    "fraction": lambda x: Fraction(int(x)),
    "uint8": np.uint8,
    "long double": np.longdouble,
    "long double in a list": lambda x: [np.longdouble(x)],
    "long double array": lambda x: np.array([x], np.longdouble),
}

NO_NUMBERS = {
    "none": None,
    "string": "False",
    "empty list": [],
    "two": [False, True],
    "two in an array": np.zeros(2),
    "dict": {},
    "list of none": [None],
    "array of strings": np.array(["1"]),
    "object": object(),
    "complex": 1j,
    "long complex": np.array([1], np.clongdouble),
}


class Clothed(ScriptedEnv):
    """Returns reward and flags in some form; at its second step, others."""

    def __init__(self, form=lambda x: x, second=None, where=(0, 1, 2)):
        super().__init__()
        self.form, self.second, self.where = form, second or (lambda x: x), where

    def step(self, action):
        obs, *numbers, info = super().step(action)
        form = self.second if self.counts["step"] == 2 else self.form
        return obs, *(form(x) if k in self.where else x for k, x in enumerate(numbers)), info


class OldClothed(Clothed):
    def reset(self):
        return super().reset()[0]

    def step(self, action):
        obs, rew, terminated, _, info = super().step(action)
        return obs, rew, terminated, info


@pytest.mark.parametrize("cls", [Clothed, OldClothed])
@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
def test_anything_that_is_one_number_is_a_reward_or_a_flag(form, cls):
    with same.rollout([cls(form), cls()], ScriptedActor(), 7) as feed:
        fragment = next(feed)
        episodes = feed.episodes()
    assert fragment.env.terminated[:, 0].tolist() == fragment.env.terminated[:, 1].tolist()
    assert fragment.env.terminated[:, 0].nonzero().flatten().tolist() == [LENGTH - 1, 2 * LENGTH - 1]
    assert not fragment.env.truncated.any()
    assert fragment.state.rew[:, 0].tolist() == list(range(8))
    assert [episode.ret for episode in episodes if episode.env == 0] == [6, 15]
    assert [type(episode.ret) for episode in episodes] == [float] * 4


@pytest.mark.parametrize("value", NO_NUMBERS.values(), ids=NO_NUMBERS)
@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("cls", [Clothed, OldClothed])
def test_all_else_is_refused_with_environment_and_step(cls, where, value):
    if cls is OldClothed and where == 2:
        pytest.skip("the old API has one flag")
    env = cls(second=lambda x: value, where=[where])
    with threaded.rollout([ScriptedEnv(), env], ScriptedActor(), 5) as feed:
        name = ("reward", "done" if cls is OldClothed else "terminated", "truncated")[where]
        with pytest.raises(ValueError, match=f"expected .*{name}.* to be one (number|bool), got ") as caught:
            next(feed)
    assert "environment 1, in env.step, at step 1 of fragment 0" in caught.value.__notes__[0]


@pytest.mark.parametrize("nan", [float("nan"), np.float32("nan"), [float("nan")], torch.tensor(float("nan"))], ids=str)
def test_a_flag_that_is_nan_is_refused(nan):
    feed = same.rollout([Clothed(second=lambda x: nan, where=[1])], ScriptedActor(), 5)
    with pytest.raises(ValueError, match=r"`terminated` to be one bool, got .*nan"):
        next(feed)


@pytest.mark.parametrize(
    "true", [True, np.True_, 1, np.int8(1), [True], np.array([[1.0]]), torch.tensor(True)], ids=str
)
def test_a_time_limit_of_the_old_api_may_be_told_in_any_form(true):
    class Cut(OldClothed):
        def step(self, action):
            *answer, _ = super().step(action)
            return *answer, {"TimeLimit.truncated": true}

    with same.rollout([Cut()], ScriptedActor(), 4) as feed:
        env = next(feed).env
    assert env.truncated.flatten().tolist() == [False, False, True, False]
    assert not env.terminated.any()


class Vector:
    """Two parts in DISABLED mode, whose episodes never end, but for what ``forms`` makes of the answers."""

    num_envs, metadata = 2, {"autoreset_mode": "DISABLED"}
    single_observation_space, single_action_space = Box(-9, 9, (), np.float32), Discrete(2)

    def __init__(self, reward=lambda x: x, terminated=lambda x: x, truncated=lambda x: x):
        self.forms, self.n = (reward, terminated, truncated), 0

    def reset(self, *, seed=None, options=None):
        return np.zeros(2, np.float32), {}

    def step(self, actions):
        self.n += 1
        flags = np.array([self.n == 2, False])
        numbers = np.array([1.0, 2.0]) * self.n, flags, ~flags & False
        return np.zeros(2, np.float32), *(form(x) for form, x in zip(self.forms, numbers, strict=True)), {}


VECTORS = {
    "column": lambda x: x[:, None],
    "list": list,
    "tuple of arrays": lambda x: tuple(x[:, None]),
    "tensor": torch.from_numpy,
    "tensor column": lambda x: torch.from_numpy(x)[:, None],
    "integers": lambda x: x.astype(np.int32),
    "float16": lambda x: x.astype(np.float16),
    "lists of one": lambda x: x[:, None].tolist(),
    "objects": lambda x: np.array([Fraction(float(one)) for one in x], object),
}


@pytest.mark.parametrize("form", VECTORS.values(), ids=VECTORS)
def test_a_vector_environment_returns_one_for_each_part(form):
    with same.rollout(Vector(form, form, form), ScriptedActor(), 3) as feed:
        fragment = next(feed)
        assert [episode.ret for episode in feed.episodes()] == [3]
    assert fragment.state.rew[1:].tolist() == [[1, 2], [2, 4], [3, 6]]
    assert fragment.env.terminated.tolist() == [[False, False], [True, False], [False, False]]
    assert not fragment.env.truncated.any()


OTHERS = {
    "one number": lambda x: 1.0,
    "one bool": lambda x: False,
    "one numpy bool": lambda x: np.False_,
    "array without dimensions": lambda x: np.zeros(()),
    "array of one": lambda x: np.zeros(1),
    "list of one": lambda x: [False],
    "tensor of one": lambda x: torch.zeros(1),
    "row": lambda x: x[None],
    "three": lambda x: np.zeros(3),
    "a matrix": lambda x: np.zeros((2, 2)),
    "none": lambda x: None,
    "strings": lambda x: ["a", "b"],
    "objects": lambda x: np.array([None, None]),
    "nones": lambda x: [None, None],
}


@pytest.mark.parametrize("where", [0, 1, 2])
@pytest.mark.parametrize("form", OTHERS.values(), ids=OTHERS)
def test_nothing_of_a_vector_environment_is_broadcast(form, where):
    forms = [lambda x: x] * 3
    forms[where] = form
    with same.rollout(Vector(*forms), ScriptedActor(), 3) as feed:
        match = r"(the reward|`terminated`|`truncated`) of the vector environment .* each of its 2 parts.*\(2,\) or"
        with pytest.raises(ValueError, match=match) as caught:
            next(feed)
    assert "the vector environment, in env.step, at step 0" in caught.value.__notes__[0]


def test_flags_of_a_vector_environment_that_are_nan_are_refused():
    feed = same.rollout(Vector(truncated=lambda x: np.array([0.0, np.nan])), ScriptedActor(), 3)
    with pytest.raises(ValueError, match=r"`truncated` of the vector environment to be bools, got .*nan"):
        next(feed)
