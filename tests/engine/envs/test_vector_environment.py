"""Vector environments give the fragments of the lists of their parts, in every autoreset mode."""

from __future__ import annotations

from types import SimpleNamespace

import gym
import numpy as np
import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import a2c, unroll
from rlplay.engine import Episode, Final, Fragment
from rlplay.engine.envs.spaces import Field
from rlplay.engine.envs.vectors.infos import last_observation
from rlplay.engine.rollout import same
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import ACTIONS, CountingActor, LedgerEnv
from rlplay.zoo.actors import ActorCritic
from tests.support.assertions import assert_identical
from tests.support.rows import untold
from tests.support.vectors import (
    ENTRIES,
    N_ENVS,
    ZEROS,
    assert_equal,
    check_against_list,
    collected,
    engines,
    ledgers,
    library_of,
    of_every_kind,
    transitions_of,
    vector_of,
)

# --- equal to the list of the parts -----------------------------------------------------------------------------------


@untold
@pytest.mark.parametrize("groups", [1, 2])
@engines
@of_every_kind
def test_a_vector_environment_gives_the_fragments_of_the_list_of_its_parts(kind, engine, groups):
    check_against_list(kind, ledgers(kind), CountingActor(), 7, engine=engine, groups=groups, info=ENTRIES)


@untold
@pytest.mark.parametrize("form", ["dict", "pair", "scalar", "discrete"])
@of_every_kind
def test_observations_of_a_vector_environment_may_be_of_any_form(kind, form):
    makers = ledgers(kind, form=form, lengths=[4, 1, 2, 7, 1], reward=lambda x: x + 0.1)
    check_against_list(kind, makers, CountingActor(), 9, info=ENTRIES)


@of_every_kind
def test_observations_of_the_parts_may_be_named_tuples(kind):
    # the vector environment's own are plain tuples, but those at the end of an episode are as the part gave them
    check_against_list(kind, ledgers(kind, form="tuple"), CountingActor(), 9, containers=False)


@pytest.mark.parametrize("action", ACTIONS)
@of_every_kind
def test_actions_of_a_vector_environment_may_be_of_any_space_and_overwritten(kind, action):
    class Scribbler(LedgerEnv):
        def step(self, action):
            answer = super().step(action)
            for part in nested.leaves(action):
                if isinstance(part, np.ndarray) and part.flags.writeable:
                    part[...] = 0
            return answer

    check_against_list(kind, ledgers(kind, Scribbler, action=action), CountingActor(action), 9)


@pytest.mark.parametrize("reuse", [False, True])
@of_every_kind
def test_a_vector_environment_may_overwrite_its_arrays(kind, reuse):
    makers, actor = ledgers(kind, reuse=reuse), CountingActor()
    expected, _ = collected(same, vector_of(kind, ledgers(kind)), actor, 9, 3)
    got, _ = collected(same, vector_of(kind, makers, copy=False), actor, 9, 3)
    if reuse and kind in ("gym", "SAME_STEP"):  # what is told of last observations has been overwritten by then
        got, expected = ([x._replace(env=x.env._replace(final=())) for x in some] for some in (got, expected))
    assert_equal(got, expected)


@untold
@of_every_kind
def test_parts_of_a_vector_environment_may_live_in_processes(kind):
    check_against_list(kind, ledgers(kind, form="dict"), CountingActor(), 9, how="Async", info=ENTRIES)


@of_every_kind
def test_a_vector_environment_of_cartpole_gives_the_fragments_of_the_list(kind):
    def make():
        return library_of(kind).make("CartPole-v1", max_episode_steps=12)

    class TwoActions(CountingActor):
        def forward(self, obs, **inputs):
            act, hx, info = super().forward(obs, **inputs)
            return act % 2, hx, info

    check_against_list(kind, [make] * N_ENVS, TwoActions(), 20, groups=2)


