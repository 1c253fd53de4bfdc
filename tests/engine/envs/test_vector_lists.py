"""A list of vector environments: each is a group, which takes turns with the others."""

from __future__ import annotations

import multiprocessing
import queue
import threading
from contextlib import nullcontext
from itertools import islice

import gymnasium
import pytest
import torch

from rlplay import nested
from rlplay.engine.collector.loop import Loop
from rlplay.engine.envs.vectors import background, closing
from rlplay.engine.rollout import same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import CountingActor, LaggingLane
from rlplay.zoo.actors import ActorCritic, mlp
from tests.support.assertions import assert_identical
from tests.support.rows import untold
from tests.support.starting import timeout_counts_while
from tests.support.threads import ThreadBlocker
from tests.support.vectors import ENTRIES, check_against_list, engines, ledgers, of_every_kind

SyncVectorEnv = gymnasium.vector.SyncVectorEnv


def make_cartpoles(n=2, cls=SyncVectorEnv, **options):
    mode = gymnasium.vector.AutoresetMode.SAME_STEP
    return cls([lambda: gymnasium.make("CartPole-v1")] * n, autoreset_mode=mode, **options)


def make_actor():
    torch.manual_seed(0)
    return ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1))


def fragments_of(engine, envs, n_fragments=4, **options):
    with engine.rollout(envs, make_actor(), 9, seed=1, **options) as feed:
        return [nested.map(lambda x: x.clone(), next(feed)) for _ in range(n_fragments)]


class AtariVectorEnv:
    """Has the name of ale-py's class, by which its methods `send` and `recv` are known."""


class SendsAndReceives(AtariVectorEnv, SyncVectorEnv):
    """Has the methods of EnvPool and ale-py, and notes their calls."""

    batch_size = 2

    calls: list[tuple[str, int]]
    number: int

    def step(self, actions):
        self.send(actions)
        return self.recv()

    def send(self, actions):
        self.calls.append(("send", self.number))
        self.actions_sent = actions

    def recv(self):
        self.calls.append(("recv", self.number))
        return super().step(self.actions_sent)


class OverridesStep(SendsAndReceives):
    def step(self, actions):
        self.calls.append(("step", self.number))
        return super().step(actions)


def numbered(cls, n=2):
    calls, envs = [], [make_cartpoles(cls=cls) for _ in range(n)]
    for number, env in enumerate(envs):
        env.calls, env.number = calls, number
    return envs, calls


# ---- the law


@untold
@pytest.mark.parametrize("how", ["Sync", "Async"])
@engines
@of_every_kind
def test_a_list_of_vector_environments_gives_the_fragments_of_the_list_of_all_parts(kind, engine, how):
    """The parts of each vector environment are a group; widths may differ."""
    makers = ledgers(kind, n_envs=5)
    check_against_list(kind, makers, CountingActor(), 7, engine=engine, n_vectors=2, how=how, info=ENTRIES)


@pytest.mark.usefixtures("no_stock")
@pytest.mark.parametrize("haste", [0.0, 0.5, 1.0])
@engines
def test_a_list_of_vector_environments_on_the_lagging_device(engine, haste):
    def make():
        return [make_cartpoles(n) for n in (2, 3, 1)]

    expected = fragments_of(same, make(), final=True)
    lane = LaggingLane(haste=haste)
    got = fragments_of_lane(engine, make(), lane, final=True)
    assert_identical(expected, got)


@pytest.mark.usefixtures("no_stock")
@pytest.mark.parametrize("haste", [0.0, 0.5, 1.0])
@engines
def test_steps_that_are_started_behind_the_next_turn_give_the_same_fragments(engine, haste, monkeypatch):
    run = Loop.run
    monkeypatch.setattr(Loop, "run", lambda loop, pass_gate: [True for _ in run(loop, pass_gate)])
    lane = LaggingLane(haste=haste)
    got = fragments_of_lane(engine, numbered(SendsAndReceives, 3)[0], lane, final=True)
    assert_identical(fragments_of(same, [make_cartpoles() for _ in range(3)], final=True), got)


