"""An environment is saved whole, in place, or refused with the path to what cannot be saved."""

import collections
import dataclasses
import pickle
import threading

import gym
import gymnasium
import numpy as np
import pytest
from gymnasium.utils import EzPickle
from gymnasium.wrappers import TransformObservation, TransformReward

from rlplay.engine.concurrency.progress import Progress
from rlplay.engine.envs.saving.environment import restore_environments, save_environments
from tests.support.noisy import Noisy
from tests.support.saving import breakout


def save(env, number):
    return save_environments([env], number, Progress())[0]


def restore(env, saved, number):
    restore_environments([env], [saved], number, Progress())


def play(env, n=60):
    told, dice = [], np.random.default_rng(5)
    for _ in range(n):
        obs, rew, terminated, truncated, _ = env.step(int(dice.integers(env.action_space.n)))
        if terminated or truncated:
            obs, _ = env.reset()
        told.append((np.array(obs).tobytes(), float(rew), terminated, truncated, int(env.action_space.sample())))
    return told


def scaled():
    env = TransformReward(gymnasium.make("CartPole-v1"), lambda rew: 2 * rew)
    return TransformObservation(env, lambda obs: obs * 3, env.observation_space)


def clipped(env):
    env = gymnasium.wrappers.ClipAction(gymnasium.wrappers.RescaleAction(env, -1.0, 1.0))
    return gymnasium.wrappers.TransformAction(env, lambda act: np.array([act - 2.5]), gymnasium.spaces.Discrete(6))


MAKERS = [
    Noisy, lambda: gymnasium.make("CartPole-v1"), lambda: gymnasium.make("Acrobot-v1"), scaled, breakout,
    lambda: gymnasium.wrappers.NormalizeObservation(gymnasium.make("CartPole-v1")),
    lambda: gymnasium.wrappers.FlattenObservation(gymnasium.wrappers.ReshapeObservation(Noisy(), (3, 1))),
    lambda: gymnasium.wrappers.TimeAwareObservation(gymnasium.make("CartPole-v1")),
    lambda: clipped(gymnasium.make("Pendulum-v1", max_episode_steps=9)),
    lambda: gymnasium.wrappers.RecordEpisodeStatistics(gymnasium.make("Taxi-v4")),
]  # fmt: skip


@pytest.mark.parametrize("make", MAKERS)
def test_an_environment_goes_on_from_its_state_and_saving_changes_nothing(make):
    one, undisturbed, other = make(), make(), make()
    for env in (one, undisturbed):
        env.reset(seed=1)
        env.action_space.seed(2)
        play(env)
    other.reset(seed=7)
    play(other, 3)
    saved = save(one, 0)
    assert saved.keys() == {"kinds", "data"}
    expected = play(undisturbed)
    assert play(one) == expected
    restore(other, saved, 0)
    assert play(other) == expected


def test_the_parts_stay_the_same_objects_and_so_do_references_between_them():
    class Outer(gymnasium.Wrapper):
        def __init__(self, env):
            super().__init__(env)
            self.raw, self.shared = env.unwrapped, [0]
            env.unwrapped.shared, env.unwrapped.outer = self.shared, self

    one, other = Outer(Noisy()), Outer(Noisy())
    one.shared[0] = 5
    inner = other.env
    restore(other, save(one, 0), 0)
    assert other.env is other.raw is inner
    assert inner.outer is other
    assert inner.shared is other.shared
    assert other.shared == [5]


def test_attributes_that_came_since_are_removed():
    one, other = Noisy(), Noisy()
    saved = save(one, 0)
    other.later = 1
    restore(other, saved, 0)
    assert not hasattr(other, "later")


class Handle:
    """Stands for a simulator that is not written in Python: it cannot be pickled."""

    def __init__(self):
        self.x, self.lock = 0, threading.Lock()


class WithState(Noisy):
    def __init__(self):
        super().__init__()
        self.simulator = Handle()

    def get_state(self):
        return self.simulator.x, self.dice

    def set_state(self, state):
        self.simulator.x, self.dice = state


class WithClone(Noisy):
    def __init__(self):
        super().__init__()
        self.simulator = Handle()

    def clone_state(self, include_rng=False):
        return self.simulator.x, self.dice if include_rng else None, self.obs

    def restore_state(self, state):
        self.simulator.x, self.dice, self.obs = state


