"""Entries of infos: paths into what environments tell, names that nobody tells, values that are refused."""

from __future__ import annotations

import sys
import warnings
from typing import NamedTuple

import cloudpickle
import gym
import gymnasium
import numpy as np
import pytest
import torch

from rlplay.engine.rollout import multi, same, single, threaded
from rlplay.testing import CountingActor, LedgerEnv
from tests.support.rows import untold

cloudpickle.register_pickle_by_value(sys.modules[__name__])

LENGTH = 3


class Pos(NamedTuple):
    x: float
    y: object


class Tells(LedgerEnv):
    """Tells an info; episodes have three steps."""

    def __init__(self, info=None, index=0):
        super().__init__(gym.spaces, index, lengths=[LENGTH])
        self.told = info

    def _make_info(self, truncated):
        return self.told(self) if callable(self.told) else self.told


def entry(info, name, form=np.float32, cls=Tells):
    with same.rollout([cls(info)], CountingActor(), 1, info={name: form}) as feed:
        return next(feed).env.info[name][0, 0].tolist()


PATHS = {
    "named tuple": ({"pos": Pos(1.0, 2.0)}, "pos.y", 2),
    "tuple": ({"legs": (1.0, 2.0)}, "legs.1", 2),
    "list": ({"legs": [[1, 2], [3]]}, "legs.1.0", 3),
    "array": ({"legs": np.arange(4)}, "legs.3", 3),
    "matrix": ({"legs": np.arange(4).reshape(2, 2)}, "legs.1.0", 2),
    "tensor": ({"legs": torch.arange(3)}, "legs.2", 2),
    "all of these": ({"a": {"b": [Pos(0, {"c": (5,)})]}}, "a.b.0.y.c.0", 5),
    "a key with a dot, inside": ({"a": {"b.c": 4}}, "a.b.c", 4),
    "keys that are digits": ({"a": {"0": 6}}, "a.0", 6),
    "a key of the whole name": ({"a.0": 7, "a": [8]}, "a.0", 7),
}


@pytest.mark.parametrize(("info", "name", "value"), PATHS.values(), ids=PATHS)
def test_a_dotted_name_reaches_into_all_containers(info, name, value):
    assert entry(info, name) == value


WRAPPED = {
    "a wider integer": (np.int64(3_000_000_000), np.int32),
    "an array": (np.array([1, -200]), np.zeros(2, np.int8)),
    "an unsigned one": (np.uint64(2**63), np.int64),
    "a tensor": (torch.tensor(2**31), np.int32),
    "a Python integer": (3_000_000_000, np.int32),
    "a list of NumPy's integers": ([np.int64(2**31)], np.zeros(1, np.int32)),
}


@pytest.mark.parametrize(("value", "form"), WRAPPED.values(), ids=WRAPPED)
def test_an_integer_that_the_dtype_of_its_entry_does_not_hold_is_refused(value, form):
    with pytest.raises(ValueError, match=r"info entry 'a': expected shape .* got .*") as caught:
        entry({"a": value}, "a", form)
    assert "environment 0, in env.step, at step 0 of fragment 0" in caught.value.__notes__[0]


def test_a_wider_integer_whose_value_fits_is_recorded():
    assert entry({"a": np.int64(-(2**31))}, "a", np.int32) == -(2**31)
    assert entry({"a": np.array([7, -128])}, "a", np.zeros(2, np.int8)) == [7, -128]
    assert entry({"a": np.uint64(2**63 - 1)}, "a", np.int64) == 2**63 - 1
    assert entry({"a": True}, "a", np.int8) == 1


MISSED = {
    "no such name": ({"pos": Pos(1.0, 2.0)}, "pos.z"),
    "an attribute that is no name": ({"pos": Pos(1.0, 2.0)}, "pos.count"),
    "an index too far": ({"legs": [1.0]}, "legs.1"),
    "a negative index": ({"legs": [1.0]}, "legs.-1"),
    "no index": ({"legs": [1.0]}, "legs.first"),
    "into a number": ({"legs": 1.0}, "legs.0"),
    "into a string": ({"legs": "123"}, "legs.0"),
    "into an array without dimensions": ({"legs": np.array(1.0)}, "legs.0"),
}


@pytest.mark.parametrize(("info", "name"), MISSED.values(), ids=MISSED)
def test_a_path_that_leads_nowhere_is_absent(info, name):
    assert np.isnan(entry(info, name))