def fragments_of_lane(engine, envs, lane, **options):
    """Collect fragments, and read them when the device is done."""
    with engine.rollout(envs, make_actor(), 9, seed=1, device=lane, **options) as feed:
        fragments = [next(feed) for _ in range(4)]
        lane.synchronize()
        return nested.map(lambda x: x.clone(), fragments)


@engines
def test_factories_of_vector_environments_are_called_and_what_they_make_is_closed(engine):
    made = []

    def make(seed):
        made.append(make_cartpoles())
        made[-1].seed_of_factory = seed
        return made[-1]

    with engine.rollout([make, make], make_actor(), 9, seed=1) as feed:
        got = [nested.map(lambda x: x.clone(), next(feed)) for _ in range(4)]
    assert_identical(fragments_of(same, [make_cartpoles(), make_cartpoles()]), got)
    assert [env.closed for env in made] == [True, True]
    assert made[0].seed_of_factory != made[1].seed_of_factory


class TwoActions(CountingActor):
    def forward(self, obs, **inputs):
        act, hx, info = super().forward(obs, **inputs)
        return act % 2, hx, info


def make_atari(n):
    vector = pytest.importorskip("ale_py.vector_env")
    size = {"img_height": 12, "img_width": 12, "stack_num": 1, "noop_max": 0}
    return vector.AtariVectorEnv("breakout", n, max_num_frames_per_episode=60, **size)


def make_envpool(n):
    envpool = pytest.importorskip("envpool")
    return envpool.make("CartPole-v1", env_type="gymnasium", num_envs=n, seed=7, max_episode_steps=12)


@pytest.mark.filterwarnings("ignore:.*precision lowered:UserWarning")  # EnvPool's spaces
@pytest.mark.parametrize("make", [make_atari, make_envpool], ids=["ale-py", "EnvPool"])
def test_ale_py_and_envpool_step_in_the_background(make):
    def fragments(engine, **options):
        with engine.rollout([make(2), make(3)], TwoActions(), 20, seed=1, **options) as feed:
            assert threading.active_count() <= before + (engine is threaded)
            fragments = [next(feed) for _ in range(4)]
            if "device" in options:
                options["device"].synchronize()
            return nested.map(lambda x: x.clone(), fragments)

    before = threading.active_count()
    expected = fragments(same)
    assert expected[0].env.terminated.shape == (20, 5)
    assert sum(int(fragment.state.fin[1:].sum()) for fragment in expected) > 3
    for engine in (same, threaded):
        assert_identical(expected, fragments(engine))
        assert_identical(expected, fragments(engine, device=LaggingLane(haste=0.5)))


# ---- who steps


@pytest.mark.parametrize("device", [None, LaggingLane])
@engines
def test_while_one_vector_environment_is_waited_for_the_other_is_stepping(engine, device):
    envs, calls = numbered(SendsAndReceives)
    options = {} if device is None else {"device": device()}
    with engine.rollout(envs, make_actor(), 4, seed=1, lag=0, **options) as feed:
        next(feed)
    a, b = 0, 1
    assert calls[:6] == [("send", a), ("send", b), ("recv", a), ("send", a), ("recv", b), ("send", b)]
    assert calls[-2:] == [("recv", a), ("recv", b)]


def test_a_subclass_that_does_more_in_its_step_is_stepped_by_it():
    envs, calls = numbered(OverridesStep)
    fragments_of(same, envs, 1)
    assert calls.count(("step", 0)) == calls.count(("step", 1)) == 9


class Remote(SyncVectorEnv):
    """Talks to a simulator elsewhere by `send` and `recv`; its `batch_size` is one of its own, and so is `is_async`."""

    batch_size, is_async = 32, True

    def step(self, actions):
        self.send({"actions": actions})
        return super().step(self.recv()["actions"])

    def send(self, message):
        self.message = message

    def recv(self):
        return self.message


@engines
def test_methods_and_attributes_of_the_users_own_are_not_taken_for_those_of_libraries(engine):
    expected = fragments_of(engine, [make_cartpoles(), make_cartpoles()])
    assert_identical(expected, fragments_of(engine, [make_cartpoles(cls=Remote), make_cartpoles(cls=Remote)]))


