"""The behaviour copy follows the learner's actor, whatever the actor does in its step."""

import threading

import gym
import numpy as np
import pytest
import torch

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import LaggingLane, LedgerEnv
from tests.support.actors import (
    AdvancesStateInPlace,
    AssignsBuffer,
    DrawsFirstState,
    RemembersObservation,
    zeros_like_act,
)

engines = pytest.mark.parametrize("engine", [same, threaded])


def envs(n=2, **options):
    return [LedgerEnv(gym.spaces, j, **options) for j in range(n)]


@engines
def test_a_buffer_that_the_behaviour_copy_assigns_still_follows_the_learner(engine):
    actor = AssignsBuffer()
    with engine.rollout(envs(), actor, 4, lag=0) as feed:
        for start in (0.0, 100.0, 200.0):
            actor.count = torch.tensor(start)
            counts = next(feed).actor["count"][:4, 0]
            assert counts.tolist() == [start + 1, start + 2, start + 3, start + 4]


class RemakesBuffers(BaseActorModule):
    """Fills an empty buffer, adds one, and deletes one. Its info tells of each whether it was as the learner has it."""

    def __init__(self):
        super().__init__()
        self.register_buffer("empty", None)
        self.register_buffer("there", torch.zeros(1))

    def forward(self, obs, *, fin, hx=None, **ignored):
        fresh = self.empty is None, not hasattr(self, "added"), hasattr(self, "there")
        self.empty = torch.ones(1)
        if fresh[1]:
            self.register_buffer("added", torch.ones(1))
        if fresh[2]:
            del self.there
        return zeros_like_act(fin), (), torch.tensor(fresh).expand(*fin.shape, 3)


@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore:.*eager"))])
@pytest.mark.parametrize("device", [None, "lagging"])
@engines
def test_buffers_that_the_behaviour_copy_fills_adds_or_deletes_are_what_they_were_at_the_next_snapshot(
    engine, device, compiled
):
    lane = LaggingLane(consumer_on_host=True) if device else None
    with engine.rollout(envs(), RemakesBuffers(), 2, device=lane, compile=compiled) as feed:
        for _ in range(3):
            assert next(feed).actor[:, 0].tolist() == [[True] * 3, [False] * 3, [False] * 3]


class SwapsMemory(BaseActorModule):
    """Gives a parameter and a buffer other memory in each step. Its info is what they are, and how often it stepped."""

    def __init__(self, swap):
        super().__init__()
        self.w, self.swap = torch.nn.Parameter(torch.zeros(1)), swap
        self.register_buffer("n", torch.zeros(1))

    def forward(self, obs, *, fin, hx=None, virtual=False, **ignored):
        self.swap(self.w, self.w.detach().clamp(-1e3, 1e3))
        self.swap(self.n, self.n + (0 if virtual else 1))
        told = {"w": self.w.expand(fin.shape), "n": self.n.expand(fin.shape)}
        return torch.zeros(fin.shape, dtype=torch.int64), hx, told


def set_data(tensor, value):
    tensor.data = value


def swap_tensors(tensor, value):
    torch.utils.swap_tensors(tensor, type(tensor)(value))


@pytest.mark.parametrize("lag", [0, 2])
@pytest.mark.parametrize("compiled", [False, pytest.param(True, marks=pytest.mark.filterwarnings("ignore:.*eager"))])
@pytest.mark.parametrize("device", [None, "lagging"])
@pytest.mark.parametrize("swap", [set_data, lambda tensor, value: tensor.set_(value), swap_tensors])
@engines
def test_weights_whose_memory_a_step_replaces_still_follow_the_learner(engine, swap, device, compiled, lag):
    actor, lane = SwapsMemory(swap), LaggingLane() if device else None
    with torch.no_grad(), engine.rollout(envs(), actor, 3, lag=lag, device=lane, compile=compiled) as feed:
        for k in range(5):
            told = next(feed).actor
            if lane is not None:
                lane.synchronize()
            assert (told["w"] == 10 * max(0, k - lag)).all()
            assert told["n"][:3, 0].tolist() == [100 * max(0, k - lag) + t for t in (1, 2, 3)]
            actor.w += 10
            actor.n += 100


@pytest.mark.parametrize("where", ["own", "in a dict"])
def test_functions_made_by_torch_compile_are_refused(where):
    actor = BaseActorModule()
    actor.layer = torch.nn.Linear(2, 2)
    compiled = torch.compile(actor.layer.forward, backend="eager")
    actor.own = compiled if where == "own" else {"in": compiled}
    with pytest.raises(TypeError, match=r"`actor\.own.*the original's weights"):
        same.rollout(envs(), actor, 4)