def test_a_part_of_a_tuple_may_be_an_array():
    assert entry({"pos": Pos(1.0, np.arange(3))}, "pos.y", np.zeros(3, np.int64)) == [0, 1, 2]


# --- names that nobody tells ------------------------------------------------------------------------------------------

MATCH = r"`info`: no environment has told 'misspelt' so far, although an episode has ended"


def make(j=0):
    return Tells({"spelt": 1.0, "deep": {"x": 1.0}}, j)


FEEDS = {
    "same": lambda how: same.rollout([make(0), make(1)], CountingActor(), 2, **how),
    "threaded": lambda how: threaded.rollout([make(0), make(1)], CountingActor(), 2, **how),
    "groups": lambda how: same.rollout([make(0), make(1)], CountingActor(), 2, groups=2, **how),
    "threads": lambda how: threaded.rollout([make(0), make(1)], CountingActor(), 2, workers=2, worker="thread", **how),
    "processes": lambda how: threaded.rollout([make, make], CountingActor(), 2, workers=2, **how),
    "single": lambda how: single.rollout(make, CountingActor(), 2, n_envs=2, **how),
    "multi": lambda how: multi.rollout(make, CountingActor(), 2, n_actors=2, n_per_actor=1, **how),
    "some of multi": lambda how: multi.rollout(make, CountingActor(), 2, 2, 1, n_per_batch=1, **how),
}


LONG = [pytest.param(kind, marks=pytest.mark.soak) for kind in ("multi", "some of multi")]
every_kind = pytest.mark.parametrize("kind", [*list(FEEDS)[:-2], *LONG])


def collect_an_episode(feed):
    while not feed.episodes():
        next(feed)


@every_kind
def test_a_name_that_nobody_tells_draws_one_warning_when_an_episode_has_ended(kind):
    with FEEDS[kind]({"info": ("spelt", "misspelt", "deep.x"), "lag": 0}) as feed:
        next(feed)  # two steps: no episode has ended
        with pytest.warns(RuntimeWarning, match=MATCH) as caught:
            collect_an_episode(feed)
        assert len(caught) == 1
        for _ in range(4):  # warnings are errors
            next(feed)


@every_kind
def test_names_that_are_told_draw_none(kind):
    with FEEDS[kind]({"info": ("spelt", "deep.x")}) as feed:
        for _ in range(6):
            next(feed)


def test_a_name_that_one_of_several_processes_tells_draws_none():
    def make_one(seed):
        return Tells({"rare": 1.0} if seed % 2 else {})

    # the seed of the one environment is even, that of the other is odd
    for feed in (
        multi.rollout(make_one, CountingActor(), 4, n_actors=2, n_per_actor=1, seed=0, info=("rare",)),
        threaded.rollout([make_one] * 2, CountingActor(), 4, workers=2, seed=0, info=("rare",)),
    ):
        with feed:
            rare = next(feed).env.info["rare"]
            assert rare.isnan().any()
            assert not rare.isnan().all()


def test_a_path_that_leads_nowhere_draws_the_warning_in_a_vector_environment_too():
    vector = pytest.importorskip("gymnasium").vector

    def part():
        env = Tells({"pos": Pos(1.0, 2.0), "legs": [3.0, 4.0]})
        spaces = pytest.importorskip("gymnasium").spaces
        env.observation_space, env.action_space = spaces.Box(-np.inf, np.inf, (6,), np.float32), spaces.Discrete(5)
        return env

    envs = vector.SyncVectorEnv([part, part])
    feed = same.rollout(envs, CountingActor(), 5, info=("pos.y", "legs.1", "pos.z"))
    with pytest.warns(RuntimeWarning, match="has told 'pos.z' so far"):
        info = next(feed).env.info
    assert info["pos.y"][:2].tolist() == [[2, 2], [2, 2]]
    assert info["legs.1"][:2].tolist() == [[4, 4], [4, 4]]


def test_infos_of_a_vector_environment_may_be_named_tuples_and_lists_of_arrays():
    vector = pytest.importorskip("gymnasium").vector
    spaces = pytest.importorskip("gymnasium").spaces

    class Odd(vector.SyncVectorEnv):
        def step(self, actions):
            *answer, _ = super().step(actions)
            return *answer, {"pos": Pos(np.arange(2), np.arange(2) + 5), "legs": [np.arange(2), np.arange(2) + 7]}

    envs = Odd([lambda: LedgerEnv(spaces)] * 2)
    with same.rollout(envs, CountingActor(), 1, info=("pos.x", "pos.y", "legs.1")) as feed:
        info = next(feed).env.info
    assert {name: leaf[0].tolist() for name, leaf in info.items()} == {
        "pos.x": [0, 1],
        "pos.y": [5, 6],
        "legs.1": [7, 8],
    }