class ReleasesLock(SyncVectorEnv):
    releases_interpreter_lock = True

    def step(self, actions):
        self.stepped_by = threading.current_thread().name
        return super().step(actions)


def test_environments_that_release_the_interpreter_lock_are_stepped_by_a_thread_each():
    envs = [make_cartpoles(cls=ReleasesLock) for _ in range(2)]
    got = fragments_of(threaded, envs)
    assert [env.stepped_by for env in envs] == ["rlplay-worker-0", "rlplay-worker-1"]
    envs = [make_cartpoles(cls=ReleasesLock) for _ in range(2)]
    assert_identical(fragments_of(same, envs), got)
    assert {env.stepped_by for env in envs} == {threading.current_thread().name}


class DoesNotSay:
    """Releases the lock, and resets in the step that ends an episode, without saying so."""

    releases_interpreter_lock, num_envs = True, 2

    def __init__(self):
        inner = make_cartpoles()
        self.reset, self.step = inner.reset, inner.step
        self.single_observation_space, self.single_action_space = (
            inner.single_observation_space,
            inner.single_action_space,
        )


def test_environments_that_release_the_interpreter_lock_may_leave_it_to_autoreset_when_they_reset():
    def envs():
        return [DoesNotSay(), DoesNotSay()]

    expected = fragments_of(same, envs(), autoreset="SAME_STEP", final=True)
    assert any(len(fragment.env.final.t) for fragment in expected)
    assert_identical(expected, fragments_of(threaded, envs(), autoreset="SAME_STEP", final=True))
    for engine in (same, threaded):
        with pytest.raises(ValueError, match="cannot tell when"):
            fragments_of(engine, envs())


def test_environments_that_keep_the_interpreter_lock_are_stepped_in_the_collectors_thread():
    before = threading.active_count()
    with threaded.rollout([make_cartpoles(), make_cartpoles()], make_actor(), 9) as feed:
        next(feed)
        assert threading.active_count() == before + 1


@engines
def test_a_step_under_way_is_waited_for_at_the_end_so_that_the_environment_can_be_used_again(engine):
    envs = [make_cartpoles(cls=gymnasium.vector.AsyncVectorEnv, shared_memory=False) for _ in range(2)]
    try:
        first = fragments_of(engine, envs)
        assert_identical(first, fragments_of(engine, envs))
    finally:
        for env in envs:
            env.close()


# ---- errors


class FailsAtStep3(SyncVectorEnv):
    n_steps = 0

    def step(self, actions):
        self.n_steps += 1
        if self.n_steps == 3:
            raise ArithmeticError("the third step")
        return super().step(actions)


@engines
def test_an_error_names_the_vector_environment_and_the_step(engine):
    feed = engine.rollout([make_cartpoles(), make_cartpoles(cls=FailsAtStep3)], make_actor(), 9)
    with pytest.raises(ArithmeticError, match="the third step") as caught:
        next(feed)
    assert "vector environment 1, in env.step, at step 2 of fragment 0" in caught.value.__notes__[0]


@engines
def test_what_does_not_go_together_is_refused_at_the_call(engine):
    one, another = make_cartpoles(), make_cartpoles()
    cartpole = gymnasium.make("CartPole-v1")
    other = SyncVectorEnv([lambda: gymnasium.make("Acrobot-v1")])

    def refuses(error, match, envs, **options):
        with pytest.raises(error, match=match):
            engine.rollout(envs, make_actor(), 9, **options)

    refuses(
        TypeError, "environment 1 of `envs` is a vector environment, and environment 0 is a single", [cartpole, one]
    )
    refuses(TypeError, "environment 0 of `envs` is a vector environment, and", [one, lambda: cartpole])
    refuses(ValueError, "stands twice", [one, one])
    refuses(ValueError, "a TimeLimit; those inside", [SyncVectorEnv([lambda: cartpole]) for _ in range(2)])
    refuses(ValueError, "`groups` must be 1 for a list of vector environments, got 2", [one, another], groups=2)
    refuses(ValueError, "stand still", [one, another], sticky=True)
    refuses(ValueError, "equal spaces", [one, other])
    refuses(TypeError, "environment 0 of `envs` is a vector", [make_cartpoles, lambda: gymnasium.make("CartPole-v1")])