@pytest.mark.filterwarnings("ignore:the actor.s reset does not honour:RuntimeWarning")
@engines
@pytest.mark.parametrize("actor", [RemembersObservation, AdvancesStateInPlace, DrawsFirstState])
def test_neither_cuts_nor_finals_nor_virtual_steps_change_the_recorded_infos(engine, actor):
    def recorded(n_steps, **options):
        with engine.rollout(envs(), actor(), n_steps, seed=1, **options) as feed:
            rows = [nested.map(lambda x: x[:n_steps], next(feed).actor) for _ in range(12 // n_steps)]
        return {name: torch.cat([row[name] for row in rows]) for name in rows[0]}

    whole = recorded(12)
    for n_steps in (1, 4):
        for final in (False, True):
            for name, values in recorded(n_steps, final=final).items():
                assert torch.equal(values, whole[name]), (n_steps, final)


class AnswersIn(BaseActorModule):
    """Its info has the shape and the dtype that its attributes say."""

    def __init__(self):
        super().__init__()
        self.n, self.dtype_name = 3, "float32"

    def forward(self, obs, *, act, fin, hx=None, **ignored):
        info = torch.zeros(*fin.shape, self.n, dtype=getattr(torch, self.dtype_name))
        return nested.map(torch.zeros_like, act), (), {"x": info}


@engines
@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"n": 4}, r"answer \(act or info\) has changed its shape: expected .*3\), got .*4\)"),
        ({"dtype_name": "int64"}, r"dtypes of the actor's act or info have changed: expected .*got .*int64"),
    ],
)
def test_an_answer_that_changes_its_shape_or_its_kind_of_numbers_is_an_error(engine, changed, message):
    actor = AnswersIn()
    with engine.rollout(envs(), actor, 4, lag=0) as feed:
        next(feed)
        actor.dtype_name = "float64"  # another precision is cast
        assert next(feed).actor["x"].dtype == torch.float32
        vars(actor).update(changed)
        with pytest.raises(ValueError, match=message):
            next(feed)


def test_a_parameter_may_be_deleted_and_put_back():
    actor = torch.nn.Linear(5, 2)

    class Linear(BaseActorModule):
        def __init__(self):
            super().__init__()
            self.layer = actor

        def forward(self, obs, *, fin, hx=None, **ignored):
            return zeros_like_act(fin), (), {"weight": self.layer.weight.sum().expand(fin.shape)}

    whole = Linear()
    with same.rollout(envs(), whole, 2, lag=0) as feed:
        next(feed)
        del whole.layer.weight  # and so it comes after the bias
        whole.layer.weight = torch.nn.Parameter(torch.ones(2, 5))
        assert (next(feed).actor["weight"] == 10).all()


@engines
def test_a_feed_may_be_made_in_inference_mode(engine):
    with torch.inference_mode():
        feed = engine.rollout(envs(), AssignsBuffer(), 3)
    with feed:
        assert not next(feed).state.obs.is_inference()


def test_a_default_dtype_that_is_changed_later_changes_nothing_in_the_fragments():
    class Ones(BaseActorModule):
        def forward(self, obs, *, fin, hx=None, **ignored):
            return zeros_like_act(fin), (), {"ones": torch.ones(fin.shape)}

    before = torch.get_default_dtype()
    try:
        with same.rollout(envs(), Ones(), 3, lag=0) as feed:
            assert next(feed).actor["ones"].dtype == torch.float32
            torch.set_default_dtype(torch.float64)
            assert next(feed).actor["ones"].dtype == torch.float32
            assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(before)


def test_the_number_of_threads_stays_what_the_user_sets():
    before = torch.get_num_threads()
    try:
        with same.rollout(envs(), AssignsBuffer(), 3) as feed:
            next(feed)
            torch.set_num_threads(before + 1)
            next(feed)
            assert torch.get_num_threads() == before + 1
    finally:
        torch.set_num_threads(before)


def test_an_action_for_a_tuple_space_may_come_as_a_list():
    class TupleActions(gym.Env):
        observation_space = gym.spaces.Box(-1, 1, (1,), np.float32)
        action_space = gym.spaces.Tuple([gym.spaces.Discrete(3), gym.spaces.Box(-1, 1, (2,), np.float32)])

        def reset(self, *, seed=None, options=None):
            return np.zeros(1, np.float32), {}

        def step(self, action):
            assert isinstance(action, tuple)
            assert self.action_space.contains(action)
            return np.zeros(1, np.float32), 0.0, False, False, {}

    class ActsWithList(BaseActorModule):
        def forward(self, obs, *, fin, hx=None, **ignored):
            return [zeros_like_act(fin), torch.zeros(*fin.shape, 2)], (), ()

    with same.rollout([TupleActions()], ActsWithList(), 3) as feed:
        act = next(feed).state.act
    assert isinstance(act, tuple)
    assert act[1].shape == (4, 1, 2)


def test_evaluate_returns_bfloat16_infos_as_float32():
    class Half(BaseActorModule):
        def forward(self, obs, *, fin, hx=None, **ignored):
            return zeros_like_act(fin), (), {"half": torch.ones(fin.shape, dtype=torch.bfloat16)}

    _, info = evaluate(envs(), Half(), n_steps=3)
    assert info["half"].dtype == np.float32


def test_two_threads_may_pause_and_next_knows_which_thread_did():
    feed = same.rollout(envs(), AssignsBuffer(), 3)
    inside, alone, errors = threading.Event(), threading.Event(), []

    def other():
        with feed.pause():
            inside.set()
            alone.wait(60)
            with pytest.raises(RuntimeError, match="paused by this very thread") as caught:
                next(feed)
            errors.append(caught.value)

    thread = threading.Thread(target=other)
    with feed:
        with feed.pause():
            thread.start()
            inside.wait(60)
        alone.set()
        thread.join()
    assert len(errors) == 1


def test_python_integers_that_do_not_fit_are_refused_rather_than_wrapped():
    class Telling(LedgerEnv):
        def step(self, action):
            obs, reward, terminated, truncated, info = super().step(action)
            return obs, reward, terminated, truncated, {**info, "small": 3, "large": 300}

    def fragment(info):
        with same.rollout([Telling(gym.spaces)], AssignsBuffer(), 3, info=info) as feed:
            return next(feed).env.info

    assert fragment({"small": np.uint8})["small"].tolist() == [[3], [3], [3]]
    with pytest.raises(ValueError, match=r"'large'.*300"):
        fragment({"large": np.int8})
