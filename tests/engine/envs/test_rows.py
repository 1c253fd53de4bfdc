"""Every number of every fragment is the one that the contract defines, in every engine."""

from __future__ import annotations

from collections import OrderedDict, UserDict
from types import MappingProxyType
from typing import ClassVar

import gym.spaces
import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.testing import ACTIONS, FORMS, CountingActor, LedgerEnv, OldLedgerEnv, decode, encode
from tests.support.rows import DIALECTS, ENGINES, ENTRIES, check_against_slow_twin, ledgers, untold
from tests.support.slow_twin import assert_same

engines = pytest.mark.parametrize("engine", ENGINES)
dialects = pytest.mark.parametrize("dialect", DIALECTS)
flags = pytest.mark.parametrize("sticky", [False, True], ids=["", "sticky"])


# --- rows -------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("groups", [1, 2, 3])
@pytest.mark.parametrize("final", [False, True], ids=["", "final"])
@flags
@dialects
@engines
def test_every_number_of_a_fragment_is_that_of_the_slow_twin(engine, dialect, sticky, final, groups):
    check_against_slow_twin(engine, dialect, n_steps=5, n_fragments=3, sticky=sticky, final=final, groups=groups)


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 8, 40])
@flags
@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_fragments_may_be_shorter_than_an_episode_or_longer_than_several(engine, sticky, n_steps):
    check_against_slow_twin(
        engine, "gymnasium", n_steps=n_steps, n_fragments=max(2, 12 // n_steps), sticky=sticky, final=True
    )


@pytest.mark.parametrize("reuse", [False, True], ids=["", "reuse"])
@pytest.mark.parametrize("form", FORMS)
@dialects
def test_observations_may_be_of_any_form_and_overwritten_by_their_environment(dialect, form, reuse):
    for engine, sticky in (("same", True), ("threaded", False)):
        check_against_slow_twin(
            engine, dialect, n_steps=6, n_fragments=2, final=True, form=form, reuse=reuse, sticky=sticky
        )


def test_environments_may_share_one_array():
    class Shared(LedgerEnv):
        array = np.zeros(6, np.float32)

        def _observe(self):
            self.array[...] = self.vector()
            return self.array

    envs, others = [Shared(gym.spaces, j) for j in range(3)], ledgers("gym")
    pairs = [iter(same.rollout(some, CountingActor(), 9, seed=7, final=True)) for some in (envs, others)]
    for _ in range(2):
        assert_same(next(pairs[0]), nested.map(torch.Tensor.numpy, next(pairs[1])))


@pytest.mark.parametrize("action", ACTIONS)
@dialects
def test_actions_may_be_of_any_space_and_are_not_clipped(dialect, action):
    for engine, sticky in (("same", False), ("threaded", True)):
        check_against_slow_twin(
            engine, dialect, n_steps=6, n_fragments=2, final=True, action=action, sticky=sticky, groups=2
        )


@untold
@settings(max_examples=40, deadline=None, derandomize=True, database=None)
@given(data=st.data())
def test_fragments_equal_those_of_the_slow_twin_whatever_the_lengths(data):
    n_envs = data.draw(st.integers(1, 5), "n_envs")
    check_against_slow_twin(
        data.draw(st.sampled_from(["same", "threaded"]), "engine"),
        data.draw(st.sampled_from(sorted(DIALECTS)), "dialect"),
        n_envs,
        data.draw(st.integers(1, 5), "n_fragments"),
        n_steps=data.draw(st.integers(1, 7), "n_steps"),
        groups=data.draw(st.integers(1, n_envs), "groups"),
        lag=data.draw(st.integers(0, 3), "lag"),
        sticky=data.draw(st.booleans(), "sticky"),
        final=data.draw(st.booleans(), "final"),
        lengths=data.draw(st.lists(st.integers(1, 9), min_size=1, max_size=5), "lengths"),
        ends=data.draw(st.lists(st.sampled_from(["terminated", "truncated", "both"]), min_size=1), "ends"),
        form=data.draw(st.sampled_from(FORMS), "form"),
        action=data.draw(st.sampled_from(ACTIONS), "action"),
        info=("even", "TimeLimit.truncated"),
    )


def test_a_time_limit_of_the_old_api_counts_only_when_done():
    class Early(OldLedgerEnv):
        def step(self, action):
            obs, reward, done, _ = super().step(action)
            return obs, reward, done, {"TimeLimit.truncated": not done or self.episode == 1}

    with same.rollout([Early(gym.spaces, lengths=[4, 3])], CountingActor(), 11) as feed:
        env = next(feed).env
    assert env.terminated[:, 0].nonzero().flatten().tolist() == [3, 10]
    assert env.truncated[:, 0].nonzero().flatten().tolist() == [6]


@untold
def test_infos_may_be_missing_in_the_old_api():
    class Silent(OldLedgerEnv):
        def step(self, action):
            return *super().step(action)[:3], None

    with same.rollout([Silent(gym.spaces, lengths=[2])], CountingActor(), 4, info=("code",)) as feed:
        env = next(feed).env
    assert env.terminated.flatten().tolist() == [False, True, False, True]
    assert env.info["code"].isnan().all()


def test_dict_observations_may_come_in_any_order():
    class Shuffled(LedgerEnv):
        def _observe(self):
            items = list(super()._observe().items())
            k = (self.stepno + 2) % 3  # 2 first: not the sorted order
            return (dict if self.stepno % 2 else OrderedDict)(items[k:] + items[:k])

    envs = [Shuffled(gym.spaces, j, form="dict") for j in range(3)]
    with same.rollout(envs, CountingActor(), 9, seed=7, final=True) as feed:
        got = next(feed)
    (expected,) = check_against_slow_twin("same", "gym", n_steps=9, n_fragments=1, final=True, form="dict")
    assert_same(got, nested.map(torch.Tensor.numpy, expected))


class OwnDict(dict):
    pass


@pytest.mark.parametrize("kind", [OwnDict, UserDict, MappingProxyType])
def test_observations_may_be_mappings_of_any_kind(kind):
    class Maps(LedgerEnv):
        def _observe(self):
            return kind({k: kind(v) if isinstance(v, dict) else v for k, v in super()._observe().items()})

    envs = [Maps(gym.spaces, j, form="dict") for j in range(3)]
    with same.rollout(envs, CountingActor(), 9, seed=7, final=True) as feed:
        got = next(feed)
    (expected,) = check_against_slow_twin("same", "gym", n_steps=9, n_fragments=1, final=True, form="dict")
    assert type(got.state.obs) is dict
    assert_same(got, nested.map(torch.Tensor.numpy, expected))


def test_an_observation_that_lacks_a_key_is_refused_although_keys_cannot_be_sorted():
    class Mixed(LedgerEnv):
        def __init__(self):
            super().__init__(gym.spaces)
            self.observation_space = gym.spaces.Dict()
            self.observation_space.spaces = dict.fromkeys(("a", 1, (2, 3)), gym.spaces.Discrete(3))

        def _observe(self):
            return {"a": 0, 1: 1}

    with pytest.raises(ValueError, match=r"expected a dict with keys \[\(2, 3\), 1, 'a'\], got a dict with keys"):
        same.rollout([Mixed()], CountingActor(), 9)


def test_rewards_stand_in_the_row_of_the_transition_they_belong_to():
    # without the twin: what stands in one row was led to by the action and the reward in it
    for fragment in check_against_slow_twin("same", "gym", n_steps=9, n_envs=4):
        state = fragment.state
        for t in range(1, 10):
            for b in range(4):
                env, episode, step = decode(float(state.rew[t, b]))
                origin = (env, episode + 1, 0) if state.fin[t, b] else (env, episode, step)
                assert env == b
                assert tuple(state.obs[t, b, :3].int().tolist()) == origin
                assert state.stepno[t, b] == origin[2]


def test_fragments_have_the_dtypes_of_the_contract():
    (fragment,) = check_against_slow_twin("same", "gym", n_steps=3, n_fragments=1, form="dict", action="dict")
    state, env = fragment.state, fragment.env
    assert (state.stepno.dtype, state.rew.dtype, state.fin.dtype) == (torch.int64, torch.float32, torch.bool)
    assert {env.terminated.dtype, env.truncated.dtype, env.valid.dtype} == {torch.bool}
    assert state.obs["image"].dtype == torch.uint8
    assert state.obs["vector"].dtype == torch.float32
    assert state.obs["inner"]["step"].dtype == torch.int64
    assert state.obs["inner"]["exact"].dtype == torch.float64
    assert state.act["move"].dtype == state.act["gears"].dtype == torch.int64
    assert state.act["aim"]["bits"].dtype == torch.int8
    assert state.act["aim"]["box"].dtype == torch.float32
    assert state.act["gears"].shape == (4, 3, 2)


def test_only_the_episodes_of_the_fragment_are_in_final_and_there_may_be_none():
    one, other = check_against_slow_twin(
        "threaded", "gymnasium", n_steps=4, n_fragments=2, lengths=[6], final=True, form="dict"
    )
    assert one.env.final.t.shape == one.env.final.b.shape == (0,)
    assert one.env.final.obs["image"].shape == (0, 2, 3)
    assert one.env.final.actor["hx"]["sums"].shape == (0, 2)
    assert other.env.final.t.tolist() == [1, 1, 1]
    assert other.env.final.b.tolist() == [0, 1, 2]
    assert other.env.final.obs["inner"]["step"].tolist() == [6, 6, 6]


def test_final_is_ordered_by_time_then_environment_across_groups():
    (fragment,) = check_against_slow_twin("same", "gym", 4, 1, n_steps=6, groups=2, lengths=[2, 3, 1], final=True)
    order = list(zip(fragment.env.final.t.tolist(), fragment.env.final.b.tolist(), strict=True))
    assert order == sorted(order)
    assert len(order) == int((fragment.env.terminated | fragment.env.truncated).sum()) > 8


def test_final_is_an_empty_tuple_unless_asked_for():
    (fragment,) = check_against_slow_twin("same", "gym", n_steps=6, n_fragments=1)
    assert fragment.env.final == ()
    assert fragment.env.info == {}


# --- info -------------------------------------------------------------------------------------------------------------


@untold
@flags
@dialects
def test_info_by_names_is_float32_with_nan_where_absent(dialect, sticky):
    names = ("even", "nested.deep.step", "TimeLimit.truncated", "episode.r", "never")
    for fragment in check_against_slow_twin("threaded", dialect, n_steps=6, n_fragments=2, info=names, sticky=sticky):
        info, env = fragment.env.info, fragment.env
        assert set(info) == set(names)
        assert {leaf.dtype for leaf in info.values()} == {torch.float32}
        ended = (env.terminated | env.truncated) & env.valid
        assert torch.equal(~info["TimeLimit.truncated"].isnan(), ended)
        assert torch.equal(~info["nested.deep.step"].isnan(), env.valid)
        assert info["never"].isnan().all()
        assert env.valid.all() != sticky


@untold
@flags
@dialects
@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_info_by_examples_has_their_shape_and_dtype(engine, dialect, sticky):
    for fragment in check_against_slow_twin(
        engine, dialect, n_steps=6, n_fragments=2, info=ENTRIES, sticky=sticky, final=True
    ):
        info = fragment.env.info
        assert info["place"].shape == (6, 3, 2)
        assert info["place"].dtype == torch.int32
        assert info["never"].shape == (6, 3, 2, 2)
        assert info["first"].dtype == torch.bool
        assert info["code"].dtype == info["episode.r"].dtype == torch.float64
        assert info["episode.l"].dtype == torch.int16


def test_info_may_be_named_by_torch_dtypes():
    (fragment,) = check_against_slow_twin("same", "gym", n_steps=6, n_fragments=1)
    envs = ledgers("gym")
    with same.rollout(envs, CountingActor(), 6, info={"even": torch.int32, "first": torch.bool}) as feed:
        info = next(feed).env.info
    stepno = torch.where(fragment.state.fin[1:], 0, fragment.state.stepno[1:])
    assert (info["even"].dtype, info["first"].dtype) == (torch.int32, torch.bool)
    assert torch.equal(info["first"] & ~fragment.state.fin[1:], stepno == 1)


def test_a_literal_key_with_a_dot_is_found_before_a_path():
    class Both(LedgerEnv):
        def _make_info(self, truncated):
            return {"x.y": 1.0, "x": {"y": 2.0, "z": 3.0}}

    with same.rollout([Both(gym.spaces)], CountingActor(), 3, info=("x.y", "x.z")) as feed:
        info = next(feed).env.info
    assert info["x.y"].flatten().tolist() == [1.0, 1.0, 1.0]
    assert info["x.z"].flatten().tolist() == [3.0, 3.0, 3.0]


@pytest.mark.parametrize("name", ["place", "nested"])
@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_an_info_entry_that_does_not_fit_names_environment_step_and_entry(engine, name):
    class Late(LedgerEnv):
        def _make_info(self, truncated):
            return super()._make_info(truncated) if self.index == 1 and self.stepno == 2 else {}

    envs = [Late(gym.spaces, j, lengths=[9]) for j in range(3)]
    with ENGINES[engine][0].rollout(envs, CountingActor(), 3, info=(name,)) as feed:
        with pytest.raises((ValueError, TypeError), match=name) as caught:
            next(feed)
        assert "environment 1, in env.step, at step 1 of fragment 0" in "".join(caught.value.__notes__)


# --- what environments get --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("action", ACTIONS)
@dialects
def test_environments_get_actions_of_their_space(dialect, action):
    envs = ledgers(dialect, action=action)
    with same.rollout(envs, CountingActor(action), 6, sticky=True) as feed:
        fragments = [next(feed), next(feed)]
    for j, env in enumerate(envs):
        carried_out = []
        for fragment in fragments:
            for t in fragment.env.valid[:, j].nonzero().flatten().tolist():
                carried_out.append(nested.map(lambda x, t=t, j=j: x[t + 1, j].numpy(), fragment.state.act))
        assert len(env.actions) == len(carried_out)
        for got, recorded in zip(env.actions, carried_out, strict=True):
            parts = nested.leaves(got)
            assert nested.structure(got) == nested.structure(recorded)
            for part, array in zip(parts, nested.leaves(recorded), strict=True):
                assert part.dtype == array.dtype
                assert np.array_equal(part, array)
                assert isinstance(part, np.ndarray if array.ndim else np.integer)
        if action == "discrete":
            assert all(type(got) is np.int64 for got in env.actions)
            assert all(env.action_space.contains(got) for got in env.actions)


@pytest.mark.parametrize("what", ["act", "info"])
def test_an_actor_output_that_changes_its_dtype_is_not_rounded_silently(what):
    class Fickle(BaseActorModule):
        def forward(self, obs, *, stepno, hx=None, virtual=False, **ignored):
            answer = stepno if virtual else stepno + 0.75
            rest = torch.zeros_like(stepno)
            return (answer, hx, {"x": rest}) if what == "act" else (rest, hx, {"x": answer})

    with same.rollout([LedgerEnv(gym.spaces)], Fickle(), 3) as feed, pytest.raises((TypeError, ValueError), match=what):
        next(feed)


def test_discrete_spaces_take_integers_of_any_width():
    class Small(LedgerEnv):
        def __init__(self, index=0):
            super().__init__(gym.spaces, index, action="multidiscrete")
            self.observation_space = self.action_space = gym.spaces.MultiDiscrete([64, 64], np.uint8)

        def _observe(self):
            return np.array([self.stepno, self.index], [np.int64, np.uint16, np.uint8][self.stepno % 3])

    actor, env = CountingActor("multidiscrete"), Small()  # whose actions are int64
    with same.rollout([env], actor, 7) as feed:
        state = next(feed).state
    assert state.obs.dtype == state.act.dtype == torch.int64
    assert state.obs[:, 0, 0].tolist() == state.stepno[:, 0].tolist() == [0, 1, 2, 3, 0, 0, 1, 2]
    assert [action.dtype for action in env.actions] == [np.uint8] * 7


def test_actions_may_be_tuples():
    class Pairs(LedgerEnv):
        def __init__(self, index):
            super().__init__(gym.spaces, index)
            parts = gym.spaces.Discrete(4), gym.spaces.Tuple([gym.spaces.Box(0, 1, (2,), np.float64)])
            self.action_space = gym.spaces.Tuple(parts)

        def step(self, action):
            self.actions.append(action)
            return super().step(action[0])

    class Actor(BaseActorModule):
        def forward(self, obs, *, stepno, hx=None, **ignored):
            return (stepno % 4, (stepno[..., None].expand(*stepno.shape, 2),)), hx, {"one": stepno}

    env = Pairs(0)
    with same.rollout([env], Actor(), 6) as feed:
        act = next(feed).state.act
    first, (second,) = act
    assert (first.dtype, second.dtype) == (torch.int64, torch.float64)
    assert first[:, 0].tolist() == [0, 0, 1, 2, 3, 0, 0]
    assert second[:, 0].tolist() == [[k, k] for k in [0, 0, 1, 2, 3, 0, 0]]
    got = env.actions[2]
    assert type(got) is type(got[1]) is tuple
    assert type(got[0]) is np.int64
    assert got[1][0].dtype == np.float64


@pytest.mark.parametrize("action", ["multidiscrete", "box", "multibinary", "dict"])
@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_an_environment_that_changes_its_action_changes_nothing_else(engine, action):
    class Scribbler(LedgerEnv):
        def step(self, action):
            answer = super().step(action)
            for earlier in self.actions:  # also those of long ago
                for part in nested.leaves(earlier):
                    if isinstance(part, np.ndarray):
                        part += 1
            return answer

    def streams(cls):
        actor = CountingActor(action)
        envs = [cls(gym.spaces, j, action=action) for j in range(3)]
        with ENGINES[engine][0].rollout(envs, actor, 6, seed=1, final=True) as feed:
            return nested.map(torch.Tensor.numpy, [next(feed), next(feed)])

    one, other = streams(LedgerEnv), streams(Scribbler)
    for x, y in zip(nested.leaves(one), nested.leaves(other), strict=True):
        np.testing.assert_array_equal(x, y)


@pytest.mark.parametrize(
    "reward", [np.float64, np.float32, np.asarray, int, np.int32, lambda x: np.float64(x) + 0.1], ids=range(6)
)
@dialects
@pytest.mark.parametrize("engine", ["same", "threaded"])
def test_rewards_may_be_any_number_and_are_kept_as_float32(engine, dialect, reward):
    # 0.1 beside the code: what float32 makes of it is recorded, what the environment gave is summed
    check_against_slow_twin(engine, dialect, n_steps=8, n_fragments=2, final=True, reward=reward)


# --- seeds, factories -------------------------------------------------------------------------------------------------


def seeds_in(fragment):
    high, low = fragment.state.obs[0, :, 4], fragment.state.obs[0, :, 5]
    return [int(seed) for seed in (high.long() * 2**16 + low.long()).tolist()]


@dialects
def test_an_environment_gets_the_same_seed_in_every_engine_whatever_the_groups(dialect):
    def seeds(module, **how):
        envs = ledgers(dialect, 6)
        with module.rollout(envs, CountingActor(), 2, seed=5, **how) as feed:
            assert seeds_in(next(feed)) == [env.seeds[0] for env in envs]
        assert all(seed is None for env in envs for seed in env.seeds[1:])
        return [env.seeds[0] for env in envs]

    expected = seeds(same)
    assert len(set(expected)) == 6
    for groups in (2, 3, 6):
        assert seeds(same, groups=groups) == seeds(threaded, groups=groups) == expected


def test_fewer_environments_get_the_first_seeds_and_another_seed_gives_other_seeds():
    def seeds(seed, n_envs):
        envs = ledgers("gym", n_envs)
        same.rollout(envs, CountingActor(), 2, seed=seed).close()
        return [env.seeds[0] for env in envs]

    assert seeds(5, 6)[:2] == seeds(5, 2)
    assert not set(seeds(5, 6)) & set(seeds(6, 6))


def test_without_a_seed_torch_decides_the_seeds_of_environments():
    def seeds():
        envs = ledgers("gym")
        same.rollout(envs, CountingActor(), 2).close()
        return [env.seeds[0] for env in envs]

    torch.manual_seed(3)
    one, other = seeds(), seeds()
    assert one != other
    torch.manual_seed(3)
    assert (one, other) == (seeds(), seeds())


class Seeded(LedgerEnv):
    """Takes its seed when it is made, too."""

    made: ClassVar[list] = []

    def __init__(self, index=0, *, seed=None):
        super().__init__(gym.spaces, index)
        self.given = seed
        Seeded.made.append(self)


class Unseeded(OldLedgerEnv):
    made: ClassVar[list] = []

    def __init__(self):
        super().__init__(gym.spaces)
        Unseeded.made.append(self)


@pytest.mark.parametrize("module", [same, threaded])
def test_factories_are_given_the_seed_if_they_take_it_and_classes_are_factories(module):
    def whole(index):
        def make(seed):
            return Seeded(index, seed=seed)

        return make

    Seeded.made.clear()
    envs = ledgers("gym")
    with module.rollout(envs, CountingActor(), 5, seed=11, final=True) as feed:
        expected = [nested.map(torch.Tensor.numpy, next(feed)) for _ in range(3)]
    factories = [Seeded, lambda: LedgerEnv(gym.spaces, 1), whole(2)]
    with module.rollout(factories, CountingActor(), 5, seed=11, final=True) as feed:
        for k, page in enumerate(expected):
            assert_same(next(feed), page, f"fragments[{k}]")
        seeds = [env.seeds[0] for env in envs]
        assert [env.given for env in Seeded.made] == [seeds[0], seeds[2]]
        assert [env.seeds[0] for env in Seeded.made] == [seeds[0], seeds[2]]
        assert [env.closed for env in Seeded.made] == [0, 0]
    assert [env.closed for env in Seeded.made] == [1, 1]
    assert [env.closed for env in envs] == [0, 0, 0]


@pytest.mark.parametrize("module", [same, threaded])
def test_classes_that_take_no_seed_are_factories_too(module):
    Unseeded.made.clear()
    with module.rollout([Unseeded, Unseeded], CountingActor(), 5, seed=11) as feed:
        fragment = next(feed)
    assert len(Unseeded.made) == 2
    assert seeds_in(fragment) == [env.seeds[0] for env in Unseeded.made]
    assert [env.closed for env in Unseeded.made] == [1, 1]


# --- the testing pieces themselves ------------------------------------------------------------------------------------


def test_codes_of_ledger_environments_differ_in_float32():
    for origin in [(0, 0, 0), (255, 1023, 63), (17, 5, 1)]:
        assert decode(float(np.float32(encode(*origin)))) == origin
    with pytest.raises(ValueError, match="names no"):
        decode(0.5)


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("form", FORMS)
@dialects
def test_a_ledger_environment_keeps_to_its_spaces_and_refuses_steps_after_an_end(dialect, form, action):
    *_, env = ledgers(dialect, form=form, action=action, lengths=[2, 1])
    obs = env.reset() if dialect == "old" else env.reset(seed=2**31 - 1)[0]
    assert env.observation_space.contains(obs)
    assert not env.over
    while not env.over:
        obs, *_ = env.step(env.action_space.sample())
        assert env.observation_space.contains(obs)
    with pytest.raises(RuntimeError, match="without a reset"):
        env.step(env.action_space.sample())
