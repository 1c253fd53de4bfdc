"""Which vector environments in torch are taken, what they tell, and what is refused."""

import re
from functools import partial

import gymnasium
import numpy as np
import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.core import Episode
from rlplay.engine.envs.make import seeds_of
from rlplay.engine.rollout import episodic, evaluate, multi, same, single, threaded
from rlplay.testing import CountingActor, LaggingLane
from rlplay.zoo.actors import ActorCritic, mlp
from rlplay.zoo.envs import CartPoleBatch
from tests.support.assertions import assert_same_bytes, is_closed
from tests.support.by_hand import check_by_hand
from tests.support.stand_ins import IsaacLabStandIn, ManiSkillStandIn
from tests.support.tensors import N, Script, ScriptActor
from tests.support.threads import InThread

MODES = ("SAME_STEP", "NEXT_STEP", "DISABLED")
INFO = {"speed": float, "place": np.zeros(2, np.int64), "all": np.float32, "deep.code": np.float32, "never": bool}

engines = pytest.mark.parametrize("engine", [same, threaded])


def collect(engine, envs, actor=None, *, n_steps=7, n_fragments=4, **options):
    actor, lane = CountingActor() if actor is None else actor, options.get("device")
    with engine.rollout(envs, actor, n_steps, seed=3, **options) as feed:
        fragments = []
        for _ in range(n_fragments):
            fragments.append(next(feed))
            if lane is not None:
                lane.synchronize()
        return fragments, feed.episodes()


# ---- several environments


@engines
@pytest.mark.parametrize("mode", MODES)
def test_in_a_list_each_environment_is_a_group_with_the_seeds_of_its_parts(engine, mode):
    """Each gives the rows that it gives by hand; widths may differ."""
    widths, starts = (2, 4, 3), (0, 2, 6)
    fragments, episodes = collect(same, [Script(n, mode) for n in widths], final=True, lag=1)
    for n, start in zip(widths, starts, strict=True):
        part = slice(start, start + n)
        mine = [columns_of(fragment, part) for fragment in fragments]
        played = [one._replace(env=one.env - start) for one in episodes if start <= one.env < start + n]
        check_by_hand(Script(n, mode), seeds_of(3, 9)[start], mine, played)
    for device in (None, LaggingLane()):
        got = collect(engine, [Script(n, mode) for n in widths], final=True, lag=1, device=device)
        assert_same_bytes(got[0], fragments)
        assert got[1] == episodes


def test_environments_that_release_the_interpreter_lock_are_never_taken_through_the_host_either():
    def envs():
        found = [Script(n, declared=False) for n in (2, 4)]
        for env in found:
            env.releases_interpreter_lock = True
        return found

    expected = collect(same, envs(), final=True, lag=1, autoreset="SAME_STEP")
    got = collect(threaded, envs(), final=True, lag=1, autoreset="SAME_STEP")
    assert_same_bytes(got[0], expected[0])
    assert got[1] == expected[1]


def columns_of(fragment, part):
    def cut(tree):
        return nested.map(lambda x: x[:, part], tree)

    final = fragment.env.final
    here = (final.b >= part.start) & (final.b < part.stop)
    final = nested.map(lambda x: x[here], final)
    env = cut(fragment.env._replace(final=()))._replace(final=final._replace(b=final.b - part.start))
    return fragment._replace(state=cut(fragment.state), actor=cut(fragment.actor), env=env)


@engines
def test_factories_make_environments_that_are_closed_with_the_feed(engine):
    made = []

    def make():
        made.append(Script(3))
        return made[-1]

    expected, _ = collect(same, [Script(3), Script(3)], lag=1)
    got, _ = collect(engine, [make, make], lag=1)
    assert_same_bytes(got, expected)
    assert [env.closed for env in made] == [True, True]


@engines
def test_shards_are_the_parts_of_one_feed(engine):
    whole, episodes = collect(same, [Script(4), Script(4)])
    played = []
    for i in range(2):
        part, ended = collect(engine, Script(4), shard=(i, 2), lag=0)
        assert_same_bytes([one.state for one in part], [columns(one.state, slice(4 * i, 4 * i + 4)) for one in whole])
        played += ended
    assert sorted(played) == sorted(episodes)