@pytest.mark.parametrize("kind", [WithState, WithClone])
def test_an_innermost_environment_saves_itself_if_it_can_and_wrappers_are_pickled(kind):
    one, other = (gymnasium.wrappers.TimeLimit(kind(), 9) for _ in range(2))
    one.reset(seed=1)
    other.reset(seed=2)
    play(one, 5)
    one.unwrapped.np_random.random(3)
    one.unwrapped.simulator.x = 4
    restore(other, save(one, 0), 0)
    assert other.unwrapped.simulator.x == 4
    assert [x[1:] for x in play(other, 30)] == [x[1:] for x in play(one, 30)]
    assert other.unwrapped.np_random.random() == one.unwrapped.np_random.random()


class Physics:
    """As that of dm_control: what `get_state` returns does not have all that it holds."""

    def __init__(self):
        self.position, self.time = 0, 0

    def reset(self):
        self.position = self.time = 0

    def step(self):
        self.position, self.time = self.position + 1, self.time + 1

    def get_state(self):
        return self.position

    def set_state(self, state):
        self.position = state


class HasSimulator(Noisy):
    def __init__(self, simulator):
        super().__init__()
        self.simulator = simulator


def test_a_simulator_in_an_environment_is_saved_with_all_that_it_holds():
    one, other = HasSimulator(Physics()), HasSimulator(Physics())
    one.simulator.step()
    saved = save(one, 0)
    assert len(saved["kinds"]) == 1
    restore(other, saved, 0)
    assert vars(other.simulator) == {"position": 1, "time": 1}


class Engine(Handle):
    step = reset = None


class HasEngine(WithState):
    def __init__(self):
        super().__init__()
        self.simulator = Engine()


def test_an_environment_saves_itself_though_its_simulator_has_step_and_reset():
    one, other = (gymnasium.wrappers.TimeLimit(HasEngine(), 9) for _ in range(2))
    one.unwrapped.simulator.x = 3
    restore(other, save(one, 0), 0)
    assert other.unwrapped.simulator.x == 3


class PassesOn:
    """A wrapper that is not gymnasium's; it has no spaces of its own."""

    def __init__(self, env):
        self.env, self.itself = env, self

    def __getattr__(self, name):
        if name == "env":
            raise AttributeError(name)
        return getattr(self.env, name)

    def step(self, action):
        return self.env.step(action)

    def reset(self, **options):
        return self.env.reset(**options)


def test_a_wrapper_that_passes_attributes_on_is_no_end_of_the_search():
    one, other = (PassesOn(PassesOn(WithState())) for _ in range(2))
    one.env.env.simulator.x = 4
    restore(other, save(one, 0), 0)
    assert other.env.env.simulator.x == 4


class MadeAnew(EzPickle):
    def __init__(self):
        EzPickle.__init__(self)
        self.n = 0


class Forgetful:
    def __init__(self):
        self.n, self.cache = 0, [1]

    def __getstate__(self):
        return {"n": self.n}


class Emptied(Forgetful):
    def __getstate__(self):
        return {"n": self.n, "cache": None}


class OwnGenerator(np.random.Generator):
    def integers(self, *args, **options):
        return super().integers(*args, **options) + 1000


class Rebuilt:
    def __init__(self):
        self.n = 3

    def __reduce__(self):
        return Rebuilt, ()


class RebuiltSlots:
    __slots__ = ("n",)

    def __init__(self, n=3):
        self.n = n

    def __reduce__(self):
        return RebuiltSlots, ()


class EmptiedList(list):
    def __reduce__(self):
        return EmptiedList, ()


class ShortenedDict(dict):
    def __reduce__(self):
        return ShortenedDict, (), None, None, iter([("a", self["a"])])


class WholeSlots(RebuiltSlots):
    __slots__ = ()

    def __reduce__(self):
        return WholeSlots, (self.n,)


@dataclasses.dataclass(slots=True, frozen=True)
class Record:
    n: list


class WholeList(list):
    def __reduce__(self):
        return WholeList, (list(self),)


class WholeCounter(collections.Counter):
    pass


@pytest.mark.parametrize(
    "thing",
    [WholeSlots([1]), Record([1, 2]), WholeList([[1], 2]), WholeCounter("abb"), collections.OrderedDict(a=[0])],
)
def test_what_pickles_in_its_own_way_but_whole_is_saved(thing):
    one, other = Noisy(), Noisy()
    one.thing = thing
    restore(other, save(one, 0), 0)
    assert type(other.thing) is type(thing)
    if isinstance(thing, WholeSlots | Record):
        assert other.thing.n == thing.n
    else:
        assert other.thing == thing