# --- the rows of NEXT_STEP --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n_steps", [1, 2, 3, 4, 12])
def test_rows_of_next_step_mode_by_hand(n_steps):
    class Odd(library_of("NEXT_STEP").vector.SyncVectorEnv):
        def step(self, actions):
            began = self._autoreset_envs
            answer = super().step(actions)
            answer[1][began] = 7  # no reward, as no action was carried out
            return answer

    envs = Odd(ledgers("NEXT_STEP", lengths=[2, 1], ends=["truncated", "terminated"])[:1])
    fragments, episodes = collected(same, envs, CountingActor(), n_steps, 12 // n_steps, info=("code",))
    played = [(3, 2), (65, 1), (259, 2), (193, 1), (515, 2)]
    assert episodes == [Episode(0, *what) for what in played]
    rows = [fragments[0].state, *(nested.map(lambda x: x[1:], fragment.state) for fragment in fragments[1:])]
    state = nested.map(lambda *xs: torch.cat(xs)[:, 0].tolist(), *rows)
    steps = [fragment.env._replace(final=()) for fragment in fragments]
    env = nested.map(lambda *xs: torch.cat(xs)[:, 0].tolist(), *steps)
    # the second number of a vector is the episode, the third the step; an episode of two steps, one of one, and again
    place = [(obs[1], obs[2]) for obs in state.obs]
    assert [episode for episode, _ in place] == [0, 0, 0, 1, 1, 2, 2, 2, 3, 3, 4, 4, 4]
    assert [step for _, step in place] == [0, 1, 2, 0, 1, 0, 1, 2, 0, 1, 0, 1, 2]
    assert state.stepno == [0, 1, 0, 0, 0, 0, 1, 0, 0, 0, 0, 1, 0]
    assert state.fin == [stepno == 0 for stepno in state.stepno]
    assert env.valid == [step > 0 for _, step in place[1:]]
    assert state.rew == [0, *(episode * 64 + step if step else 0 for episode, step in place[1:])]
    assert env.truncated == [0, 1, 1, 0, 0, 0, 1, 1, 0, 0, 0, 1]
    assert env.terminated == [0, 0, 0, 1, 1, 0, 0, 0, 1, 1, 0, 0]
    assert all(np.isnan(code) != valid for code, valid in zip(env.info["code"], env.valid, strict=True))
    kept = zip(env.valid, state.act[:-1], state.act[1:], strict=True)
    assert all(valid or one == other for valid, one, other in kept)
    assert len(set(state.act)) > 2
    lasts = [place[i * n_steps + t + 1] for i, part in enumerate(fragments) for t in part.env.final.t.tolist()]
    seen = [tuple(obs[1:3].tolist()) for part in fragments for obs in part.env.final.obs]
    assert seen == lasts == [(0, 2), (1, 1), (2, 2), (3, 1), (4, 2)]


def actor_critic(**memory):
    torch.manual_seed(0)
    width = 8 if memory else 6
    return ActorCritic(nn.Linear(width, 5), nn.Linear(width, 1), **memory)


class Small(LedgerEnv):
    """With small numbers, for networks."""

    def _observe(self):
        return super()._observe() / np.float32(2.0**16)


def test_losses_leave_out_the_rows_of_next_step_mode_that_are_no_transition():
    actor = actor_critic().double()
    envs = vector_of("NEXT_STEP", ledgers("NEXT_STEP", Small, lengths=[4, 1, 3], reward=lambda x: x % 64))
    (fragment,), _ = collected(same, envs, actor_critic(), 30, 1)
    fragment = nested.map(lambda x: x.double() if x.is_floating_point() else x, fragment)
    assert not fragment.env.valid.all(dim=0).any()
    for b in range(N_ENVS):
        column, taken_out = without_padding(fragment, b)
        assert taken_out.env.valid.all()
        assert len(taken_out.env.valid) < 30
        grads = [
            torch.autograd.grad(a2c.loss(some, actor, gamma=0.9, C=0.8)[0], list(actor.parameters()))
            for some in (column, taken_out)
        ]
        for one, other in zip(*grads, strict=True):
            torch.testing.assert_close(one, other, rtol=0, atol=1e-12)


def without_padding(fragment, b):
    """Take out a column; then from it what is no transition, as the list would have given it."""
    here, column = fragment.env.final.b == b, nested.map(lambda x: x[:, b : b + 1], fragment._replace(env=()))
    t, _, obs, actor = nested.map(lambda x: x[here], fragment.env.final)
    outcome = nested.map(lambda x: x[:, b : b + 1], fragment.env._replace(final=()))
    column = column._replace(env=outcome._replace(final=Final(t, torch.zeros_like(t), obs, actor)))
    kept = fragment.env.valid[:, b]
    begins, arrives = torch.cat([kept, torch.tensor([True])]), torch.cat([torch.tensor([True]), kept])
    now, then = (nested.map(lambda x, rows=rows: x[rows], column.state) for rows in (begins, arrives))
    end = column.env.final._replace(t=kept.cumsum(0)[t] - 1)
    env = nested.map(lambda x: x[kept], outcome)._replace(final=end)
    return column, Fragment(now._replace(act=then.act, rew=then.rew), {}, env, ())


def test_unrolling_over_a_vector_environment_repeats_the_recorded_reactions():
    actor = actor_critic(core=nn.GRU(6, 8))
    envs = vector_of("NEXT_STEP", ledgers("NEXT_STEP", Small, lengths=[4, 1, 3]))
    for fragment in collected(same, envs, actor, 10, 3)[0]:
        info, _, final = unroll(fragment, actor)
        met = fragment.actor, fragment.env.final.actor
        for one, other in zip(nested.leaves((info, final)), nested.leaves(met), strict=True):
            torch.testing.assert_close(one, other)


# --- info -------------------------------------------------------------------------------------------------------------


class Plain(LedgerEnv):
    """With nothing that wrappers add."""

    def _make_info(self, truncated):
        return {"code": float(self.code)}


def wrapped(kind, envs):
    wrappers = library_of(kind).wrappers
    return (wrappers if kind == "gym" else wrappers.vector).RecordEpisodeStatistics(envs)


@of_every_kind
def test_info_entries_of_wrappers_around_a_vector_environment_are_recorded(kind):
    # gymnasium's own clear the statistics of all parts when one of them is reset by a mask
    n_envs = 1 if kind == "DISABLED" else N_ENVS
    envs = wrapped(kind, vector_of(kind, ledgers(kind, Plain, lengths=[4, 1, 3])[:n_envs]))
    entries = {"episode.r": float, "episode.l": float, "code": float}
    fragments, episodes = collected(same, envs, CountingActor(), 30, 1, info=entries)
    env = fragments[0].env
    t, b = env.final.t, env.final.b
    got = zip(b.tolist(), env.info["episode.r"][t, b].tolist(), env.info["episode.l"][t, b].tolist(), strict=True)
    assert list(got) == episodes
    assert len(episodes) > 5
    others = torch.ones_like(env.valid).index_put((t, b), torch.tensor(False))
    assert env.info["episode.r"][others].isnan().all()
    assert torch.equal(env.info["code"][env.valid], fragments[0].state.rew[1:][env.valid].double())


@untold
def test_info_of_a_reset_is_not_recorded_with_the_step_before():
    class Lives(LedgerEnv):
        def reset(self, **how):
            obs, info = super().reset(**how)
            return obs, info | {"lives": 5} | ({"even": 5} if self.episode else {})

    makers = ledgers("SAME_STEP", Lives, lengths=[4, 2])
    got = check_against_list("SAME_STEP", makers, CountingActor(), 9, info=("lives", "code", "even"))
    assert all(fragment.env.info["lives"].isnan().all() for fragment in got)


def test_an_info_entry_that_is_no_batch_counts_for_all_parts():
    class Tells(library_of("NEXT_STEP").vector.SyncVectorEnv):
        def step(self, actions):
            *answer, info = super().step(actions)
            return *answer, info | {"fps": 30, "clock": {"t": np.arange(N_ENVS)}}

    (fragment,), _ = collected(same, Tells(ledgers("NEXT_STEP")), CountingActor(), 1, 1, info=("fps", "clock.t"))
    assert fragment.env.info["fps"].tolist() == [[30, 30, 30]]
    assert fragment.env.info["clock.t"].tolist() == [[0, 1, 2]]


def test_an_info_entry_that_does_not_fit_is_an_error_that_names_the_part():
    class Tells(LedgerEnv):
        def _make_info(self, truncated):
            return {"odd": np.zeros(2 if self.index == 1 else 1)[: None if self.stepno > 1 else 1]}

    envs = vector_of("gym", ledgers("gym", Tells))
    feed = same.rollout(envs, CountingActor(), 4, info={"odd": np.zeros(1)})
    with pytest.raises(ValueError, match="'odd'") as caught:
        next(feed)
    assert "environment 1" in caught.value.__notes__[0]


# --- others -----------------------------------------------------------------------------------------------------------


@of_every_kind
def test_evaluating_a_vector_environment_equals_evaluating_the_list(kind):
    makers, actor = ledgers(kind, lengths=[4, 1, 7]), CountingActor()
    got = []
    for envs in (vector_of(kind, makers), [make() for make in makers]):
        torch.manual_seed(3)
        got.append(evaluate(envs, actor)[0])
    np.testing.assert_array_equal(*got)
    assert [int(n) for n in (got[0] > 0).sum(axis=0)] == [4, 1, 7]
    np.testing.assert_array_equal(evaluate(vector_of(kind, makers), actor, n_steps=3)[0][0], got[0][0])


@of_every_kind
def test_each_part_of_a_vector_environment_gets_its_own_seed_once(kind):
    envs, parts = vector_of(kind, ledgers(kind, Plain)), [make() for make in ledgers(kind)]
    collected(same, wrapped(kind, envs), CountingActor(), 20, 1)
    collected(same, parts, CountingActor(), 20, 1)
    assert [env.seeds[0] for env in envs.envs] == [env.seeds[0] for env in parts]
    assert {seed for env in envs.envs for seed in env.seeds[1:]} == {None}


def test_a_masked_reset_may_return_observations_of_the_reset_parts_alone():
    class Blank(library_of("DISABLED").vector.SyncVectorEnv):
        def reset(self, *, seed=None, options=None):
            mask = (options or {}).get("reset_mask", np.ones(N_ENVS, bool))
            obs, info = super().reset(seed=seed, options=options)
            return np.where(mask[:, None], obs, np.float32(0)), info

    modes = {"autoreset_mode": "Disabled"}
    one, other = (
        collected(same, cls(ledgers("DISABLED"), **modes), CountingActor(), 9, 3)
        for cls in (Blank, library_of("DISABLED").vector.SyncVectorEnv)
    )
    assert_equal(one[0], other[0])


def test_a_vector_environment_without_parts_is_collected_from():
    gymnasium = pytest.importorskip("gymnasium")
    envs = gymnasium.make_vec("CartPole-v1", num_envs=4)  # has one generator, and takes one seed
    runs = [collected(same, envs, actor_critic_of(4, 2), 40, 2)[0] for _ in range(2)]
    assert_equal(*runs)
    for fragment in runs[0]:
        check_laws(fragment)
    assert not runs[0][0].env.valid.all()


def actor_critic_of(n_obs, n_actions):
    torch.manual_seed(0)
    return ActorCritic(nn.Linear(n_obs, n_actions), nn.Linear(n_obs, 1))


def check_laws(fragment):
    state, env = fragment.state, fragment.env
    ended = env.terminated | env.truncated
    assert torch.equal(state.fin[1:], ended)
    assert torch.equal(state.stepno[1:], torch.where(ended, 0, state.stepno[:-1] + 1))
    assert torch.equal(torch.stack([env.final.t, env.final.b]), (ended & env.valid).nonzero().T)
    assert not state.rew[1:][~env.valid].any()


def check_by_hand(envs, twin, actor, n_steps):
    """Step a twin in NEXT_STEP mode by hand with the same actions: what it shows are the rows."""
    entries = {"elapsed_step": np.int64, "lives": np.int64}
    (fragment,), _ = collected(same, envs, actor, n_steps, 1, info=entries)
    check_laws(fragment)
    state, env, began = fragment.state, fragment.env, np.zeros(twin.num_envs, bool)
    for t in range(n_steps):
        obs, rew, terminated, truncated, info = twin.step(state.act[t + 1].numpy())
        np.testing.assert_array_equal(state.obs[t + 1].numpy(), obs)
        np.testing.assert_array_equal(state.rew[t + 1].numpy(), np.where(began, 0, rew))
        np.testing.assert_array_equal(env.valid[t].numpy(), ~began)
        for name in entries.keys() & info.keys():
            np.testing.assert_array_equal(env.info[name][t].numpy(), np.where(began, 0, info[name]))
        began = terminated | truncated
        np.testing.assert_array_equal((env.terminated | env.truncated)[t][env.valid[t]].numpy(), began[env.valid[t]])
        at = env.final.t == t
        np.testing.assert_array_equal(env.final.obs[at].numpy(), obs[began])
    assert len(env.final.t) > twin.num_envs


def make_envpool(**how):
    envpool = pytest.importorskip("envpool")
    return envpool.make(env_type="gymnasium", seed=7, num_envs=N_ENVS, **how)


class Push(CountingActor):
    def forward(self, obs, **inputs):
        act, hx, info = super().forward(obs, **inputs)
        return act[..., :1], hx, info


class Pixels(CountingActor):
    def forward(self, obs, **inputs):
        act, hx, info = super().forward(obs, **inputs)
        return act % 4, hx, info


@untold
@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")  # EnvPool's spaces
@pytest.mark.parametrize(
    ("task", "actor"),
    [("CartPole-v1", actor_critic_of(4, 2)), ("Pendulum-v1", Push("box")), ("Breakout-v5", Pixels())],
    ids=lambda x: x if isinstance(x, str) else "",
)
def test_envpool_is_collected_from(task, actor):
    envs, twin = (make_envpool(task_id=task, max_episode_steps=12) for _ in range(2))
    twin.reset()
    check_by_hand(envs, twin, actor, 40)


def make_atari(mode="NextStep", **how):
    vector_env = pytest.importorskip("ale_py.vector_env")
    how |= {"img_height": 12, "img_width": 12, "stack_num": 1, "noop_max": 3, "max_num_frames_per_episode": 60}
    return vector_env.AtariVectorEnv("breakout", N_ENVS, autoreset_mode=mode, **how)


@untold
def test_ale_vector_environments_in_next_step_mode():
    envs, twin = make_atari(), make_atari()
    reset, seeds = envs.reset, []
    envs.reset = lambda *, seed: (seeds.append(seed), reset(seed=seed))[1]
    with same.rollout(envs, Pixels(), 1, seed=5):
        twin.reset(seed=seeds[0])
    check_by_hand(envs, twin, Pixels(), 60)


def test_ale_vector_environments_in_same_step_mode():
    both = [make_atari("SameStep"), make_atari("NextStep")]  # whose metadata is the same dict
    one, other = (collected(same, envs, Pixels(), 40, 1)[0] for envs in both)
    check_laws(one[0])
    assert one[0].env.valid.all()
    for (mine, my_ends), (its, its_ends) in zip(transitions_of(one), transitions_of(other), strict=True):
        assert_equal(mine, its, up_to=len(its[0][0]))
        assert_equal(my_ends, its_ends, up_to=len(its_ends[0]))


# --- what is refused --------------------------------------------------------------------------------------------------


@of_every_kind
@engines
def test_a_vector_environment_cannot_be_sticky(engine, kind):
    with pytest.raises(ValueError, match="pass a list"):
        engine.rollout(vector_of(kind, ledgers(kind)), CountingActor(), 3, sticky=True)


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")
@pytest.mark.parametrize(
    "make", [lambda **how: make_envpool(task_id="CartPole-v1", **how), make_atari], ids=["EnvPool", "Atari"]
)
def test_a_vector_environment_that_answers_for_some_parts_is_refused(make):
    for envs in (make(batch_size=2), wrapped("NEXT_STEP", make(batch_size=2))):
        with pytest.raises(ValueError, match=r"some of its 3 parts at a time.*`batch_size` of 3"):
            same.rollout(envs, CountingActor())


@pytest.mark.parametrize(("shape", "dtype"), [((1, 6), np.float32), ((N_ENVS, 6), np.complex64)])
def test_observations_of_a_vector_environment_that_do_not_fit_are_not_broadcast(shape, dtype):
    class Odd(library_of("DISABLED").vector.SyncVectorEnv):
        def step(self, actions):
            return np.zeros(shape, dtype), *super().step(actions)[1:]

    feed = same.rollout(Odd(ledgers("DISABLED"), autoreset_mode="Disabled"), CountingActor(), 3)
    with pytest.raises(ValueError, match=r"expected shape \(3, 6\), dtype float32, got"):
        next(feed)


@pytest.mark.parametrize(("name", "how"), [("NormalizeObservation", ()), ("TransformObservation", (np.negative,))])
def test_gym_wrappers_that_leave_the_last_observations_as_they_were_are_refused(name, how):
    envs = getattr(gym.wrappers, name)(vector_of("gym", ledgers("gym")), *how)
    envs = gym.wrappers.RecordEpisodeStatistics(envs)
    with pytest.raises(ValueError, match=rf"`final=True` .*{name} .*wrap its single environments"):
        same.rollout(envs, CountingActor(), 3, final=True)
    with same.rollout(envs, CountingActor(), 3) as feed:
        next(feed)


def test_a_vector_environment_without_last_observations_is_refused_if_finals_are_wanted():
    class Silent(library_of("SAME_STEP").vector.SyncVectorEnv):
        def step(self, actions):
            answer = super().step(actions)
            answer[-1].pop("final_obs", None)
            return answer

    mode = library_of("SAME_STEP").vector.AutoresetMode.SAME_STEP
    envs = Silent(ledgers("SAME_STEP"), autoreset_mode=mode)
    with same.rollout(envs, CountingActor(), 20) as feed:
        assert next(feed).env.terminated.any()
    feed = same.rollout(envs, CountingActor(), 20, final=True)
    with pytest.raises(ValueError, match=r"neither 'final_obs' nor 'final_observation'.*another autoreset mode"):
        next(feed)


LISTS = {
    "list": lambda obs: [None if one is None else one.copy() for one in obs],
    "tuple": tuple,
    "nested lists": lambda obs: [None if one is None else one.tolist() for one in obs],
}


@pytest.mark.parametrize("form", LISTS)
@engines
def test_last_observations_may_be_a_list_of_one_for_each_part(engine, form):
    """There are as many parts as an observation has numbers, so that the parts could be taken for the numbers."""

    class Lists(library_of("SAME_STEP").vector.SyncVectorEnv):
        def step(self, actions):
            *answer, info = super().step(actions)
            if "final_obs" in info:
                info["final_obs"] = LISTS[form](info["final_obs"])
            return *answer, info

    def fragments(kind):
        mode = library_of("SAME_STEP").vector.AutoresetMode.SAME_STEP
        return collected(engine, kind(ledgers("SAME_STEP", n_envs=6), autoreset_mode=mode), CountingActor(), 20, 2)

    (expected, episodes), (got, same_episodes) = fragments(Lists.__base__), fragments(Lists)
    assert_identical(expected, got)
    assert episodes == same_episodes


def test_a_list_of_last_observations_is_told_from_a_list_of_their_parts():
    two = (Field((2,), np.dtype(np.float32), integral=False),) * 2
    first, second = np.array([[1, 2], [3, 4]]), np.array([[5, 6], [7, 8]])
    for batch in ((first, second), [first, second], [(first[0], second[0]), (first[1], second[1])]):
        found = last_observation({"final_obs": batch}, 1, two)
        assert [part.tolist() for part in found] == [[3, 4], [7, 8]]
    found = last_observation({"final_obs": {"a": [None, first[1]]}}, 1, {"a": two[0]})
    assert found["a"].tolist() == [3, 4]
    assert last_observation({"final_obs": [None, first[1], None]}, 1, two).tolist() == [3, 4]


@pytest.mark.parametrize(
    ("error", "match", "odd"),
    [
        (ValueError, r"cannot tell when .*expected `autoreset_mode`.*NEXT_STEP.*got None", {"metadata": {}}),
        (ValueError, r"cannot tell when .*got 'SOMETIMES'", {"metadata": {"autoreset_mode": "SOMETIMES"}}),
        (TypeError, r"has no `single_action_space`.*gym 0\.26.*list of single", {"single_action_space": ...}),
        (
            ValueError,
            r"`reset` .* observations and a dict of infos, got ndarray .*0\.25",
            {"reset": lambda seed: ZEROS},
        ),
        (ValueError, r"expected shape \(2, 6\).*got shape \(3, 6\)", {"reset": lambda seed: (np.zeros((3, 6)), {})}),
    ],
)
def test_an_incomplete_vector_environment_or_an_unknown_mode_is_refused_at_the_call(error, match, odd):
    part = LedgerEnv(gym.spaces)
    spaces = {"single_observation_space": part.observation_space, "single_action_space": part.action_space}
    known = {"num_envs": 2, **spaces, "metadata": {"autoreset_mode": "DISABLED"}, "step": bool}
    whole = {**known, "reset": lambda seed: (ZEROS, {}), **odd}
    same.rollout(SimpleNamespace(**known, reset=lambda seed: (ZEROS, {})), CountingActor(), 3).close()
    with pytest.raises(error, match=match):
        same.rollout(SimpleNamespace(**{k: v for k, v in whole.items() if v is not ...}), CountingActor(), 3)


def test_the_attribute_autoreset_mode_is_read_and_an_unknown_mode_is_refused():
    class Odd(gym.vector.SyncVectorEnv):
        autoreset_mode = "SOMETIMES"

    with pytest.raises(ValueError, match="got 'SOMETIMES'"):
        same.rollout(Odd(ledgers("gym")), CountingActor(), 3)


def test_the_refusal_of_an_object_names_the_attributes_of_a_vector_environment():
    with pytest.raises(TypeError, match="`num_envs` and `single_observation_space`"):
        same.rollout(SimpleNamespace(num_envs=2, observation_space=..., step=bool), CountingActor(), 3)
