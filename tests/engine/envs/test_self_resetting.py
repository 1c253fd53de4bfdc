"""Single environments that reset themselves: no episode is lost, and the rows are those of the contract."""

from __future__ import annotations

import gym
import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import CountingActor, LedgerEnv
from tests.support.rows import untold

N_ENVS = 3
# in short fragments an episode may end before an entry of every other step is told
pytestmark = untold

INFO = {"code": float, "even": float, "episode.r": float, "TimeLimit.truncated": float}


class Wrapper:
    """A wrapper of no library: passes everything on to the environment inside."""

    def __init__(self, env):
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space

    def reset(self, *, seed=None, options=None):
        return self.env.reset(seed=seed)

    def step(self, action):
        return self.env.step(action)


class AutoResetWrapper(Wrapper):
    """Resets in the same step; named and written as those of gym 0.26 and of gymnasium before 1.0."""

    def step(self, action):
        obs, rew, terminated, truncated, info = self.env.step(action)
        if terminated or truncated:
            last, told = obs, info
            obs, info = self.env.reset()
            info = {**info, "final_observation": last, "final_info": told}
        return obs, rew, terminated, truncated, info


class Subclass(AutoResetWrapper):
    """Is recognised by the name of its base."""


class OldWrapper(Wrapper):
    """The same with the old API, and with the names of gym 0.25."""

    def seed(self, seed=None):
        self._seed = seed

    def reset(self):
        seed, self._seed = getattr(self, "_seed", None), None
        return self.env.reset(seed=seed)[0]

    def step(self, action):
        obs, rew, terminated, truncated, told = self.env.step(action)
        info = told
        if terminated or truncated:
            last, (obs, info) = obs, self.env.reset()
            # this API has one flag: the ledger's "TimeLimit.truncated" says which
            info = {**info, "closing_observation": last, "closing_info": told}
        return obs, rew, terminated or truncated, info


OldWrapper.__name__ = "AutoResetWrapper"


class Counts(Wrapper):
    """A wrapper outside that adds an entry to the info."""

    n = 0

    def step(self, action):
        *answer, info = self.env.step(action)
        self.n += 1
        return *answer, {**info, "even": float(self.n)}


def gymnasium_autoreset(env):
    return pytest.importorskip("gymnasium").wrappers.Autoreset(env)


def ledger(j, form="vector", spaces=gym.spaces, **options):
    return LedgerEnv(spaces, j, form=form, **options)


def gym_ledger(j, library="gym", **options):
    """A ledger environment that is an environment of a library, so that its wrappers take it."""
    lib = pytest.importorskip(library)

    class Inside(LedgerEnv, lib.Env):
        metadata, render_mode, spec, unwrapped = {}, None, None, property(lambda self: self)

    return Inside(lib.spaces, j, **options)


SAME_STEP = {
    "gym": lambda j, **o: gym.wrappers.AutoResetWrapper(gym_ledger(j, **o)),
    "gym, order": lambda j, **o: gym.wrappers.OrderEnforcing(gym.wrappers.AutoResetWrapper(gym_ledger(j, **o))),
    "by name": lambda j, **o: AutoResetWrapper(ledger(j, **o)),
    "subclass, wrapped twice": lambda j, **o: Wrapper(Wrapper(Subclass(ledger(j, **o)))),
}


def collected(envs, module=same, n_fragments=3, n_steps=9, **options):
    with module.rollout(envs, CountingActor(), n_steps, seed=5, info=INFO, **options) as feed:
        fragments = [next(feed) for _ in range(n_fragments)]
        return fragments, feed.episodes(), feed.steps


def assert_equal(one, other):
    assert one[1:] == other[1:]
    assert nested.structure(one[0]) == nested.structure(other[0])
    for x, y, name in zip(nested.leaves(one[0]), nested.leaves(other[0]), nested.names(one[0]), strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy(), name)