def columns(state, part):
    return type(state)(*(x[:, part] for x in state))


# ---- infos


@pytest.mark.filterwarnings("ignore:`info`. no environment has told 'never'")
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("final_info", [False, True])
def test_infos_are_tensors_for_all_parts(mode, final_info):
    fragments, episodes = collect(same, Script(mode=mode, final_info=final_info), info=INFO)
    names = [] if final_info else ["speed", "place"]
    check_by_hand(Script(mode=mode), seeds_of(3, N)[0], fragments, episodes, names=names)
    for one in fragments:
        info, valid, before = one.env.info, one.env.valid, one.state.stepno[:-1]
        assert torch.equal(info["speed"][valid], ((before + 1) * 0.5)[valid].double())
        assert (info["all"][valid] == 3).all()
        assert torch.equal(info["deep.code"][valid], (1.0 + torch.arange(N)).expand(7, N)[valid])
        assert info["deep.code"][~valid].isnan().all()
        assert not info["never"].any()


def test_a_name_that_nobody_tells_draws_one_warning():
    with pytest.warns(RuntimeWarning, match="no environment has told 'never'") as caught:
        collect(same, Script(), info=("speed", "never"))
    assert len(caught) == 1


# ---- stand-ins


class Pushes(BaseActorModule):
    def __init__(self, width):
        super().__init__()
        self.layer = nn.Linear(width, 2)

    def forward(self, obs, *, hx=None, **ignored):
        obs = obs["policy"] if isinstance(obs, dict) else obs
        act = self.layer(obs).tanh() + 0.1 * torch.randn(*obs.shape[:2], 2, generator=self.generator)
        return act, hx, act[..., 0]


@pytest.mark.parametrize("lag", [0, 1])
def test_the_stand_in_for_isaac_lab_runs_in_all_engines(lag):
    torch.manual_seed(0)
    actor, options = Pushes(3), {"lag": lag, "autoreset": "SAME_STEP"}
    expected, episodes = collect(same, IsaacLabStandIn(), actor, **options)
    first = expected[0]
    assert torch.equal(first.state.obs["policy"][..., 1].long(), first.state.stepno)
    assert torch.equal(first.state.rew[1:], first.state.act[1:].sum(-1))
    assert first.env.terminated.any()
    assert first.env.truncated.any()
    assert episodes[0] == Episode(0, episodes[0].ret, 3)
    for engine in (same, threaded):
        for device in (None, LaggingLane()):
            got = collect(engine, IsaacLabStandIn(), actor, device=device, **options)
            assert_same_bytes(got[0], expected)
            assert got[1] == episodes


@pytest.mark.parametrize("lag", [0, 1])
def test_the_stand_in_for_maniskill_runs_in_all_engines_with_its_last_observations(lag):
    torch.manual_seed(0)
    actor = Pushes(2)
    options = {"lag": lag, "autoreset": "SAME_STEP", "final": True}
    options["info"] = {"success": bool, "episode.episode_len": np.int32}
    expected, episodes = collect(same, ManiSkillStandIn(), actor, **options)
    for one in expected:
        final = one.env.final
        assert torch.equal(final.obs[:, 0].long(), final.b)
        lengths = one.env.info["episode.episode_len"]
        assert torch.equal(final.obs[:, 1].int(), lengths[final.t, final.b])
        assert torch.equal(lengths.long(), one.state.stepno[:-1] + 1)
        assert torch.equal(one.env.info["success"], lengths % 3 == 2)
    assert {one.length for one in episodes} == {5, 6, 7}
    for engine in (same, threaded):
        for device in (None, LaggingLane()):
            got = collect(engine, ManiSkillStandIn(), actor, device=device, **options)
            assert_same_bytes(got[0], expected)
            assert got[1] == episodes


def test_last_observations_that_are_not_told_are_missed_with_final_alone():
    with pytest.raises(
        ValueError, match=r"the infos of step 2, at which an episode has ended, have none of 'final_obs'"
    ):
        collect(same, IsaacLabStandIn(), Pushes(3), autoreset="SAME_STEP", final=True)