class Whole:
    def __init__(self):
        self.n = 3

    def __getstate__(self):
        return dict(self.__dict__)


@pytest.mark.parametrize(
    ("thing", "path", "why"),
    [
        (Handle, ".lock", "cannot pickle"),
        (MadeAnew, "", "EzPickle"),
        (Forgetful, "", "leaves out 'cache'"),
        (Emptied, "", "leaves out 'cache'"),
        (lambda: OwnGenerator(np.random.PCG64(0)), "", "NumPy's own class, `Generator`"),
        (lambda: np.ma.array([1.0], mask=[True], hard_mask=True), "", "its mask is hard"),
        (Rebuilt, "", "leaves out 'n'"),
        (RebuiltSlots, "", "leaves out 'n'"),
        (lambda: EmptiedList([1]), "", "leaves out items"),
        (lambda: ShortenedDict(a=1, b=[]), "", "leaves out items"),
        (lambda: (x for x in "ab"), "", "generator"),
    ],
)
def test_what_cannot_be_saved_is_refused_with_the_path_to_it(thing, path, why):
    env = gymnasium.wrappers.TimeLimit(Noisy(), 9)
    env.unwrapped.things = {"a": [Whole(), thing()]}
    with pytest.raises(TypeError, match=r"environment 3 cannot be saved") as caught:
        save(env, 3)
    assert f"`env.env.things['a'][1]{path}`" in str(caught.value)
    assert why in str(caught.value)
    assert "get_state" in str(caught.value)
    assert "restart" in str(caught.value)


class WritesLog(gymnasium.Wrapper):
    """Its own methods are not called, as its attributes are saved in any case."""

    def __init__(self, env, log):
        super().__init__(env)
        self.log = log

    def get_state(self):
        raise AssertionError

    set_state = get_state


def test_what_a_wrapper_holds_and_cannot_be_saved_is_refused_with_a_remedy_that_helps(tmp_path):
    with (tmp_path / "log.csv").open("w") as log, pytest.raises(TypeError, match=r"`env\.log`.*pickle") as caught:
        save(WritesLog(Noisy(), log), 0)
    assert "Only the innermost environment is asked" in str(caught.value)
    assert "restart" in str(caught.value)


class Switching(Noisy):
    """Has several functions without a name, of which one is in use."""

    def __init__(self):
        super().__init__()
        self.rules = [lambda x: x, lambda x: -x, *(self.named(k) for k in range(3))]
        self.by_name = {"half": lambda x: x / 2}
        self.rule = self.rules[0]

    def named(self, k):
        def rule(x, *, factor=k):
            return (lambda y: factor * y + k)(x)

        return rule


@pytest.mark.parametrize("k", range(6))
def test_which_function_without_a_name_is_in_use_is_saved(k):
    one, other = Switching(), Switching()
    one.rule = [*one.rules, one.by_name["half"]][k]
    one.rules.reverse()
    rules = [rule(3) for rule in other.rules]
    restore(other, save(one, 0), 0)
    assert other.rule(3) == one.rule(3)
    assert other.rule in [*other.rules, *other.by_name.values()]
    assert [rule(3) for rule in other.rules] == rules[::-1]


def test_equal_functions_without_a_name_of_one_environment_are_saved():
    def env():
        made = gymnasium.vector.SyncVectorEnv([lambda: TransformReward(Noisy(), lambda rew: 2 * rew)] * 3)
        made.rules = [lambda x: x, *(lambda x: 2 * x for _ in range(3))]
        return made

    one, other = env(), env()
    one.reset(seed=3)
    other.reset(seed=4)
    restore(other, save(one, 0), 0)
    assert other.rules[3](2) == 4
    expected, found = (each.step(np.zeros(3, np.int64)) for each in (one, other))
    np.testing.assert_equal(found[0], expected[0])
    np.testing.assert_equal(found[1], expected[1])


def counter(n):
    def count():
        nonlocal n
        n += 1
        return n

    return count


def test_a_function_without_a_name_that_the_other_environment_lacks_is_refused():
    one, other = Noisy(), Noisy()
    one.rule, other.rule = lambda x: x + 1, lambda x: x + 2
    with pytest.raises(ValueError, match=r"environment 3 .*function `.*<lambda>`.* in none of the environments"):
        restore(other, save(one, 3), 3)