@pytest.mark.parametrize("how", [{}, {"final": True}, {"sticky": True, "final": True}], ids=["", "final", "sticky"])
@pytest.mark.parametrize("kind", SAME_STEP)
def test_the_rows_of_environments_that_reset_in_the_same_step_are_those_of_a_list(kind, how):
    envs = [SAME_STEP[kind](j) for j in range(N_ENVS)]
    assert_equal(collected(envs, **how), collected([ledger(j) for j in range(N_ENVS)], **how))


@pytest.mark.parametrize("form", ["dict", "tuple", "pair", "scalar", "discrete"])
def test_their_observations_may_be_of_any_form(form):
    envs, others = ([make(ledger(j, form)) for j in range(2)] for make in (AutoResetWrapper, lambda env: env))
    assert_equal(collected(envs, final=True), collected(others, final=True))


def test_the_old_api_tells_of_truncation_in_the_last_info():
    envs = [OldWrapper(ledger(j, ends=["truncated", "terminated"])) for j in range(N_ENVS)]
    others = [ledger(j, ends=["truncated", "terminated"]) for j in range(N_ENVS)]
    assert_equal(collected(envs, final=True), collected(others, final=True))


def test_they_may_be_made_in_processes_and_threads_and_mixed_with_others():
    def make(j):
        return lambda: AutoResetWrapper(ledger(j)) if j else ledger(j)

    expected = collected([ledger(j) for j in range(N_ENVS)], final=True)
    for worker in ("thread", "process"):
        got = collected([make(j) for j in range(N_ENVS)], threaded, final=True, workers=2, worker=worker, lag=0)
        assert_equal(got, expected)


def test_they_may_be_collected_from_in_a_process_of_its_own():
    def make():
        return gym.wrappers.TimeLimit(gym.wrappers.AutoResetWrapper(gym.make("CartPole-v1").unwrapped), 10**6)

    class Two(CountingActor):
        def forward(self, obs, **inputs):
            act, hx, info = super().forward(obs, **inputs)
            return act % 2, hx, info

    with single.rollout(make, Two(), 60, n_envs=2, seed=3, final=True, lag=0) as feed:
        got = next(feed)
    with same.rollout([lambda: gym.make("CartPole-v1").unwrapped] * 2, Two(), 60, seed=3, final=True) as feed:
        expected = next(feed)
    assert len(got.env.final.t) > 3
    for x, y in zip(nested.leaves(got), nested.leaves(expected), strict=True):
        assert torch.equal(x, y)


def test_info_entries_of_wrappers_outside_are_those_of_the_step():
    got, _, _ = collected([Counts(AutoResetWrapper(ledger(0)))], n_fragments=1)
    # at the end of an episode the last info of the environment takes precedence over the wrapper's entry
    outcome = got[0].env
    ended = (outcome.terminated | outcome.truncated)[:, 0]
    steps = torch.arange(1, 10, dtype=torch.float64)
    even = outcome.info["even"][:, 0]
    assert torch.equal(even[~ended], steps[~ended])
    assert outcome.info["code"][:, 0].tolist() == got[0].state.rew[1:, 0].tolist()


def test_an_end_by_a_wrapper_outside_that_resets_nothing_is_followed_by_a_reset():
    class Limit(Wrapper):
        n = 0

        def reset(self, **how):
            self.n = 0
            return super().reset(**how)

        def step(self, action):
            obs, rew, terminated, truncated, info = super().step(action)
            self.n += 1
            return obs, rew, terminated, truncated or self.n % 3 == 0, info

    for kind in (AutoResetWrapper, gymnasium_autoreset):
        inside = gym_ledger(0, "gymnasium", lengths=[50])
        with same.rollout([Limit(kind(inside))], CountingActor(), 9, final=True) as feed:
            fragment = next(feed)
        assert fragment.state.obs[:, 0, 1].tolist() == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3]
        assert fragment.env.final.obs[:, 2].tolist() == [3, 3, 3]
        assert fragment.env.valid.all()


