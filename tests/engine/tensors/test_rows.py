"""Rows of vector environments in torch: those of the environment stepped by hand, in every mode, form and engine."""

from collections import UserDict

import gymnasium
import pytest
import torch

from rlplay import nested
from rlplay.engine.envs.make import seeds_of
from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor, LaggingLane
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch
from tests.support.assertions import assert_same_bytes
from tests.support.by_hand import check_by_hand
from tests.support.tensors import N, Script, ScriptActor

MODES = ("SAME_STEP", "NEXT_STEP", "DISABLED")
SEED = 3

FORMS = {
    "plain": {},
    "nested observations": {"obs": "nested"},
    "counted": {"obs": "counted", "start": 4},
    "real actions": {"action": "box"},
    "nested actions": {"action": "dict"},
    "overwritten in place": {"in_place": True},
    "overwritten in place, nested": {"in_place": True, "obs": "nested", "action": "dict"},
    "columns": {"columns": True},
    "flags are numbers": {"numbers": torch.uint8},
    "flags are floats, in columns": {"numbers": torch.float32, "columns": True},
    "dones and time outs": {"dones": True},
    "dones and time outs, in columns": {"dones": True, "columns": True},
    "other name of last observations": {"final_name": "final_observation"},
    "last observations where needed": {"tell_always": False},
    "spaces with the dimension of the batch": {"batched": True},
    "the same, of real actions": {"batched": True, "action": "box"},
    "an end reported with a reset": {"late_flags": True},
}


def collect(engine, env, *, n_steps=7, n_fragments=4, lag=0, **options):
    """Collect fragments; the weights change with each of them."""
    lane, fragments = options.get("device"), []
    actor = ScriptActor(env)
    with engine.rollout(env, actor, n_steps, seed=SEED, lag=lag, **options) as feed:
        for _ in range(n_fragments):
            fragments.append(next(feed))
            if lane is not None:
                lane.synchronize()
            with torch.no_grad():
                actor.weight.add_(1.0)
        episodes, steps = feed.episodes(), feed.steps
    assert steps == sum(int(one.env.valid.sum()) for one in fragments)
    assert steps == feed.stats.steps
    return fragments, episodes


def assert_same(one, other):
    assert_same_bytes(one[0], other[0])
    assert one[1] == other[1]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("mode", MODES)
def test_rows_are_those_of_the_environment_stepped_by_hand(mode, form):
    options = FORMS[form]
    fragments, episodes = collect(same, Script(mode=mode, **options), final=True)
    seed = seeds_of(SEED, N)[0]
    check_by_hand(Script(mode=mode, **options), seed, fragments, episodes, start=options.get("start", 0))
    assert not any(nested.leaves(fragments[0].state.act)[0][0].flatten().tolist())
    expected = collect(same, Script(mode=mode, **options), final=True, lag=1)
    for engine, place in ((threaded, {}), (same, {"device": LaggingLane()}), (threaded, {"device": LaggingLane()})):
        assert_same(collect(engine, Script(mode=mode, **options), final=True, lag=1, **place), expected)


class Maps(Script):
    """Its observations are mappings that `nested` takes for leaves."""

    def reset(self, **options):
        obs, info = super().reset(**options)
        return UserDict(obs), info

    def step(self, action):
        obs, *rest = super().step(action)
        return UserDict(obs), *rest


def test_observations_may_be_mappings_of_any_kind():
    got, expected = (collect(same, kind(obs="nested"), final=True) for kind in (Maps, Script))
    assert type(got[0][0].state.obs) is dict
    assert_same(got, expected)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("lag", "groups", "final"), [(0, 1, False), (1, 2, True), (2, 1, True)])
def test_engines_places_and_devices_make_no_difference(mode, lag, groups, final):
    options = {"lag": lag, "groups": groups, "final": final, "n_steps": 5}
    expected = collect(same, Script(mode=mode), **options)
    places = ({}, {"actor_on_host": True}, {"consumer_on_host": True})
    for engine in (same, threaded):
        assert_same(collect(engine, Script(mode=mode), **options), expected)
        for place in places:
            lane = LaggingLane(**place, haste=0.3 * lag)
            assert_same(collect(engine, Script(mode=mode), device=lane, **options), expected)


@pytest.mark.parametrize("mode", MODES)
def test_two_fragments_hold_the_transitions_of_one(mode):
    """With weights that stay as they are."""
    short, episodes = collect(same, Script(mode=mode), n_steps=4, n_fragments=6)
    (long,), others = collect(same, Script(mode=mode), n_steps=24, n_fragments=1)
    assert episodes == others
    for name in ("obs", "act", "rew", "fin", "stepno"):
        rows = torch.cat([getattr(one.state, name)[:-1] for one in short])
        assert torch.equal(rows, getattr(long.state, name)[:-1])


def test_the_snapshot_of_the_right_ask_has_collected_each_fragment():
    for engine in (same, threaded):
        for lag in (0, 1, 3):
            fragments, _ = collect(engine, Script(), lag=lag, n_fragments=6, final=True)
            for k, fragment in enumerate(fragments):
                assert (fragment.actor["weight"] == max(0, k - lag)).all()
                assert (fragment.env.final.actor["weight"] == max(0, k - lag)).all()


def test_nothing_is_stepped_and_no_second_reset_is_made_before_the_first_fragment():
    env = Script()
    with same.rollout(env, CountingActor(), 3, seed=SEED) as feed:
        assert (env.n_resets, env.n_steps) == (1, 0)
        assert env.seed_given == seeds_of(SEED, N)[0]
        next(feed)
        assert env.n_steps == 3
    assert not env.closed
    with same.rollout(env, CountingActor(), 3, seed=SEED, reseed=False):
        assert env.seed_given is None


def test_a_feed_over_environments_in_torch_says_that_it_cannot_be_saved_or_continued():
    actor = ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1))
    with same.rollout([gymnasium.make("CartPole-v1")], actor, 4) as feed:
        next(feed)
        saved = feed.state_dict()
    with same.rollout(CartPoleBatch(1), actor, 4) as feed:
        next(feed)
        with pytest.raises(NotImplementedError, match="environments in torch can be neither saved nor continued"):
            feed.state_dict()
        next(feed)
    with pytest.raises((NotImplementedError, ValueError), match=r"neither saved nor continued|state"):
        same.rollout(CartPoleBatch(1), actor, 4, state=saved)