@pytest.mark.parametrize("options", [{"workers": 1}, {"workers": 2, "worker": "thread"}, {"worker": "fibre"}])
def test_workers_are_refused_at_the_call(options):
    for cls in (SyncVectorEnv, ReleasesLock):
        envs = [make_cartpoles(cls=cls) for _ in range(2)]
        with pytest.raises(ValueError, match=r"`workers` are for a list of environments|`worker` must be"):
            threaded.rollout(envs, make_actor(), 9, **options)


def test_a_hanging_vector_environment_is_named(monkeypatch):
    class Hangs(SyncVectorEnv):
        def step(self, actions):
            blocker()
            return super().step(actions)

    blocker = ThreadBlocker()
    timeout_counts_while(blocker.entered.is_set, monkeypatch)
    envs = [make_cartpoles(), make_cartpoles(cls=Hangs)]
    feed = threaded.rollout(envs, make_actor(), 9, timeout=0.5)
    try:
        with pytest.raises(TimeoutError, match=r"vector environment 1, in env\.step"):
            next(feed)
    finally:
        blocker.release.set()
        feed.close()


class AnswersOnce(AtariVectorEnv, SyncVectorEnv):
    """A pool as EnvPool is one: a `recv` without a `send` before it waits for ever. Fails at its third step."""

    batch_size, n_steps = 2, 0

    def step(self, actions):
        self.send(actions)
        return self.recv()

    def send(self, actions):
        self.results = getattr(self, "results", queue.Queue())
        self.n_steps += 1
        self.results.put(ArithmeticError("the third step") if self.n_steps == 3 else super().step(actions))

    def recv(self):
        result = self.results.get()
        if isinstance(result, Exception):
            raise result
        return result


@engines
def test_a_step_that_has_failed_is_not_waited_for_again(engine):
    envs = [make_cartpoles(), make_cartpoles(cls=AnswersOnce)]
    feed = engine.rollout([make_cartpoles(cls=AnswersOnce) for _ in envs], make_actor(), 9)
    with pytest.raises(ArithmeticError, match="the third step"):
        next(feed)


class FailsInBackground(SendsAndReceives):
    failing = False

    def recv(self):
        self.grad_enabled.append(torch.is_grad_enabled())
        if self.failing:
            raise ArithmeticError("in the background")
        return super().recv()


@pytest.mark.parametrize("device", [None, LaggingLane])
def test_a_pause_lets_steps_end_as_environments_run_and_an_error_in_it_names_the_step(device):
    envs, _ = numbered(FailsInBackground)
    for env in envs:
        env.grad_enabled = []
    options = {} if device is None else {"device": device()}
    feed = threaded.rollout(envs, make_actor(), 500, lag=1, **options)
    next(feed)
    with feed.pause():
        envs[1].failing = True
    with pytest.raises(ArithmeticError, match="in the background") as caught:
        list(islice(feed, 3))
    assert "vector environment 1, in env.step, at step" in caught.value.__notes__[0]
    assert set(envs[0].grad_enabled) == {True}


def test_a_step_that_is_set_on_the_instance_is_called():
    envs, calls = numbered(SendsAndReceives)
    for env in envs:
        env.step = lambda actions, env=env: (calls.append(("own", env.number)), SyncVectorEnv.step(env, actions))[1]
    fragments_of(same, envs, 1)
    assert calls.count(("own", 0)) == calls.count(("own", 1)) == 9


def test_a_vector_environment_that_a_factory_makes_is_not_divided_into_groups():
    with pytest.raises(ValueError, match=r"`groups` must be at most .* 1, got 2\. A factory counts as one: to divide"):
        same.rollout([make_cartpoles], make_actor(), 5, groups=2)


class TwoCartPoles(SyncVectorEnv):
    """Says by attributes of the class how many parts it has, and what they are."""

    num_envs, single_observation_space = 2, gymnasium.make("CartPole-v1").observation_space

    def __init__(self):
        mode = gymnasium.vector.AutoresetMode.SAME_STEP
        super().__init__([lambda: gymnasium.make("CartPole-v1")] * 2, autoreset_mode=mode)