@pytest.mark.parametrize("outside", ["TransformObservation", "FrameStack", "NormalizeObservation", "by hand"])
def test_wrappers_outside_that_change_observations_are_refused(outside):
    env = gym.wrappers.AutoResetWrapper(gym_ledger(0))

    class Other(Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.observation_space = gym.spaces.Box(-1, 1, (6,), np.float32)

    make = {
        "TransformObservation": lambda: gym.wrappers.TransformObservation(env, lambda x: x),
        "FrameStack": lambda: gym.wrappers.FrameStack(env, 2),
        "NormalizeObservation": lambda: gym.wrappers.NormalizeObservation(env),
        "by hand": lambda: Wrapper(Other(env)),
    }
    with pytest.raises(ValueError, match=r"environment 0 resets itself \(AutoResetWrapper\).* off .*`autoreset=False`"):
        same.rollout([make[outside]()], CountingActor(), 3)


def test_a_last_observation_that_the_reset_has_overwritten_is_refused():
    with same.rollout([AutoResetWrapper(ledger(0, reuse=True))], CountingActor(), 9, final=True) as feed:
        with pytest.raises(ValueError, match=r"same array each time.*take the wrapper off") as caught:
            next(feed)
        assert "environment 0, in env.step, at step 3" in caught.value.__notes__[0]
    # without `final` nobody needs it
    got, expected = (collected([make]) for make in (AutoResetWrapper(ledger(0, reuse=True)), ledger(0)))
    assert_equal(got, expected)


NEXT_STEP = {
    "alone": gymnasium_autoreset,
    "wrapped": lambda env: Wrapper(gymnasium_autoreset(env)),
    "time limit": lambda env: pytest.importorskip("gymnasium").wrappers.TimeLimit(gymnasium_autoreset(env), 1000),
}


@pytest.mark.parametrize("n_steps", [1, 4, 9])
@pytest.mark.parametrize("kind", NEXT_STEP)
def test_the_rows_of_gymnasiums_autoreset_are_those_of_a_vector_environment_in_next_step_mode(kind, n_steps):
    vector = pytest.importorskip("gymnasium").vector
    makers = [lambda j=j: gym_ledger(j, "gymnasium", lengths=[4, 1, 2]) for j in range(N_ENVS)]
    how = {"n_steps": n_steps, "n_fragments": 18 // n_steps, "final": True}
    envs = vector.SyncVectorEnv(makers, autoreset_mode=vector.AutoresetMode.NEXT_STEP)
    expected = collected(envs, **how)
    got = collected([NEXT_STEP[kind](make()) for make in makers], **how)
    assert_equal(got, expected)
    assert not all(fragment.env.valid.all() for fragment in got[0])
    assert_equal(collected([lambda m=m: NEXT_STEP[kind](m()) for m in makers], **how), expected)


def test_lists_in_which_only_some_reset_themselves():
    gymnasium = pytest.importorskip("gymnasium")
    envs = [
        gym_ledger(0, "gymnasium"),
        gymnasium_autoreset(gym_ledger(1, "gymnasium")),
        AutoResetWrapper(ledger(2, spaces=gymnasium.spaces)),
    ]
    fragments, episodes, steps = collected(envs, final=True)
    valid = torch.cat([fragment.env.valid for fragment in fragments])
    assert valid[:, [0, 2]].all()
    assert not valid[:, 1].all()
    assert steps == int(valid.sum())
    _, others, _ = collected([ledger(j) for j in range(N_ENVS)], final=True)
    for j in range(N_ENVS):
        ours, theirs = ([episode for episode in some if episode.env == j] for some in (episodes, others))
        assert ours == theirs[: len(ours)]
        assert len(ours) > 2


@pytest.mark.parametrize("worker", ["thread", "process"])
def test_workers_step_gymnasiums_autoreset(worker):
    def make(j):
        return lambda: gymnasium_autoreset(gym_ledger(j, "gymnasium"))

    how = {"workers": 2, "worker": worker, "lag": 0}
    got = collected([make(j) for j in range(N_ENVS)], threaded, final=True, **how)
    assert_equal(got, collected([make(j)() for j in range(N_ENVS)], final=True))


ALL = {
    "same step": lambda j: AutoResetWrapper(ledger(j)),
    "next step": lambda j: gymnasium_autoreset(gym_ledger(j, "gymnasium")),
}
every_kind = pytest.mark.parametrize("make", ALL.values(), ids=ALL)


@every_kind
def test_sticky_rows_are_those_of_a_list(make):
    how = {"sticky": True, "final": True}
    assert_equal(collected([make(j) for j in range(N_ENVS)], **how), collected([ledger(j) for j in range(3)], **how))


@every_kind
def test_evaluating_equals_evaluating_a_list(make):
    def play(envs):
        torch.manual_seed(3)
        return evaluate(envs, CountingActor())

    envs = [make(j) for j in range(N_ENVS)]
    got, expected = play(envs), play([ledger(j) for j in range(N_ENVS)])
    np.testing.assert_array_equal(got[0], expected[0])
    for x, y in zip(nested.leaves(got[1]), nested.leaves(expected[1]), strict=True):
        np.testing.assert_array_equal(x, y)
    # afterwards the environments are in the midst of an episode, or after its end
    assert [episode.env for episode in collected(envs)[1]][:1] != []


@every_kind
def test_whole_episodes_are_those_of_a_list(make):
    def lists(envs):
        with episodic.rollout(envs, CountingActor(), batch_size=4, seed=5) as feed:
            return [next(feed), next(feed)], feed.episodes()

    got, expected = lists([make(j) for j in range(2)]), lists([ledger(j) for j in range(2)])
    assert got[1] == expected[1]
    for x, y in zip(nested.leaves(got[0]), nested.leaves(expected[0]), strict=True):
        assert torch.equal(x, y)


def test_the_rows_of_gyms_make_with_autoreset():
    class Two(CountingActor):
        def forward(self, obs, **inputs):
            act, hx, info = super().forward(obs, **inputs)
            return act % 2, hx, info

    def fragments(autoreset):
        envs = [gym.make("CartPole-v1", max_episode_steps=9, autoreset=autoreset) for _ in range(2)]
        with same.rollout(envs, Two(), 50, seed=3, final=True, info=("TimeLimit.truncated",)) as feed:
            return [next(feed), next(feed)], feed.episodes()

    got, expected = fragments(True), fragments(False)
    assert got[1] == expected[1]
    assert got[0][0].env.truncated.any()
    for x, y in zip(nested.leaves(got[0]), nested.leaves(expected[0]), strict=True):
        np.testing.assert_array_equal(x.numpy(), y.numpy())


class Line(gym.Env):
    """An episode of three steps, whose info has a score at its end only."""

    observation_space, action_space = gym.spaces.Box(-9, 9, (1,), np.float32), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(1, self.t, np.float32), 1.0, self.t == 3, False, {"score": 7.0} if self.t == 3 else {}


class Forwards:
    """A wrapper of no library. It forwards all attributes to the environment inside, which it holds by another name."""

    def __init__(self, inner):
        self._inner = inner

    def __getattr__(self, name):
        return getattr(self._inner, name)

    def reset(self, **options):
        return self._inner.reset(**options)

    def step(self, action):
        return self._inner.step(action)


def self_resetting_line():
    return gym.wrappers.AutoResetWrapper(Line())


@pytest.mark.parametrize(
    "envs",
    [
        lambda: [self_resetting_line()],
        lambda: [Forwards(self_resetting_line())],
        lambda: gym.vector.SyncVectorEnv([self_resetting_line]),
    ],
)
def test_the_last_observation_and_the_last_info_are_told_wherever_the_wrapper_is(envs):
    with same.rollout(envs(), CountingActor(), 5, seed=0, info=("score",), final=True) as feed:
        fragment = next(feed)
    assert fragment.env.final.t.tolist() == [2]
    assert fragment.env.final.obs.tolist() == [[3.0]]
    assert fragment.env.info["score"][2].item() == 7.0


class Zero(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        return torch.zeros_like(fin, dtype=torch.int64), (), ()


class Trial(Wrapper):
    """One episode of this wrapper consists of two episodes of the environment inside."""

    def reset(self, **options):
        self.n = 0
        return self.env.reset(**options)

    def step(self, action):
        obs, rew, terminated, truncated, info = self.env.step(action)
        self.n += terminated
        return obs, rew, self.n == 2, truncated, info


def test_a_wrapper_outside_that_ends_an_episode_together_with_the_environment_is_reset_as_well():
    gymnasium = pytest.importorskip("gymnasium")

    class Inside(Line, gymnasium.Env):
        pass

    limited = gymnasium.wrappers.TimeLimit(gymnasium_autoreset(Inside()), 3)
    with same.rollout([Trial(gymnasium_autoreset(Inside())), limited], Zero(), 16) as feed:
        fragment, episodes = next(feed), feed.episodes()
    assert [[one.length for one in episodes if one.env == j] for j in range(2)] == [[7, 7], [3, 3, 3, 3]]
    for j, shown in enumerate(([0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 3, 0], [0, 1, 2, 3] * 4 + [0])):
        assert fragment.state.obs[:, j, 0].tolist() == shown


class OwnVectorEnv(gym.Env):
    """A vector environment that derives from a class of gym, but from none of its vector environments."""

    num_envs, single_observation_space, single_action_space = 1, Line.observation_space, Line.action_space

    def __init__(self):
        self.line, self.over = Line(), False

    def reset(self, **options):
        return self.line.reset()[0][None], {}

    def step(self, actions):
        if self.over:  # resets itself at the next step
            self.over = False
            return self.line.reset()[0][None], np.zeros(1), np.zeros(1, bool), np.zeros(1, bool), {}
        obs, rew, self.over, _, _ = self.line.step(0)
        return obs[None], np.array([rew]), np.array([self.over]), np.zeros(1, bool), {}


def test_a_vector_environment_of_the_users_own_says_how_it_resets_even_if_it_derives_from_gym():
    with pytest.raises(ValueError, match="cannot tell when"):
        same.rollout(OwnVectorEnv(), CountingActor(), 7)
    with same.rollout(OwnVectorEnv(), CountingActor(), 8, autoreset="NEXT_STEP") as feed:
        next(feed)
        assert [episode.length for episode in feed.episodes()] == [3, 3]
    with pytest.raises(ValueError, match="says that it resets"):
        same.rollout(gym.vector.SyncVectorEnv([Line]), CountingActor(), 3, autoreset="NEXT_STEP")


class Opaque:
    """Stands for a method of a class written in C: it has no signature."""

    def __init__(self, method):
        self._method = method

    @property
    def __signature__(self):
        raise ValueError("no signature found")

    def __call__(self, *args, **options):
        return self._method(*args, **options)


def test_an_environment_whose_reset_has_no_signature_gets_its_seed():
    seeds = []

    class InC(Line):
        def __init__(self):
            self.reset = Opaque(self.begin)

        def begin(self, *, seed=None, options=None):
            seeds.append(seed)
            return Line.reset(self)

    env = InC()
    env.seed = None  # gym's base class has a method, as the old API; this one has not
    same.rollout([env], CountingActor(), 3, seed=0).close()
    assert len(seeds) == 1
    assert isinstance(seeds[0], int)


def test_a_wrapper_inside_of_the_users_own_vector_environment_is_none_around_it():
    class WithPrototype(OwnVectorEnv):
        autoreset_mode = "SAME_STEP"

        def __init__(self):
            super().__init__()
            self.line = gym.wrappers.TransformObservation(Line(), np.negative)

        def step(self, actions):
            obs, rew, terminated, truncated, _ = self.line.step(actions[0])
            last = obs[None]
            obs = self.line.reset()[0] if terminated else obs
            return obs[None], np.array([rew]), np.array([terminated]), np.array([truncated]), {"final_obs": last}

    with same.rollout(WithPrototype(), Zero(), 7, final=True) as feed:
        assert next(feed).env.final.obs.tolist() == [[-3.0], [-3.0]]