def appends():
    count = [0]
    return lambda: count.append(len(count)) or sum(count)


def calls_what_appends():
    inside = appends()
    return lambda: inside()


def calls_what_counts():
    return lambda: counter(0)()


def counts_inside():
    n = 0

    def outer():
        def inner():
            nonlocal n
            n += 1
            return n

        return inner()

    return outer


def counts_in_defaults():
    return lambda count=[0], *, also={"n": 1}: count.append(also["n"]) or len(count)


def two_with_one_variable():
    n = 0

    def count():
        nonlocal n
        n += 1

    def told():
        count()
        return n

    return told


def calls_itself():
    seen = []

    def rule(n=3):
        seen.append(n)
        return rule(n - 1) if n else sum(seen)

    return rule


def calls_equal_ones():
    counts = [], []
    rules = (lambda count: lambda: count.append(1))(counts[0]), (lambda count: lambda: count.append(1))(counts[1])
    return lambda: [rule() for rule in rules[:1]] and [len(count) for count in counts]


def has_a_module_and_an_array():
    module, array = np, np.zeros(3)
    return lambda: module.add(array, 1, out=array).sum()


@pytest.mark.parametrize(
    "make",
    [
        appends, calls_what_appends, lambda: counter(0), counts_inside, counts_in_defaults, two_with_one_variable,
        calls_itself, calls_equal_ones, has_a_module_and_an_array,
    ],
)  # fmt: skip
def test_a_function_goes_on_with_what_it_refers_to(make):
    one, other = Noisy(), Noisy()
    one.rules, other.rules = [make(), make()], [make(), make()]
    one.rule, other.rule = one.rules[1], other.rules[0]
    for rule in (one.rule, one.rule, one.rules[0], other.rule):
        rule()
    saved = save(one, 0)
    expected = [[rule() for rule in [one.rule, *one.rules]] for _ in range(2)]
    restore(other, saved, 0)
    assert [[rule() for rule in [other.rule, *other.rules]] for _ in range(2)] == expected


def test_functions_that_an_environment_makes_at_each_reset_go_on_as_many_as_there_are():
    one, other = Noisy(), Noisy()
    other.rules, one.rules = [counter(0)], [counter(3), counter(5)]
    restore(other, save(one, 0), 0)
    assert [rule() for rule in other.rules] == [4, 6]


def refers_to_a_lock():
    lock = threading.Lock()
    return lambda: lock


def has_attributes():
    def rule():
        rule.n += 1

    rule.n = 0
    return rule


@pytest.mark.parametrize("make", [refers_to_a_lock, has_attributes])
def test_a_function_that_refers_to_what_cannot_be_saved_or_has_attributes_is_refused(make):
    env = Noisy()
    env.rule = make()
    with pytest.raises(TypeError, match=r"`env\.rule`"):
        save(env, 0)


def test_a_function_may_change_what_it_makes_itself():
    one, other = Noisy(), Noisy()
    one.rule, other.rule = calls_what_counts(), calls_what_counts()
    restore(other, save(one, 0), 0)
    assert other.rule() == 1


def test_a_function_that_refers_to_itself_is_told_from_others():
    def recursive(last):
        def rule(n):
            return rule(n - 1) if n else last

        return rule

    one, other = Noisy(), Noisy()
    one.rules, other.rules = ([recursive(1), recursive(2)] for _ in range(2))
    one.rules.reverse()
    restore(other, save(one, 0), 0)
    assert [rule(5) for rule in other.rules] == [2, 1]


class Gain(Noisy):
    """Saves itself, without what its constructor was given."""

    def __init__(self, gain):
        super().__init__()
        self.gain = gain

    def get_state(self):
        return self.obs, self.dice

    def set_state(self, state):
        self.obs, self.dice = state


class Other(Noisy):
    pass


HOLDERS = {
    "list": lambda one, other: [one, other],
    "tuple": lambda one, other: (one, other),
    "dict": lambda one, other: {"easy": one, 2: other},
}