@engines
def test_a_class_of_vector_environments_is_a_factory(engine):
    expected = fragments_of(same, [make_cartpoles(), make_cartpoles()], 1, lag=0)
    for sources in ([TwoCartPoles, TwoCartPoles], [TwoCartPoles, TwoCartPoles()]):
        assert_identical(fragments_of(engine, sources, 1, lag=0)[0], expected[0])


def test_where_single_environments_are_needed_a_vector_environment_is_refused():
    for call in (
        lambda: evaluate([make_cartpoles(), make_cartpoles()], make_actor()),
        lambda: single.rollout(make_cartpoles, make_actor(), 5),
        lambda: threaded.rollout([make_cartpoles] * 2, make_actor(), 5, workers=2, worker="thread"),
    ):
        with pytest.raises(TypeError, match="is a vector environment, where a single one is needed"):
            call()
    rewards, _ = evaluate([make_cartpoles(3)], make_actor())
    assert rewards.shape[1] == 3


class InterruptedPipe:
    """Is interrupted once by Ctrl-C before it has received anything."""

    def __init__(self, pipe):
        self._pipe, self._interrupted = pipe, False

    def __getattr__(self, name):
        return getattr(self._pipe, name)

    def recv(self):
        if not self._interrupted:
            self._interrupted = True
            raise KeyboardInterrupt
        return self._pipe.recv()


@engines
def test_a_class_of_the_users_own_may_have_the_name_of_those_with_processes(engine):
    named = type("AsyncVectorEnv", (SyncVectorEnv,), {})
    assert_identical(*(fragments_of(engine, make_cartpoles(cls=cls), 1)[0] for cls in (named, SyncVectorEnv)))


class LatePipe:
    """Never has anything to receive within a time limit."""

    def __init__(self, pipe):
        self._pipe = pipe

    def __getattr__(self, name):
        return getattr(self._pipe, name)

    def poll(self, timeout):
        return False


class NotesTheEnd(gymnasium.vector.AsyncVectorEnv):
    """Notes whether its processes are killed. Its steps never end in time, if there is a limit."""

    def __init__(self, *args, **options):
        super().__init__(*args, **options)
        self.parent_pipes = [LatePipe(pipe) for pipe in self.parent_pipes]

    def close_extras(self, timeout=None, terminate=False):
        self.killed = terminate
        super().close_extras(timeout, terminate)


@pytest.mark.parametrize("wrapped", [False, True])
def test_an_interrupt_between_the_results_of_two_parts_lets_the_environments_be_closed(wrapped, monkeypatch):
    """The first part has answered already, so that a wait for both would never end. Another environment is stuck."""
    monkeypatch.setattr(closing, "WAIT_AT_END", 0.01)
    made = []

    def make():
        made.append(make_cartpoles(cls=NotesTheEnd if made else gymnasium.vector.AsyncVectorEnv))
        return gymnasium.wrappers.vector.RecordEpisodeStatistics(made[-1]) if wrapped else made[-1]

    feed = same.rollout([make, make], make_actor(), 9)
    pipes = made[0].parent_pipes
    made[0].parent_pipes = (pipes[0], InterruptedPipe(pipes[1]))
    with pytest.warns(UserWarning, match="waiting for a pending call"), pytest.raises(KeyboardInterrupt):
        next(feed)
    assert [env.closed for env in made] == [True, True]
    assert made[1].killed is not wrapped  # a wrapper makes each step at once, so that none is under way


def interrupted_in_part(k, wrapped=False):
    """Make an environment whose step Ctrl-C has interrupted before the result of part ``k`` was received."""
    env = raw = make_cartpoles(cls=gymnasium.vector.AsyncVectorEnv)
    if wrapped:
        env = gymnasium.wrappers.vector.RecordEpisodeStatistics(env)
    feed, pipes = same.rollout(env, make_actor(), 9), raw.parent_pipes
    raw.parent_pipes = [InterruptedPipe(pipe) if j == k else pipe for j, pipe in enumerate(pipes)]
    with pytest.raises(KeyboardInterrupt):
        next(feed)
    raw.parent_pipes = list(pipes)
    return env