# ---- the iterator


@engines
def test_a_feed_pauses_closes_and_drops_as_others_do(engine):
    env = Script()
    feed = engine.rollout(env, CountingActor(), 5)
    next(feed)
    with feed.pause():
        n = env.n_steps
    assert env.n_steps >= n
    feed.close()
    assert is_closed(feed)
    with (
        engine.rollout(env, CountingActor(), 5) as older,
        pytest.warns(RuntimeWarning, match="still served an open feed"),
    ):
        engine.rollout(env, CountingActor(), 5).close()
    assert is_closed(older)


@engines
@pytest.mark.parametrize("at", [0, 3])
def test_an_error_of_the_environment_is_raised_with_a_note_that_says_where(engine, at):
    class Fails(Script):
        def step(self, action):
            if self.n_steps == at:
                raise ArithmeticError("broken")
            return super().step(action)

    with pytest.raises(ArithmeticError, match="broken") as caught:
        collect(engine, Fails())
    assert f"the vector environment, in env.step, at step {at} of fragment 0" in "".join(caught.value.__notes__)


# ---- refusals


class Answers(BaseActorModule):
    """Acts by 0, but in one column of groups that have it."""

    def __init__(self, act, column=2):
        super().__init__()
        self.act, self.column = act, column

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        act = torch.zeros(fin.shape, dtype=torch.int64)
        if not virtual and fin.shape[1] > self.column:
            act[0, self.column] = self.act
        return act, hx, ()


@engines
@pytest.mark.parametrize("act", [-1, 5])
def test_an_action_outside_of_its_space_is_refused_with_the_fragment(engine, act):
    why = "action for environment 2, at step 0 of fragment 0, is outside of its action space: expected `act` an integer"
    with pytest.raises(ValueError, match=why):
        collect(engine, Script(), Answers(act))
    with pytest.raises(ValueError, match=why):
        collect(engine, [Script(1), Script(3)], Answers(act, column=1))
    with pytest.raises(ValueError, match=why):
        collect(engine, Script(), Answers(act), final=True, device=LaggingLane())
    with engine.rollout(Script(), Answers(act), 5, device=LaggingLane()) as feed:
        next(feed)
        with pytest.raises(ValueError, match=why):
            feed.episodes()


def test_an_action_outside_of_its_space_ends_the_feed_though_another_thread_was_told_first():
    with threaded.rollout(Script(), Answers(5), 5, device=LaggingLane()) as feed:
        next(feed)
        told = InThread(lambda: feed.stats).wait().error
        assert isinstance(told, ValueError)
        with pytest.raises(ValueError, match="outside of its action space") as caught:
            next(feed)
        assert caught.value is told
        assert not feed.open


def test_a_nan_in_an_action_is_refused():
    class Nan(BaseActorModule):
        def forward(self, obs, *, fin, hx=None, **ignored):
            return torch.full((*fin.shape, 2), torch.nan), hx, ()

    with pytest.raises(ValueError, match=r"environment 0, at step 0 of fragment 0.*`act` without NaN"):
        collect(same, Script(action="box"), Nan())


class Altered(Script):
    """Gives another answer than a `Script`."""

    def __init__(self, alter, **options):
        super().__init__(**options)
        self._alter = alter

    def step(self, action):
        return self._alter(*super().step(action))


WRONG_STEPS = {
    "three values": (lambda o, r, *rest: (o, r, rest[0]), "to return .* or .*, got 3 values"),
    "reward of another shape": (
        lambda o, r, *rest: (o, r[:2], *rest),
        "the reward .* 5 parts.* of shape (2,)",
    ),
    "reward that is no tensor": (lambda o, r, *rest: (o, 1.0, *rest), "the reward .* got 1.0 (float)"),
    "reward on another device": (lambda o, r, *rest: (o, r.to("meta"), *rest), "the reward .* on cpu, .* Have"),
    "flags on another device": (lambda o, r, e, *rest: (o, r, e.to("meta"), *rest), "`terminated` .* on cpu, .* Have"),
    "flags that are no tensors": (lambda o, r, e, *rest: (o, r, e.tolist(), *rest), "`terminated` .* (list)"),
    "observations of another shape": (lambda o, *rest: (o[:, :2], *rest), "obs: expected a tensor of 5 parts"),
    "observations of another dtype": (lambda o, *rest: (o.cdouble(), *rest), "obs: expected a tensor of 5 parts"),
    "observations that are arrays": (lambda o, *rest: (o.numpy(), *rest), "obs: expected a tensor of 5 parts"),
    "infos in a list": (lambda *answer: (*answer[:-1], [{}]), "the infos .* to be a dict"),
}