@pytest.mark.parametrize("holder", HOLDERS)
@pytest.mark.parametrize("make", [lambda: (Gain(1), Gain(2)), lambda: (Noisy(), Other())])
def test_a_wrapper_that_steps_one_of_several_environments_goes_on_with_the_same_one(make, holder):
    class Multi(gymnasium.Wrapper):
        def __init__(self):
            one, other = make()
            super().__init__(one)
            self.all = HOLDERS[holder](one, other)

        def choose(self, k):
            self.env = list(self.all.values() if holder == "dict" else self.all)[k]

    for saved_in, fresh in ((0, 1), (1, 0), (1, 1)):
        one, other = Multi(), Multi()
        one.choose(saved_in)
        one.env.obs[:] = 7
        other.choose(fresh)
        restore(other, save(one, 0), 0)
        assert type(other.env) is type(one.env)
        assert getattr(other.env, "gain", None) == getattr(one.env, "gain", None)
        assert other.env in (other.all.values() if holder == "dict" else other.all)
        assert (other.env.obs == 7).all()


def test_an_attribute_called_spec_is_saved_unless_it_is_that_of_gym():
    one, other = Noisy(), Noisy()
    one.spec, other.spec = {"gain": 3}, {"gain": 1}
    restore(other, save(one, 0), 0)
    assert other.spec == {"gain": 3}
    one, other = (gymnasium.make("CartPole-v1") for _ in range(2))
    spec = other.unwrapped.spec
    restore(other, save(one, 0), 0)
    assert other.unwrapped.spec is spec


def test_an_environment_that_keeps_something_outside_of_its_attributes_is_refused():
    class Slots(Noisy):
        __slots__ = ("hidden",)

    with pytest.raises(TypeError, match="outside of"):
        save(Slots(), 0)


def test_other_environments_are_refused_and_an_error_of_their_own_method_is_named():
    saved = save(gymnasium.wrappers.TimeLimit(Noisy(), 9), 2)
    with pytest.raises(ValueError, match=r"environment 2 was .*TimeLimit > .*Noisy, and is .*Noisy"):
        restore(Noisy(), saved, 2)

    class Fails(WithState):
        def get_state(self):
            raise OSError("the simulator is busy")

    with pytest.raises(TypeError, match=r"environment 5 cannot be saved.*get_state.*busy"):
        save(Fails(), 5)


def test_gymnasiums_ale_pickles_into_a_fresh_game_which_is_why_pickling_alone_does_not_do():
    env = breakout()
    env.reset(seed=1)
    play(env, 20)
    fresh = pickle.loads(pickle.dumps(env.unwrapped))
    assert fresh.ale.getFrameNumber() != env.unwrapped.ale.getFrameNumber()


@pytest.mark.parametrize("n", [1, 2])
def test_a_vector_environment_of_gymnasium_is_saved_without_the_functions_that_made_it(n):
    one, other = (gymnasium.make_vec("CartPole-v1", n, vectorization_mode="sync") for _ in range(2))
    one.reset(seed=1)
    other.reset(seed=2)
    one.step(np.ones(n, int))
    restore(other, save(one, 0), 0)
    assert other.step(np.zeros(n, int))[0].tobytes() == one.step(np.zeros(n, int))[0].tobytes()


def test_old_gym_environments_are_saved():
    one, other = gym.make("CartPole-v1").unwrapped, gym.make("CartPole-v1").unwrapped
    one.reset(seed=1)
    one.action_space.seed(1)  # else a space draws its seed when it is first asked
    other.reset(seed=2)
    restore(other, save(one, 0), 0)
    assert play(one) == play(other)


@pytest.mark.parametrize(("probability", "n_before"), [(0.25, 6), (0.95, 60)])
def test_frames_that_repeat_the_action_before_a_state_was_saved_repeat_it_after_it_was_restored(probability, n_before):
    """ale-py keeps that action outside of its state. With some of these seeds the next frame repeats it, or all do."""
    pytest.importorskip("ale_py")
    options = {"frameskip": 1, "repeat_action_probability": probability}
    one, undisturbed, other = (gymnasium.make("ALE/Breakout-v5", **options).unwrapped for _ in range(3))
    for seed in range(7):
        for env in (one, undisturbed):
            env.reset(seed=seed)
            for action in (1, 1, 1, 2, 2, 3) * (n_before // 6):
                env.step(action)
        other.reset(seed=99)
        restore(other, save(one, 0), 0)
        told = [[env.step(action)[0].tobytes() for action in (2, 0, 3, 3, 2, 1)] for env in (one, undisturbed, other)]
        assert told[0] == told[1] == told[2]
