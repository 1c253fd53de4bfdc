"""What `reset` and `step` have forgotten to return is named: the info, the `return` itself."""

from __future__ import annotations

from collections import UserDict
from types import MappingProxyType

import gymnasium
import numpy as np
import pytest
import torch
from gym.spaces import Box, Dict

from rlplay.engine.rollout import same, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import CountingActor
from tests.support.scripted import ScriptedActor, ScriptedEnv
from tests.support.tensors import Script, ScriptActor

ENGINES = {
    "same": lambda env: next(same.rollout([env], ScriptedActor(), 8)),
    "threaded": lambda env: next(threaded.rollout([env], ScriptedActor(), 8)),
    "worker": lambda env: next(threaded.rollout([lambda: env], ScriptedActor(), 8, workers=1, worker="thread")),
    "evaluate": lambda env: evaluate([env], ScriptedActor()),
}
engines = pytest.mark.parametrize("play", ENGINES.values(), ids=ENGINES)


class Returns:
    """Has two functions, which make of the right values what `step` and `reset` return."""

    def __init__(self, of_step=lambda *values: values, of_reset=lambda *values: values):
        super().__init__()
        self.of_step, self.of_reset = of_step, of_reset


class Steps(Returns, ScriptedEnv):
    """Single."""

    def step(self, action):
        return self.of_step(*super().step(action))

    def reset(self, *, seed=None):
        return self.of_reset(*super().reset())


class Falls(Steps):
    """Returns nothing from its second `reset`."""

    def reset(self, *, seed=None):
        result = super().reset()
        return result if self.counts["reset"] == 1 else None


class FallsOld(Falls):
    """The same with the old API."""

    def reset(self, *, seed=None):
        result = super().reset()
        return result and result[0]


LASTS = {"bool": False, "numpy bool": np.False_, "number": 0, "array": np.zeros(1), "tensor": torch.tensor(True)}


@engines
def test_a_forgotten_info_is_named(play):
    with pytest.raises(ValueError, match="step` returned 4 values, the last a bool: the old API is") as caught:
        play(Steps(lambda obs, rew, terminated, truncated, info: (obs, rew, terminated, truncated)))
    assert str(caught.value) == (
        "`step` returned 4 values, the last a bool: the old API is (obs, reward, done, info). Is the info dict "
        "missing? Return (obs, reward, terminated, truncated, {})."
    )
    assert "environment 0, in env.step" in caught.value.__notes__[0]


@pytest.mark.parametrize("last", LASTS.values(), ids=LASTS)
def test_the_last_of_four_values_must_be_an_info(last):
    with pytest.raises(ValueError, match=f"4 values, the last a {type(last).__name__}: the old API"):
        ENGINES["same"](Steps(lambda obs, rew, terminated, truncated, info: (obs, rew, terminated, last)))


INFOS = {"dict": {}, "none": None, "mapping": UserDict(), "proxy": MappingProxyType({}), "list": []}


@pytest.mark.parametrize("info", INFOS.values(), ids=INFOS)
def test_the_old_api_goes_on_with_whatever_is_no_flag(info):
    ENGINES["same"](Steps(lambda obs, rew, terminated, truncated, _: (obs, rew, terminated, info)))


@engines
def test_a_step_without_return_is_named(play):
    with pytest.raises(ValueError, match=r"expected `step` to return .*, got None: is a `return` missing\?"):
        play(Steps(lambda *values: None))


@engines
def test_a_reset_without_return_is_named(play):
    with pytest.raises(ValueError, match=r"`reset` returned None: is `return observation, info` missing\?") as caught:
        play(Steps(of_reset=lambda *values: None))
    assert "likely cause" not in str(caught.value)


@pytest.mark.parametrize("kind", [Falls, FallsOld])
def test_so_is_a_later_reset_without_return(kind):
    with pytest.raises(ValueError, match=r"`reset` returned None: is `return observation, info` missing\?") as caught:
        ENGINES["same"](kind())
    assert "environment 0, in env.reset" in caught.value.__notes__[0]