@pytest.mark.parametrize("wrong", WRONG_STEPS)
def test_a_step_that_does_not_fit_is_refused(wrong):
    alter, why = WRONG_STEPS[wrong]
    with pytest.raises((ValueError, AttributeError), match=why.replace("(", r"\(").replace(")", r"\)")):
        collect(same, Altered(alter))


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ("a word", "'wrong': expected a tensor for all 5 parts"),
        (np.zeros(N), "'wrong': expected a tensor for all 5 parts"),
        ({"inner": 1}, "dotted names"),
        (torch.zeros(N, 2), "got a tensor of shape (5, 2)"),
        (torch.zeros(3), "got a tensor of shape (3,)"),
        (torch.zeros(N, device="meta"), "expected a tensor on cpu, where the observations are"),
    ],
)
def test_info_entries_that_are_no_tensors_are_refused(value, why):
    def alter(*answer):
        return *answer[:-1], {"wrong": value}

    with pytest.raises(ValueError, match=re.escape(why)):
        collect(same, Altered(alter), info=("wrong",))


@pytest.mark.parametrize(
    ("value", "form"),
    [(torch.arange(N), np.int32), (torch.arange(N).short(), np.int8), (2**31, np.int32), (-1, np.uint8), (0.5, int)],
)
def test_info_entries_that_their_dtype_may_not_hold_are_refused(value, form):
    def alter(*answer):
        return *answer[:-1], {"wrong": value}

    with pytest.raises(ValueError, match=f"whose values {np.dtype(form)} can hold, got "):
        collect(same, Altered(alter), info={"wrong": form})


def test_info_entries_that_their_dtype_holds_are_recorded():
    def alter(*answer):
        return *answer[:-1], {"byte": 255, "wide": torch.arange(N).int(), "real": torch.arange(N)}

    fragments, _ = collect(same, Altered(alter), info={"byte": np.uint8, "wide": np.int64, "real": np.float32})
    info = fragments[0].env.info
    assert (info["byte"] == 255).all()
    assert info["wide"][0].tolist() == info["real"][0].tolist() == list(range(N))


def test_an_environment_that_does_not_say_when_it_resets_is_refused_without_the_keyword():
    for how in ({"autoreset": "SAME_STEP"}, {"autoreset": "NEXT_STEP"}, {"autoreset": "DISABLED"}):
        expected, _ = collect(same, Script(mode=how["autoreset"]))
        assert_same_bytes(collect(same, Script(mode=how["autoreset"], declared=False), **how)[0], expected)
    with pytest.raises(ValueError, match=r"cannot tell when .* say it by `rollout\(..., autoreset=...\)`"):
        collect(same, Script(declared=False))
    with pytest.raises(ValueError, match=r"`autoreset` is 'DISABLED', but .* says that .* by 'SAME_STEP'"):
        collect(same, Script(), autoreset="DISABLED")
    with pytest.raises(ValueError, match="`autoreset` must be one of"):
        collect(same, Script(), autoreset="LATER")
    with pytest.raises(ValueError, match="`autoreset` is for vector environments"):
        collect(same, [gymnasium.make("CartPole-v1")], autoreset="SAME_STEP")


def test_autoreset_holds_for_vector_environments_on_the_host_as_well():
    def make(mode):
        env = gymnasium.vector.SyncVectorEnv([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=mode)
        return env

    class Undeclared(gymnasium.vector.VectorWrapper):
        @property
        def unwrapped(self):
            return self

        metadata = {}  # noqa: RUF012

    torch.manual_seed(0)
    actor, mode = ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1)), gymnasium.vector.AutoresetMode.SAME_STEP
    expected, _ = collect(same, make(mode), actor, reseed=True)
    with pytest.raises(ValueError, match="cannot tell when"):
        collect(same, Undeclared(make(mode)), actor)
    got, _ = collect(same, Undeclared(make(mode)), actor, autoreset="SAME_STEP")
    assert got[0].state.fin.shape == expected[0].state.fin.shape


