"""What `reset` returns: observations whose containers are not those of the space, infos; resets without a seed."""

from __future__ import annotations

import sys
from collections import namedtuple
from functools import partial
from typing import NamedTuple

import cloudpickle
import numpy as np
import pytest
import torch
from gym.spaces import Box, Dict, Discrete, Tuple

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, multi, same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from tests.support.assertions import assert_same_bytes
from tests.support.scripted import ScriptedActor, ScriptedEnv

cloudpickle.register_pickle_by_value(sys.modules[__name__])


class Pair(NamedTuple):
    a: object
    b: object


class Vec(NamedTuple):
    a: float
    b: float
    c: float


ZEROS = np.zeros(2, np.float32)
BOX, BOX3, BOX22 = Box(-1, 1, (2,), np.float32), Box(-1, 1, (3,), np.float32), Box(-1, 1, (2, 2), np.float32)
OBSERVATIONS = {
    # space, an observation that fits, one that does not, words of the message
    "named tuple for a Box": (BOX, ZEROS, Pair(0.0, 0.0), ["obs: ", "a named tuple Pair of a, b"]),
    "named tuple of three": (BOX3, np.zeros(3, np.float32), Vec(0.0, 0.0, 0.0), ["obs: ", "named tuple Vec"]),
    "named tuple of arrays": (BOX22, np.zeros((2, 2), np.float32), Pair(ZEROS, ZEROS), ["a named tuple Pair"]),
    "list of named tuples": (BOX22, np.zeros((2, 2), np.float32), [Pair(0.0, 0.0)] * 2, ["a list with a named tuple"]),
    "named tuple with a dict": (BOX22, np.zeros((2, 2), np.float32), Pair([0.0, 0.0], {}), ["a named tuple Pair"]),
    "dict for a Box": (BOX, ZEROS, {"a": ZEROS}, ["obs: ", "a dict with keys ['a']"]),
    "dict for a Discrete": (Discrete(3), 0, {"a": 0}, ["obs: ", "a dict with keys ['a']"]),
    "dict for a Tuple": (Tuple((BOX, BOX)), (ZEROS, ZEROS), {"a": ZEROS, "b": ZEROS}, ["a tuple of 2 parts", "a dict"]),
    "array for a Tuple": (Tuple((BOX, BOX)), (ZEROS, ZEROS), np.zeros((2, 2), np.float32), ["a tuple of 2", "ndarray"]),
    "array for a Dict": (Dict({"a": BOX}), {"a": ZEROS}, ZEROS, ["a dict with keys ['a']", "ndarray"]),
    "tuple for a Dict": (Dict({"a": BOX, "b": BOX}), {"a": ZEROS, "b": ZEROS}, (ZEROS, ZEROS), ["a tuple of 2 parts"]),
    "deep": (
        Dict({"a": Tuple((BOX, Dict({"c": BOX})))}),
        {"a": (ZEROS, {"c": ZEROS})},
        {"a": (ZEROS, {"c": Pair(0.0, 0.0)})},
        ["obs['a'][1]['c']: ", "a named tuple Pair"],
    ),
    "deep dict": (Dict({"a": Tuple((BOX,))}), {"a": (ZEROS,)}, {"a": ({"b": ZEROS},)}, ["obs['a'][0]: ", "a dict"]),
}
CAUSE = "a wrapper that changes observations without setting `observation_space` is the likely cause"


class Shows(ScriptedEnv):
    def __init__(self, space, observations):
        super().__init__()
        self.observation_space, self.observations = space, observations

    def _obs(self):
        n = self.counts["step"]
        return self.observations[min(n, len(self.observations) - 1)]