@pytest.mark.parametrize(("wrapped", "engine"), [(False, same), (True, threaded)])
def test_after_an_interrupt_an_environment_of_the_user_can_be_used_again(wrapped, engine):
    env = interrupted_in_part(0, wrapped)
    try:
        for one, other in zip(fragments_of(engine, env), fragments_of(engine, make_cartpoles()), strict=True):
            assert_identical(one, other)
    finally:
        env.close()


def test_after_an_interrupt_that_has_lost_a_result_an_environment_is_refused(monkeypatch):
    monkeypatch.setattr(background, "WAIT_AT_END", 0.2)
    env = interrupted_in_part(1)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"earlier call of `step`, .*: make a new vector environment"):
            same.rollout(env, make_actor(), 9)
    with pytest.warns(UserWarning, match="waiting for a pending call"):
        env.close(timeout=0.2)


class Fails(ActorCritic):
    """Fails at its first reaction to the one environment of the second group."""

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        if fin.shape[1] == 1 and not virtual:
            raise ValueError("the actor fails")
        return super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)


@pytest.mark.parametrize("late", [False, True])
def test_a_step_under_way_at_an_error_is_not_taken_for_the_next_reset(late):
    env, other = (make_cartpoles(n, gymnasium.vector.AsyncVectorEnv) for n in (2, 1))
    pipes = env.parent_pipes
    feed = same.rollout([env, other], Fails(mlp(4, 8, 2), mlp(4, 8, 1)), 9)
    env.parent_pipes = [LatePipe(pipe) if late else pipe for pipe in pipes]
    with pytest.raises(ValueError, match="the actor fails"):
        next(feed)
    if late:
        with pytest.raises(RuntimeError, match="still in an earlier call of `step`"):
            same.rollout(env, make_actor(), 9)
    else:
        same.rollout(env, make_actor(), 9).close()
    env.parent_pipes = pipes
    with pytest.warns(UserWarning, match="waiting for a pending call") if late else nullcontext():
        env.close()
    other.close()


class Interrupted(gymnasium.Wrapper):
    """Gets the Ctrl-C that its program gets. Its process does not end before it may."""

    def __init__(self, env, may_end):
        super().__init__(env)
        self.may_end = may_end

    def step(self, action):
        raise KeyboardInterrupt

    def close(self):
        self.may_end.wait()
        super().close()


@pytest.mark.filterwarnings("ignore:.*ERROR")
def test_an_environment_whose_processes_have_got_the_interrupt_is_refused_afterwards():
    may_end = multiprocessing.Event()
    may_end.set()  # `AsyncVectorEnv` makes an environment in this process, too, and closes it
    env = gymnasium.vector.AsyncVectorEnv([lambda: Interrupted(gymnasium.make("CartPole-v1"), may_end)] * 2)
    may_end.clear()
    feed = same.rollout(env, make_actor(), 9)
    with pytest.raises(KeyboardInterrupt):
        next(feed)
    for _ in range(2):
        with pytest.raises(RuntimeError, match=r"process of part 0 .* has ended.*: make a new vector environment"):
            same.rollout(env, make_actor(), 9)
    may_end.set()
    env.close()
    with pytest.raises(gymnasium.error.ClosedEnvironmentError):
        same.rollout(env, make_actor(), 9)


class InterruptedInBackground(SendsAndReceives):
    """Raises what an AsyncVectorEnv raises when its processes have got Ctrl-C."""

    interrupted = closed = False

    def recv(self):
        if self.interrupted:
            raise KeyboardInterrupt
        return super().recv()


@engines
def test_an_interrupt_in_the_processes_of_an_environment_lets_all_be_closed(engine):
    """A traceback that the collector's thread prints is an error in these tests."""
    envs, _ = numbered(InterruptedInBackground)
    feed = engine.rollout([lambda env=env: env for env in envs], make_actor(), 500, lag=1)
    next(feed)
    for env in envs:
        env.interrupted = True
    with pytest.raises(KeyboardInterrupt):
        list(islice(feed, 3))
    feed.close()
    assert [env.closed for env in envs] == [True, True]