@engines
def test_options_that_need_the_host_are_refused(engine):
    with pytest.raises(ValueError, match="sticky"):
        collect(engine, Script(), sticky=True)
    with pytest.raises(ValueError, match="`groups` must be 1 for a list of vector environments"):
        collect(engine, [Script(), Script()], groups=2)
    if engine is threaded:
        with pytest.raises(ValueError, match="`workers` are for a list of environments"):
            collect(engine, Script(), workers=1, worker="thread")


def test_engines_that_step_elsewhere_refuse_environments_in_torch():
    for engine, options in ((single, {"n_envs": 1}), (multi, {"n_actors": 1, "n_per_actor": 1})):
        with pytest.raises(TypeError, match="is a vector environment, where a single one is needed"):
            engine.rollout(Script, CountingActor(), 3, **options)
    with pytest.raises(TypeError, match=r"gives torch tensors.*`same` and `threaded`"):
        evaluate.evaluate(Script(), CountingActor())
    with pytest.raises(ValueError, match="whole episodes need environments that can stand still"):
        episodic.rollout(Script(), CountingActor())


def test_environments_of_different_kinds_or_spaces_are_refused():
    class Arrays(Script):
        def reset(self, **options):
            obs, infos = super().reset(**options)
            return obs.numpy(), infos

    with pytest.raises(TypeError, match="vector environment 1 of `envs` gives NumPy arrays"):
        collect(same, [Script(), Arrays()])
    with pytest.raises(ValueError, match="must have equal spaces"):
        collect(same, [Script(), Script(action="box")])


def test_an_actor_on_another_device_is_refused():
    class Elsewhere(Script):
        def reset(self, **options):
            obs, infos = super().reset(**options)
            return obs.to("meta"), infos

    with pytest.raises(ValueError, match=r"are on meta, but the actor is to act on cpu.*actor.to\('meta'\)"):
        collect(same, Elsewhere())


def test_an_actor_whose_reset_does_not_take_masks_is_refused():
    class OneByOne(CountingActor):
        def reset(self, hx, at):
            hx = {name: x.clone() for name, x in hx.items()}
            for x in hx.values():
                x[:, at].zero_()
                if not isinstance(at, torch.Tensor):
                    x[:, at] = 0
            return hx

    with pytest.raises(ValueError, match="does not honour a bool mask"):
        collect(same, Script(), OneByOne())


def test_observations_that_do_not_fit_their_space_are_refused_at_the_call():
    class Wide(Script):
        def _observe(self):
            return torch.cat([super()._observe()] * 2, 1)

    with pytest.raises(ValueError, match=r"obs: expected a tensor of 5 parts, each of shape \(3,\)"):
        same.rollout(Wide(), CountingActor())

    class Mixed(Script):
        def reset(self, **options):
            obs, infos = super().reset(**options)
            return {**obs, "code": obs["code"].numpy()}, infos

    with pytest.raises(TypeError, match="all leaves of the observation to be tensors on one device"):
        same.rollout(Mixed(obs="nested"), CountingActor())


def test_gradients_of_an_environment_stay_inside():
    class Differentiable(CartPoleBatch):
        def step(self, action):
            assert torch.is_grad_enabled()
            weight = torch.ones((), requires_grad=True)
            obs, rew, *rest = super().step(action)
            return obs * weight, rew * weight, *rest

    fragments, _ = collect(same, Differentiable(4), Answers(1))
    assert not fragments[0].state.obs.requires_grad
    assert not fragments[0].state.rew.requires_grad


def test_the_old_api_of_reset_returns_observations_alone():
    class Old(Script):
        def reset(self):
            return super().reset()[0]

    expected, _ = collect(same, Script(dones=True), reseed=False)
    assert_same_bytes(collect(same, Old(dones=True))[0], expected)