@pytest.mark.parametrize("space", [None, Dict({"a": Box(-1, 1, (2,), np.float32)})], ids=["Box", "Dict"])
def test_an_observation_that_is_none_is_named(space):
    def nothing(obs, *rest):
        return None, *rest

    env = Steps(of_reset=nothing)
    env.observation_space = space or env.observation_space
    with pytest.raises(ValueError, match=r"obs: the observation is None: is a `return` missing where it is made\?"):
        ENGINES["same"](env)
    if space is None:
        with pytest.raises(ValueError, match=r"obs: the observation is None: is a `return` missing where it is made\?"):
            ENGINES["same"](Steps(of_step=nothing))


class Vector(Returns, gymnasium.vector.VectorEnv):
    """Of two parts, in NumPy."""

    num_envs = 2
    metadata = {"autoreset_mode": gymnasium.vector.AutoresetMode.NEXT_STEP}  # noqa: RUF012
    single_observation_space = gymnasium.spaces.Box(-1, 1, (3,), np.float32)
    single_action_space = gymnasium.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        return self.of_reset(np.zeros((2, 3), np.float32), {})

    def step(self, action):
        return self.of_step(np.zeros((2, 3), np.float32), np.zeros(2), np.zeros(2, bool), np.zeros(2, bool), {})


class OfTensors(Returns, Script):
    """In torch."""

    def reset(self, *, seed=None, options=None):
        return self.of_reset(*super().reset(seed=seed, options=options))

    def step(self, action):
        return self.of_step(*super().step(action))


VECTORS = {"numpy": Vector, "torch": OfTensors}
vectors = pytest.mark.parametrize("kind", VECTORS.values(), ids=VECTORS)


def play_vector(env):
    actor = ScriptActor(env) if isinstance(env, Script) else CountingActor("discrete")
    return next(same.rollout(env, actor, 8))


@vectors
def test_what_a_vector_environment_has_forgotten_is_named(kind):
    with pytest.raises(ValueError, match=r"4 values, the last a (ndarray|Tensor).*Is the dict of infos missing\?"):
        play_vector(kind(lambda *values: values[:4]))
    with pytest.raises(ValueError, match=r"`step` of the vector environment .*, got None: is a `return` missing\?"):
        play_vector(kind(lambda *values: None))
    with pytest.raises(ValueError, match=r"`step` of the vector environment to return .*, got 3 values"):
        play_vector(kind(lambda *values: values[:3]))


def test_a_vector_environment_of_the_old_api_is_named():
    with pytest.raises(ValueError, match=r"`step` of the vector environment to return .*, got 4 values"):
        play_vector(Vector(lambda obs, rew, terminated, truncated, info: (obs, rew, terminated, info)))


def test_a_vector_reset_without_return_is_named():
    with pytest.raises(ValueError, match=r"`reset` .* returned None: is `return observations, infos` missing\?"):
        play_vector(Vector(of_reset=lambda *values: None))


@vectors
def test_infos_of_a_vector_environment_may_be_none(kind):
    infos = iter([None, {"score": 3.0}])
    env = kind(lambda *values: (*values[:4], next(infos)), lambda obs, _: (obs, None))
    actor = ScriptActor(env) if isinstance(env, Script) else CountingActor("discrete")
    with same.rollout(env, actor, 2, info=("score",)) as feed:
        score = next(feed).env.info["score"]
    assert score.isnan()[0].all()
    assert (score[1] == 3).all()


@vectors
def test_a_list_of_infos_of_a_vector_environment_is_refused_with_the_remedy(kind):
    with pytest.raises(ValueError, match=r"infos .* to be a dict, got list\. .*DictInfoToList.* Take it off"):
        play_vector(kind(lambda *values: (*values[:4], [{}, {}])))


def test_a_wrapper_that_makes_a_list_of_infos_is_named_at_the_call():
    with pytest.raises(ValueError, match=r"infos .* to be a dict, got list\. .*DictInfoToList.* Take it off"):
        same.rollout(gymnasium.wrappers.vector.DictInfoToList(Vector()), CountingActor("discrete"), 8)