# --- values that are refused ------------------------------------------------------------------------------------------

REFUSED = {
    "named tuple": (Pos(1.0, 2.0), np.zeros(2), r"got a named tuple Pos of x, y: .* such as 'e\.x'"),
    "named tuple of one": (Pos(1.0, 2.0), float, r"got a named tuple Pos of x, y"),
    "list of named tuples": ([Pos(1.0, 2.0)], np.zeros((1, 2)), r"got a list with a named tuple Pos of x, y"),
    "dict": ({"x": 1.0}, float, r"got a dict with keys \['x'\]: .* such as 'e\.x'"),
    "ragged tuple": (((1.0, 2.0), (3.0,)), np.zeros((2, 2)), r"whose parts differ in length: .* such as 'e\.0'"),
    "ragged list": ([1.0, [2.0]], np.zeros(2), r"whose parts differ in length"),
    "ragged arrays": ((np.zeros(2), np.zeros(3)), np.zeros((2, 2)), r"whose parts differ in length"),
    "another shape": (np.zeros(2), np.zeros(3), r"expected shape \(3,\), .* got shape \(2,\)"),
}


@pytest.mark.parametrize(("value", "form", "match"), REFUSED.values(), ids=REFUSED)
def test_a_value_that_does_not_fit_names_environment_step_and_entry(value, form, match):
    def late(env):
        return {"e": value} if env.index == 1 and env.stepno == 2 else {}

    feed = threaded.rollout([Tells(late, j) for j in range(2)], CountingActor(), 3, info={"e": form})
    with pytest.raises(ValueError, match=f"info entry 'e': .*{match}") as caught:
        next(feed)
    assert "environment 1, in env.step, at step 1 of fragment 0" in "".join(caught.value.__notes__)


def test_an_info_that_is_no_dict_is_refused_where_it_is_read():
    feed = same.rollout([Tells([{"e": 1.0}])], CountingActor(), 3, info=("e",))
    with pytest.raises(
        ValueError, match=r"expected the info to be a dict, got \[\{'e': 1.0\}\], of type list"
    ) as caught:
        next(feed)
    assert "environment 0, in env.step, at step 0" in caught.value.__notes__[0]


@untold
def test_an_empty_info_of_any_kind_tells_nothing():
    for info in ({}, None, []):
        assert np.isnan(entry(info, "e"))


def test_no_warning_without_names():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        with same.rollout([make()], CountingActor(), 9) as feed:
            next(feed)


@pytest.mark.parametrize("info", [np.arange(3), torch.arange(3), "code"], ids=["array", "tensor", "string"])
def test_an_info_that_is_no_dict_is_refused(info):
    with pytest.raises(ValueError, match=f"expected the info to be a dict, got .*of type {type(info).__name__}"):
        entry(info, "code")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float8_e4m3fn, np.longdouble, np.clongdouble, "U3"], ids=str)
def test_a_dtype_that_numpy_or_torch_lacks_is_refused_at_the_call(dtype):
    with pytest.raises(TypeError, match=r"`info\['code'\]` must be "):
        same.rollout([Tells({"code": 1})], CountingActor(), 1, info={"code": dtype})


def test_a_dtype_of_swapped_bytes_is_the_same_number_in_the_order_of_the_machine():
    assert entry({"code": np.array([1.5, 2.5], ">f4")}, "code", np.array([0, 0], ">f4")) == [1.5, 2.5]
    assert entry({"code": 1.5}, "code", ">f4") == 1.5


@pytest.mark.parametrize("kind", ["list", "vector"])
def test_an_unsigned_dtype_takes_integers_of_numpy_that_it_holds(kind):
    class Lives(gymnasium.Env):
        observation_space = gymnasium.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gymnasium.spaces.Discrete(1000)

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            return np.zeros(1, np.float32), 0.0, False, False, {"lives": np.int64(5)}

    envs = [Lives()] if kind == "list" else gymnasium.vector.SyncVectorEnv([Lives])
    with same.rollout(envs, CountingActor(), 3, info={"lives": np.uint8}) as feed:
        assert (next(feed).env.info["lives"] == 5).all()