@pytest.mark.parametrize("old", [False, True], ids=["", "old"])
@pytest.mark.parametrize(("space", "right", "wrong", "words"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_containers_other_than_those_of_the_space_are_refused_at_the_call_and_later(space, right, wrong, words, old):
    class Env(Shows):
        def reset(self, *, seed=None):
            return super().reset()[0] if old else super().reset()

    with pytest.raises(ValueError, match="obs") as caught:
        same.rollout([Env(space, [wrong])], ScriptedActor(), 3)
    assert [word for word in [*words, CAUSE] if word not in str(caught.value)] == [], str(caught.value)
    assert "environment 0, in env.reset" in caught.value.__notes__[0]
    feed = threaded.rollout([Env(space, [right]), Env(space, [right, right, wrong])], ScriptedActor(), 4)
    with pytest.raises(ValueError, match="obs") as caught:
        next(feed)
    assert [word for word in [*words, CAUSE] if word not in str(caught.value)] == [], str(caught.value)
    assert "environment 1, in env.step, at step 1 of fragment 0" in caught.value.__notes__[0]


@pytest.mark.parametrize("kind", [Pair, namedtuple("Other", "a b")])
def test_named_tuples_in_the_place_of_a_tuple_keep_their_names(kind):
    seen = []

    class Looks(ScriptedActor):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            seen.append(type(obs))
            return super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)

    with same.rollout([Shows(Tuple((BOX, Discrete(3))), [kind(ZEROS, 1)])], Looks(), 3) as feed:
        obs = next(feed).state.obs
    assert {type(obs), *seen} == {kind}
    assert obs.b.dtype == torch.int64


def test_lists_and_tuples_of_numbers_are_arrays():
    with same.rollout([Shows(BOX22, [[(1.0, 2.0), [3.0, 4.0]], (ZEROS, ZEROS)])], ScriptedActor(), 1) as feed:
        assert next(feed).state.obs[:, 0].tolist() == [[[1, 2], [3, 4]], [[0, 0], [0, 0]]]


# --- infos of reset ---------------------------------------------------------------------------------------------------


class Told(ScriptedEnv):
    def __init__(self, info):
        super().__init__()
        self.info = info

    def reset(self, *, seed=None):
        return super().reset()[0], self.info


@pytest.mark.parametrize("info", [[], [{}], "info", 0, (), False, np.zeros(3)], ids=repr)
def test_an_info_of_reset_that_is_no_dict_is_reported_as_such(info):
    with pytest.raises(ValueError, match=r"the observation fits its space, but the info is .*, of type") as caught:
        same.rollout([Told(info)], ScriptedActor(), 3)
    assert "`reset`" in str(caught.value)
    assert f"of type {type(info).__name__}: return a dict" in str(caught.value)
    assert "environment 0, in env.reset" in caught.value.__notes__[0]


@pytest.mark.parametrize("info", [{}, None])
def test_an_info_of_reset_may_be_a_dict_or_none(info):
    with same.rollout([Told(info)], ScriptedActor(), 3) as feed:
        next(feed)


@pytest.mark.parametrize("old", [False, True], ids=["", "old"])
def test_what_reset_and_step_return_may_be_lists(old):
    class Lists(ScriptedEnv):
        def reset(self, *, seed=None):
            obs, info = super().reset()
            return obs.tolist() if old else [obs.tolist(), info]

        def step(self, action):
            obs, *rest = super().step(action)
            return [obs.tolist(), *rest]

    fragments = []
    for kind in (Lists, ScriptedEnv):
        with same.rollout([kind()], ScriptedActor(), 7, final=True) as feed:
            fragments.append(next(feed))
    assert_same_bytes(*fragments)


def test_observations_that_are_pairs_are_no_infos():
    with same.rollout([Shows(Tuple((BOX, BOX)), [(ZEROS, ZEROS)])], ScriptedActor(), 3) as feed:
        next(feed)


# --- names in the place of environments -------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["LunarLander-v3", "CartPole-v1", ""])
def test_a_name_in_the_place_of_environments_is_refused_with_the_remedy(name):
    for call in (same.rollout, threaded.rollout, episodic.rollout, evaluate):
        with pytest.raises(
            TypeError, match=f"`envs` must be a list of environments or of factories.*got the name '{name}'"
        ) as caught:
            call(name, ScriptedActor())
        assert f"[gym.make('{name}') for _ in range(8)]" in str(caught.value)
        assert f"[lambda: gym.make('{name}')] * 8" in str(caught.value)
        with pytest.raises(
            TypeError, match=rf"`envs\[0\]` is neither an environment nor a factory: '{name}'.*gym\.make"
        ):
            call([name], ScriptedActor())
    for call in (single.rollout, multi.rollout):
        with pytest.raises(TypeError, match=rf"`factory` must be a callable.*'{name}'; write `lambda: gym\.make"):
            call(name, ScriptedActor())


def test_a_dict_of_environments_is_refused():
    with pytest.raises(TypeError, match="`envs` must be a list"):
        same.rollout({"a": ScriptedEnv()}, ScriptedActor())


# --- seeds of the user's own ------------------------------------------------------------------------------------------


class Random(ScriptedEnv):
    """Observes random numbers of its own generator, and the seeds that it was given."""

    observation_space = Box(-np.inf, np.inf, (2,), np.float64)

    def __init__(self, seed=7):
        super().__init__()
        self.made_with, self.seeds = seed, []
        self.rng = np.random.default_rng(seed)

    def reset(self, *, seed=None, options=None):
        self.seeds.append(seed)
        if seed is not None:
            self.rng = np.random.default_rng(seed)
        return super().reset()

    def _obs(self):
        return np.array([self.rng.random(), self.made_with])


class OldRandom(Random):
    def seed(self, seed=None):
        self.rng = np.random.default_rng(seed)

    def reset(self):
        return super().reset()[0]


class Unseeded:
    """A wrapper of no library, without the method `seed`."""

    observation_space, action_space = Random.observation_space, Random.action_space

    def __init__(self, name, env):
        self.name = name
        setattr(self, name, env)

    def reset(self):
        return getattr(self, self.name).reset()

    def step(self, action):
        return getattr(self, self.name).step(action)


@pytest.mark.parametrize("wrapped", [lambda env: env, partial(Unseeded, "env"), partial(Unseeded, "inner")])
def test_an_environment_of_the_old_api_is_seeded_through_wrappers_without_the_method(wrapped):
    obs = []
    for rng in (7, 8):
        with same.rollout([wrapped(wrapped(OldRandom(rng)))], ScriptedActor(), 3, seed=5) as feed:
            obs.append(next(feed).state.obs[:, 0, 0].tolist())
    assert obs[0] == obs[1]


def make_unseeded(name="env"):
    return Unseeded(name, Random())


def make_seeded(seed):
    return Unseeded("env", Random(seed))


@pytest.mark.parametrize(
    "call",
    [
        lambda: same.rollout([make_unseeded()], ScriptedActor(), 2),
        lambda: threaded.rollout([make_unseeded("inner")], ScriptedActor(), 2),
        lambda: same.rollout([make_unseeded], ScriptedActor(), 2),
        lambda: episodic.rollout([make_unseeded()], ScriptedActor()),
        lambda: evaluate([make_unseeded()], ScriptedActor(), n_steps=2),
    ],
)
def test_a_wrapper_that_keeps_the_seed_from_an_environment_is_named(call):
    with pytest.warns(RuntimeWarning, match="`reset` of Unseeded has no parameter `seed`, .* reach the Random inside"):
        getattr(call(), "close", bool)()


@pytest.mark.parametrize("how", [{}, {"workers": 1, "worker": "thread"}])
def test_if_that_warning_is_an_error_what_a_factory_has_made_is_closed(how):
    class Closes(Unseeded):
        closed = False

        def close(self):
            self.closed = True

    made = []

    def make():
        made.append(Closes("env", Random()))
        return made[-1]

    with pytest.raises(RuntimeWarning, match="has no parameter `seed`"):  # warnings are errors in these tests
        threaded.rollout([make, make], ScriptedActor(), 2, **how)
    assert [env.closed for env in made] == [True]


def test_a_wrapper_around_a_vector_environment_that_keeps_the_seed_from_it_is_named():
    gymnasium = pytest.importorskip("gymnasium")

    class Unseeded(gymnasium.vector.VectorWrapper):
        def reset(self):
            return self.env.reset()

    envs = Unseeded(gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")]))
    with pytest.warns(RuntimeWarning, match="reach the SyncVectorEnv inside"):
        same.rollout(envs, ScriptedActor(), 2).close()


@pytest.mark.parametrize(("make", "reseed"), [(make_unseeded, False), (make_seeded, True)])
def test_a_wrapper_around_what_its_user_has_seeded_is_not(make, reseed):
    for engine in (same, threaded):
        engine.rollout([make, make], ScriptedActor(), 2, reseed=reseed).close()
    if not reseed:
        same.rollout([make()], ScriptedActor(), 2, reseed=False).close()


class Simulator:
    """Steps, and tells its seed, but is no environment: it has no spaces."""

    def step(self):
        raise NotImplementedError

    reset = step

    def seed(self):
        return 7


def test_what_is_inside_of_an_environment_without_a_seed_is_not_seeded():
    env = Unseeded("env", OldRandom(7))
    env.env.seed, env.env.simulator = None, Simulator()
    with same.rollout([env], ScriptedActor(), 3, seed=5) as feed:
        next(feed)


def numbers(n=6, seed=7):
    return np.random.default_rng(seed).random(n).tolist()


ENGINES = {
    "same": lambda **how: same.rollout([Random(), Random()], ScriptedActor(), 2, **how),
    "threaded": lambda **how: threaded.rollout([Random(), Random()], ScriptedActor(), 2, **how),
    "factories": lambda **how: same.rollout([Random, lambda: Random()], ScriptedActor(), 2, **how),
    "threads": lambda **how: threaded.rollout([Random] * 2, ScriptedActor(), 2, workers=2, worker="thread", **how),
    "processes": lambda **how: threaded.rollout([Random] * 2, ScriptedActor(), 2, workers=2, **how),
    "single": lambda **how: single.rollout(Random, ScriptedActor(), 2, n_envs=2, **how),
    "multi": lambda **how: multi.rollout(Random, ScriptedActor(), 2, n_actors=2, n_per_actor=1, **how),
}


@pytest.mark.parametrize("engine", ENGINES)
def test_without_reseeding_environments_keep_the_random_state_that_they_have(engine):
    with ENGINES[engine](reseed=False, seed=3) as feed:
        obs = next(feed).state.obs
    for j in range(obs.shape[1]):
        assert obs[:, j, 0].tolist() == numbers(3)
        assert obs[:, j, 1].tolist() == [7, 7, 7]


@pytest.mark.parametrize("engine", ["same", "threaded", "processes", "single"])
def test_with_reseeding_they_do_not(engine):
    with ENGINES[engine]() as feed:
        obs = next(feed).state.obs
    assert not set(obs[:, :, 0].flatten().tolist()) & set(numbers())


def test_environments_of_the_old_api_and_in_vectors_and_episodes_keep_it_too():
    with same.rollout([OldRandom()], ScriptedActor(), 2, reseed=False) as feed:
        assert next(feed).state.obs[:, 0, 0].tolist() == numbers(3)
    env = Random()
    with episodic.rollout([env], ScriptedActor(), reseed=False) as feed:
        assert next(feed)[0].state.obs[:, 0, 0].tolist() == numbers(4)
    assert set(env.seeds) == {None}
    gymnasium = pytest.importorskip("gymnasium")

    class Part(Random):
        observation_space = gymnasium.spaces.Box(-np.inf, np.inf, (2,), np.float64)
        action_space = gymnasium.spaces.Discrete(2)
        metadata, render_mode, spec = {}, None, None

    envs = gymnasium.vector.SyncVectorEnv([Part, Part])
    with same.rollout(envs, ScriptedActor(), 2, reseed=False) as feed:
        assert next(feed).state.obs[:, :, 0].T.tolist() == [numbers(3)] * 2


class KeepsItsSeed(ScriptedEnv):
    """Has a number where environments of the old API have the method `seed`."""

    seed = 3


class WithoutSeed(KeepsItsSeed):
    def reset(self):
        return super().reset()


class PassesOn(KeepsItsSeed):
    def reset(self, **options):
        self.options = options
        return super().reset(**options)


def test_an_attribute_called_seed_is_no_method():
    envs = [WithoutSeed(), PassesOn()]
    same.rollout(envs, ScriptedActor(), 2, seed=1).close()
    assert list(envs[1].options) == ["seed"]


def test_an_attribute_called_seed_of_a_vector_environment_is_no_method():
    gymnasium = pytest.importorskip("gymnasium")

    class WithoutSeed(gymnasium.vector.SyncVectorEnv):
        seed = 3

        def reset(self):
            return super().reset()

    envs = WithoutSeed([lambda: gymnasium.make("CartPole-v1")])
    with same.rollout(envs, ScriptedActor(), 2, seed=1) as feed:
        assert next(feed).state.obs.shape == (3, 1, 4)


def test_the_seed_of_actions_stays():
    class Draws(BaseActorModule):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            return torch.randint(2, fin.shape, generator=self.generator), (), ()

    def acts(**how):
        with same.rollout([Random()], Draws(), 60, **how) as feed:
            return next(feed).state.act.flatten().tolist()

    assert acts(seed=1, reseed=False) == acts(seed=1, reseed=False) == acts(seed=1)
    assert acts(seed=1, reseed=False) != acts(seed=2, reseed=False)


def test_a_factory_that_needs_a_seed_is_refused_without_reseeding():
    with pytest.raises(TypeError, match=r"with `reseed=False` factories are given no seed.*give it one") as caught:
        same.rollout([lambda seed: Random(seed)], ScriptedActor(), 2, reseed=False)
    assert "environment 0, in env.make" in caught.value.__notes__[0]


@pytest.mark.parametrize("reseed", [None, 0, 1, "no"])
def test_reseed_is_a_bool(reseed):
    env = Random()
    with pytest.raises(TypeError, match="`reseed` must be True or False"):
        same.rollout([env], ScriptedActor(), 2, reseed=reseed)
    assert not env.counts