def test_a_script_actor_acts_in_all_its_action_spaces():
    for action in ("discrete", "box", "dict"):
        fragments, _ = collect(same, Script(action=action), ScriptActor(Script(action=action)))
        assert len(fragments) == 4


class Watched(Script):
    """Is watched only: its action space has no numbers."""

    def __init__(self):
        super().__init__()
        self.single_action_space = gymnasium.spaces.Dict({})

    def step(self, action):
        assert action == {}
        return super().step([torch.zeros(self.num_envs)])


class Watches(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        return {}, (), {"code": obs}


def test_an_action_space_may_have_no_numbers():
    expected, _ = collect(same, Watched(), Watches())
    got, _ = collect(same, Watched(), Watches(), device=LaggingLane())
    assert_same_bytes(got, expected)


class Told:
    """A vector environment of gymnasium whose arrays are given as tensors, masks included."""

    def __init__(self, mode):
        self._env = gymnasium.vector.SyncVectorEnv([partial(Scored, 3), partial(Scored, 5)], autoreset_mode=mode)
        self.num_envs, self.autoreset_mode = 2, mode.name
        self.single_observation_space = self._env.single_observation_space
        self.single_action_space = self._env.single_action_space

    def reset(self, *, seed=None, options=None):
        return in_tensors(self._env.reset(seed=seed))

    def step(self, actions):
        return in_tensors(self._env.step(actions.numpy()))


class Scored(gymnasium.Env):
    """Tells a score at the end of an episode only."""

    observation_space = gymnasium.spaces.Box(-9, 9, (1,), np.float32)
    action_space = gymnasium.spaces.Discrete(1000)

    def __init__(self, length):
        self.length = length

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        self.t += 1
        over = self.t == self.length
        told = {"score": 7.0, "episode": {"r": 2 * self.length}} if over else {}
        return np.full(1, self.t, np.float32), 1.0, over, False, told


def in_tensors(values):
    if isinstance(values, dict):
        values = {
            name: value for name, value in values.items() if getattr(getattr(value, "dtype", None), "char", "") != "O"
        }
        return {name: in_tensors(value) for name, value in values.items()}
    return tuple(map(in_tensors, values)) if isinstance(values, tuple) else torch.as_tensor(values)


@pytest.mark.parametrize("mode", [gymnasium.vector.AutoresetMode.NEXT_STEP, gymnasium.vector.AutoresetMode.SAME_STEP])
def test_entries_that_only_some_parts_have_are_absent_in_the_others(mode):
    numpy = gymnasium.vector.SyncVectorEnv([partial(Scored, 3), partial(Scored, 5)], autoreset_mode=mode)
    options = {"seed": 0, "info": {"score": float, "episode.r": np.int64}}
    expected, found = (next(same.rollout(env, CountingActor(), 8, **options)).env.info for env in (numpy, Told(mode)))
    for name in expected:
        torch.testing.assert_close(found[name], expected[name], rtol=0, atol=0, equal_nan=True)
    assert found["score"].isnan().any()
    assert (found["score"] == 7).any()


class InTensors(gymnasium.vector.VectorWrapper):
    """Gives the arrays of gymnasium's vector environments as tensors, and takes tensors, as NumpyToTorch does."""

    def reset(self, *, seed=None, options=None):
        options = options and {name: value.numpy() for name, value in options.items()}
        return in_tensors(self.env.reset(seed=seed, options=options))

    def step(self, actions):
        return in_tensors(self.env.step(actions.numpy()))


@engines
def test_environments_of_gymnasium_are_reset_by_a_mask_only_when_an_episode_has_ended(engine):
    """They refuse a mask that is all False."""

    def make():
        mode = gymnasium.vector.AutoresetMode.DISABLED
        return gymnasium.vector.SyncVectorEnv([partial(Scored, 3), partial(Scored, 5)], autoreset_mode=mode)

    (expected, expected_episodes), (found, episodes) = (collect(engine, env) for env in (make(), InTensors(make())))
    assert_same_bytes(found, expected)
    assert episodes == expected_episodes
    assert len(episodes) == 9 + 5
