"""Evaluation: whole episodes, played at once or in a background process."""

import os
import signal
import threading
from fractions import Fraction
from functools import partial

import gym
import gymnasium
import numpy as np
import pytest
import torch

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, same, threaded
from rlplay.engine.rollout.evaluate import background, evaluate
from tests.support.threads import InThread, until
from tests.support.workers import shorten_closing


class GreedyInEvalMode(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.head = torch.nn.Linear(4, 2)

    def forward(self, obs, *, hx=None, stepno, virtual, **ignored):
        logits = self.head(obs)
        drawn = sampling.categorical(logits, generator=self.generator)
        act = drawn if self.training else logits.argmax(dim=-1)
        return act, hx, {"stepno": stepno, "virtual": torch.full_like(stepno, virtual), "act": act}


class Countdown(gym.Env):
    """Finals after so many steps, with rewards 1, 2, 3, ..."""

    observation_space = gym.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gym.spaces.Discrete(2)

    def __init__(self, length):
        self.length, self.t, self.steps, self.shown = length, 0, 0, 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.t += 1
        self.steps += 1
        return np.zeros(4, np.float32), float(self.t), self.t == self.length, False, {}

    def render(self):
        self.shown += 1


def test_evaluate_plays_one_episode_of_every_environment():
    envs = [Countdown(length) for length in (3, 1, 5)]
    rewards, info = evaluate(envs, GreedyInEvalMode())
    assert rewards.dtype == np.float32
    assert rewards.T.tolist() == [[1, 2, 3, 0, 0], [1, 0, 0, 0, 0], [1, 2, 3, 4, 5]]
    assert [env.steps for env in envs] == [3, 1, 5]
    assert info["stepno"].shape == (6, 3)
    assert info["stepno"][:, 2].tolist() == [0, 1, 2, 3, 4, 0]
    assert info["virtual"][:, 0].tolist() == [0, 0, 0, 0, 0, 1]


def test_evaluate_takes_at_most_n_steps():
    envs = [Countdown(length) for length in (3, 9)]
    rewards, info = evaluate(envs, GreedyInEvalMode(), n_steps=4)
    assert rewards.T.tolist() == [[1, 2, 3, 0], [1, 2, 3, 4]]
    assert envs[1].steps == 4
    assert len(info["stepno"]) == 5
    assert info["stepno"][-1, 1] == 4


def test_evaluate_renders_every_state_once():
    env = Countdown(3)
    evaluate([env], GreedyInEvalMode(), render=True)
    assert env.shown == 4


def test_the_mode_of_the_actor_decides_whether_evaluation_is_greedy():
    actor = GreedyInEvalMode().eval()
    envs = [gym.make("CartPole-v1") for _ in range(3)]
    torch.manual_seed(0)
    first, _ = evaluate(envs, actor)
    torch.manual_seed(0)
    again, _ = evaluate(envs, actor)
    assert np.array_equal(first, again)
    torch.manual_seed(0)
    sampled, _ = evaluate(envs, actor.train())
    assert sampled.shape != first.shape or not np.array_equal(first, sampled)


def test_evaluate_closes_what_factories_made_and_notes_errors():
    made = []

    class Closing(Countdown):
        def __init__(self):
            super().__init__(3)
            self.closed = 0
            made.append(self)

        def close(self):
            self.closed += 1

    class Failing(Closing):
        def step(self, action):
            raise OSError("the simulator is gone")

    evaluate([Closing, Closing], GreedyInEvalMode())
    assert [env.closed for env in made] == [1, 1]
    with pytest.raises(OSError, match="gone") as caught:
        evaluate([Closing, Failing], GreedyInEvalMode())
    assert "environment 1" in caught.value.__notes__[0]
    assert made[-1].closed == 1


def test_evaluate_refuses_wrong_arguments():
    with pytest.raises(ValueError, match="n_steps"):
        evaluate([Countdown(3)], GreedyInEvalMode(), n_steps=0)
    with pytest.raises(ValueError, match="empty"):
        evaluate([], GreedyInEvalMode())


# In the background


class Ender(gym.Env):
    """Finals with the first step that carries out action 1, or after ten; each step gives 1."""

    observation_space, action_space = gym.spaces.Box(-1, 1, (1,)), gym.spaces.Discrete(2)

    def reset(self, *, seed=None, options=None):
        self.stepno = 0
        return np.zeros(1, np.float32), {}

    def step(self, action):
        if action == 1 and self.stepno == 3:
            raise OverflowError("on purpose")
        self.stepno += 1
        return np.zeros(1, np.float32), 1.0, bool(action) or self.stepno == 10, False, {}


class Leaning(BaseActorModule):
    """Takes action 1 if its only weight is positive."""

    def __init__(self):
        super().__init__()
        self.lean = torch.nn.Parameter(torch.tensor(-1.0))

    def forward(self, obs, *, hx=None, **ignored):
        return (self.lean > 0).long().expand(obs.shape[:2]), (), {}


def test_background_evaluation_follows_the_weights_one_evaluation_behind():
    actor = Leaning()
    with background(Ender, actor, 3, seed=10**30) as examiner:
        with torch.no_grad():
            actor.lean.fill_(1.0)
        assert next(examiner).tolist() == [10.0] * 3  # it began at the call
        assert next(examiner).tolist() == [1.0] * 3
        assert actor.training
    with pytest.raises(RuntimeError, match="closed"):
        next(examiner)
    assert examiner._child._process.poll() is not None


def test_background_evaluation_names_the_signal_that_killed_its_process():
    examiner = background(Ender, Leaning(), 2)
    os.kill(examiner._child.pid, signal.SIGKILL)
    with pytest.raises(RuntimeError, match=r"the evaluation process .* was killed by SIGKILL"):
        list(examiner)


def test_an_error_in_background_evaluation_keeps_its_type_and_place():
    with background(lambda: Late(), Leaning(), 2) as examiner:
        with pytest.raises(OverflowError, match="on purpose") as caught:
            next(examiner)
        assert "environment 0, in env.step" in caught.value.__notes__[0]
        assert "in step" in str(caught.value.__cause__)


class LosesItsRepr(Ender):
    """Cannot be shown, nor closed."""

    def __repr__(self):
        raise AttributeError("gone")

    def close(self):
        raise OSError("on purpose")


def test_background_evaluation_closes_environments_whose_repr_fails():
    examiner = background(LosesItsRepr, Leaning(), 2)
    with pytest.warns(RuntimeWarning) as caught:
        examiner.close()
    complaint = "closing <LosesItsRepr, whose repr fails> failed: OSError('on purpose')."
    assert [str(warning.message) for warning in caught] == [complaint] * 2


@pytest.mark.parametrize("seconds", [{"timeout": 0}, {"start_timeout": "60"}])
def test_times_that_are_no_positive_numbers_are_refused(seconds):
    with pytest.raises(ValueError, match="must be a positive number of seconds"):
        background(Ender, Leaning(), 1, **seconds)


def test_times_may_be_numbers_of_any_kind(monkeypatch):
    monkeypatch.setattr("rlplay.engine.rollout.evaluate.Examiner", lambda *given: given)
    _, *seconds, _ = background(Ender, Leaning(), 1, timeout=np.float32(2), start_timeout=Fraction(5, 2))
    assert seconds == [2.0, 2.5]
    assert {type(one) for one in seconds} == {float}  # the wait for a process takes no float32


def test_flags_that_are_no_bools_are_refused():
    with pytest.raises(TypeError, match="`greedy` must be True or False, got 'no'"):
        background(Ender, Leaning(), 1, greedy="no")
    with pytest.raises(TypeError, match="`render` must be True or False, got 'human'"):
        evaluate([Ender()], Leaning(), render="human")


class EndsEarly(Ender):
    def step(self, action):
        raise StopIteration("from within")


def test_a_stop_iteration_of_an_environment_does_not_end_the_loop_over_a_background_evaluation():
    results = []
    with pytest.raises(RuntimeError, match=r"an evaluation raised StopIteration\('from within'\)") as caught:
        results += background(EndsEarly, Leaning(), 1)
    assert not results
    assert isinstance(caught.value.__cause__, StopIteration)
    assert "environment 0, in env.step" in caught.value.__cause__.__notes__[0]


class Late(Ender):
    def step(self, action):
        return super().step(self.stepno == 3)


def interrupted(function, *, after):
    """Return a function that raises KeyboardInterrupt at its first call, before or after it does what it does."""
    calls = []

    def call(*args):
        calls.append(args)
        if len(calls) > 1:
            return function(*args)
        if after:
            function(*args)
        raise KeyboardInterrupt

    return call


@pytest.mark.parametrize("after", [False, True], ids=["before the request", "after the request"])
def test_no_result_is_lost_if_an_interrupt_comes_between_it_and_the_next_evaluation(after, monkeypatch):
    actor = Leaning()
    with background(Ender, actor, 1, timeout=5.0) as examiner:
        assert next(examiner).tolist() == [10.0]
        monkeypatch.setattr(examiner, "_start_evaluation", interrupted(examiner._start_evaluation, after=after))
        with pytest.raises(KeyboardInterrupt):
            next(examiner)
        with torch.no_grad():
            actor.lean.fill_(1.0)
        assert next(examiner).tolist() == [10.0]
        if after:
            assert next(examiner).tolist() == [10.0]
        assert next(examiner).tolist() == [1.0]


def test_an_interrupt_while_an_evaluation_is_requested_closes_the_examiner(monkeypatch):
    with background(Ender, Leaning(), 1) as examiner:
        monkeypatch.setattr(examiner._child.link, "write_object", interrupted(lambda thing: None, after=False))
        with pytest.raises(KeyboardInterrupt):
            next(examiner)
        assert examiner._child._process.poll() is not None
        with pytest.raises(RuntimeError, match="closed"):
            next(examiner)


class Stuck(Ender):
    def step(self, action):
        threading.Event().wait()


def test_an_interrupt_while_close_waits_for_a_stuck_environment_kills_the_process(monkeypatch):
    examiner = background(Stuck, Leaning(), 1)
    until(lambda: "env.step" in str(examiner._progress))
    monkeypatch.setattr(examiner._child, "wait_readable", interrupted(examiner._child.wait_readable, after=False))
    with pytest.raises(KeyboardInterrupt):
        examiner.close()
    assert examiner._child._process.poll() == -signal.SIGKILL
    examiner.close()
    assert not examiner._finalizer.alive


def test_the_end_of_an_examiner_in_a_forked_child_leaves_the_process_of_the_parent_alone(monkeypatch):
    examiner = background(Ender, Leaning(), 1)
    child = os.getpid() + 1
    with monkeypatch.context() as patch:
        patch.setattr(os, "getpid", lambda: child)
        examiner.close()
    assert not examiner._progress.halted
    assert examiner._child._process.poll() is None
    assert examiner._child.close() == []


def test_a_fork_that_asks_for_a_result_is_told_so_at_once(monkeypatch):
    with background(Ender, Leaning(), 1) as examiner:
        pid = os.getpid()
        with monkeypatch.context() as patch:
            patch.setattr(os, "getpid", lambda: pid + 1)
            with pytest.raises(RuntimeError, match=f"belongs to process {pid}, and this is a fork of it"):
                next(examiner)
        assert next(examiner).shape == (1,)


def test_a_result_that_another_thread_waits_for_while_the_examiner_is_closed_is_an_error_that_says_so(monkeypatch):
    shorten_closing(monkeypatch)
    examiner = background(Stuck, Leaning(), 1)
    waiting = InThread(lambda: next(examiner))
    until(lambda: "env.step" in str(examiner._progress))
    with pytest.warns(RuntimeWarning, match="was killed"):
        examiner.close()
    assert isinstance(waiting.wait().error, RuntimeError)
    assert str(waiting.error) == "the evaluation process is closed."


@pytest.mark.parametrize("wrong", [{"n_envs": 0}, {"n_steps": 0}, {"threads": 0}, {"factory": None}])
def test_background_evaluation_refuses_wrong_arguments_at_the_call(wrong):
    with pytest.raises((TypeError, ValueError), match=next(iter(wrong))):
        background(**{"factory": Ender, "actor": Leaning(), "n_envs": 1, **wrong})


def test_a_seed_that_a_factory_has_bound_is_respected_in_background_evaluation():
    def make(seed):
        return Countdown(seed if seed < 9 else 2)

    with background(partial(make, seed=3), Leaning(), 2) as examiner:
        assert next(examiner).tolist() == [6.0, 6.0]  # 1 + 2 + 3
    with background(make, Leaning(), 2) as examiner:
        assert next(examiner).tolist() == [3.0, 3.0]


# evaluation beside a feed


def lengths(n=2):
    return [Countdown(3 + j) for j in range(n)]


def wrapped(env):
    return gym.Wrapper(gym.Wrapper(env))


class Parts(gym.vector.SyncVectorEnv):
    """The vector environment of some environments that exist already."""

    def __init__(self, envs):
        super().__init__([lambda env=env: env for env in envs])


class Plain(gymnasium.Env):
    """One of gymnasium's."""

    observation_space = gymnasium.spaces.Box(-1, 1, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(2)
    t = 0

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return np.zeros(4, np.float32), {}

    def step(self, action):
        self.t += 1
        return np.full(4, self.t / 9, np.float32), float(self.t), self.t == 4, False, {}


def make_vector():
    return gymnasium.vector.SyncVectorEnv([Plain] * 2)


BESIDE = {
    "the same list": (same, lengths, lambda envs: envs, "environment 0"),
    "one of them": (same, lengths, lambda envs: [Countdown(2), envs[1]], "environment 1"),
    "in another order": (threaded, lengths, lambda envs: [Countdown(2), Countdown(2), envs[0]], "environment 2"),
    "in wrappers": (threaded, lengths, lambda envs: [Countdown(2), wrapped(envs[0])], "environment 1"),
    "taken out of wrappers": (same, lambda: [wrapped(Countdown(3))], lambda envs: [envs[0].env.env], "environment 0"),
    "one of gymnasium's": (same, lambda: [Plain(), Plain()], lambda envs: envs[1:], "environment 0"),
    "a vector environment": (same, make_vector, lambda envs: envs, "environment 0"),
    "the parts of a vector environment": (threaded, make_vector, lambda envs: [envs.envs[1]], "environment 0"),
    "in a vector environment": (same, lengths, Parts, "environment 0"),
}


@pytest.mark.parametrize(("engine", "make", "beside", "message"), BESIDE.values(), ids=BESIDE)
def test_environments_of_an_open_feed_are_refused_and_the_feed_goes_on(engine, make, beside, message):
    def fragments(*, between):
        envs = make()
        with engine.rollout(envs, actor, 5, seed=0) as feed:
            for _ in range(3):
                yield next(feed).state
                if between:
                    with pytest.raises(RuntimeError, match=rf"{message} serves an open feed.*close"):
                        evaluate(beside(envs), actor)
                    assert feed.open
        evaluate(beside(envs), actor)  # the feed is closed

    actor = GreedyInEvalMode()
    for undisturbed, got in zip(fragments(between=False), fragments(between=True), strict=True):
        assert torch.equal(undisturbed.obs, got.obs)
        assert torch.equal(undisturbed.stepno, got.stepno)
        assert torch.equal(undisturbed.act, got.act)


def test_environments_of_a_feed_of_episodes_are_refused_and_those_of_a_forgotten_feed_are_not():
    envs, actor = lengths(), GreedyInEvalMode()
    with episodic.rollout(envs, actor, batch_size=2, seed=0) as feed:
        with pytest.raises(RuntimeError, match="environment 0 serves an open feed"):
            evaluate(envs, actor)
        assert len(next(feed)) == 2
    feed = same.rollout(envs, actor, 3)
    next(feed)
    del feed
    assert evaluate(envs, actor)[0].shape == (4, 2)


def test_factories_and_other_environments_are_evaluated_beside_a_feed():
    actor = GreedyInEvalMode()
    with same.rollout([Plain, Plain], actor, 3, seed=0) as feed:
        next(feed)
        assert evaluate([Plain], actor)[0].shape == (4, 1)
        assert evaluate([Plain()], actor)[0].shape == (4, 1)
        next(feed)


def test_a_rollout_over_a_vector_environment_closes_the_feeds_of_all_environments_inside():
    actor, one, other = GreedyInEvalMode(), Plain(), Plain()
    older = [same.rollout([env], actor, 3) for env in (one, other)]
    with pytest.warns(RuntimeWarning, match="vector environment 0 still served") as caught:
        feed = same.rollout(gymnasium.vector.SyncVectorEnv([lambda: one, lambda: other]), actor, 3)
    with feed:
        assert len(caught) == 2
        assert not any(each.open for each in older)
        next(feed)


def test_a_rollout_over_an_environment_in_a_wrapper_closes_the_older_feed_with_a_warning():
    envs, actor = lengths(), GreedyInEvalMode()
    older = same.rollout(envs, actor, 3)
    with pytest.warns(RuntimeWarning, match="environment 1 still served an open feed"):
        feed = same.rollout([Countdown(2), wrapped(envs[0])], actor, 3)
    with feed:
        assert not older.open
        next(feed)


def test_long_returns_are_summed_in_double_precision():
    class Long(Plain):
        def step(self, action):
            obs, _, _, truncated, info = super().step(action)
            return obs, 2.0**24 if self.t == 1 else 1.0, self.t == 4, truncated, info

    with background(Long, Leaning(), 1) as examiner:
        assert next(examiner).tolist() == [2.0**24 + 4]
