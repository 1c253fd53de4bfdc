"""Discrete values are int64 and counted from 0, whatever the space; what is outside of the action space is refused."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
from tqdm import tqdm

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate

gymnasium = pytest.importorskip("gymnasium")
Box, Dict, Discrete, MultiBinary, MultiDiscrete, Tuple = (
    getattr(gymnasium.spaces, name) for name in ("Box", "Dict", "Discrete", "MultiBinary", "MultiDiscrete", "Tuple")
)


class Says(BaseActorModule):
    """Acts as a function of ``stepno`` says."""

    def __init__(self, act):
        super().__init__()
        self.act = act

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        return self.act(stepno), (), ()


class Echo(gymnasium.Env):
    """Shows actions of its space, and keeps those that it gets."""

    def __init__(self, space, index=0):
        self.observation_space = self.action_space = copy.deepcopy(space)  # with random numbers of its own
        self.index, self.got = index, []

    def reset(self, *, seed=None, options=None):
        self.action_space.seed(self.index)
        return self._show(), {}

    def step(self, action):
        assert self.action_space.contains(action), action
        self.got.append(action)
        return self._show(), 0.0, False, False, {}

    def _show(self):
        self.shown = self.action_space.sample()
        return self.shown


MATRIX = {"nvec": [[2, 3], [4, 5]], "start": [[1, 0], [-5, 2]]}
SPACES = {
    "int32": Discrete(3, dtype=np.int32),
    "uint8": Discrete(200, dtype=np.uint8),
    "start": Discrete(3, start=5),
    "negative start": Discrete(3, start=-7, dtype=np.int16),
    "int8 from its end": Discrete(127, start=-128, dtype=np.int8),
    "uint64": Discrete(3, start=2, dtype=np.uint64),
    "multi": MultiDiscrete([3, 4], dtype=np.int32),
    "multi with start": MultiDiscrete([3, 4], start=[10, -4]),
    "matrix": MultiDiscrete(MATRIX["nvec"], dtype=np.int16, start=MATRIX["start"]),
    "nested": Dict({"a": Discrete(3, start=1, dtype=np.int8), "b": Tuple((MultiDiscrete([2, 2], start=[1, 2]),))}),
}


def numbers_of(space, value):
    """Return the leaves of a value of a space: counted from 0, int64."""
    if isinstance(space, Dict):
        return [x for key in sorted(space.spaces) for x in numbers_of(space[key], value[key])]
    if isinstance(space, Tuple):
        return [x for part, item in zip(space.spaces, value, strict=True) for x in numbers_of(part, item)]
    start = np.asarray(space.start).astype(object)
    return [np.asarray(np.asarray(value).astype(object) - start, np.int64)]


def acting(space):
    """Return an actor whose actions are all among the values of the space, counted from 0."""

    def act(stepno):
        def leaf(part):
            if isinstance(part, Dict):
                return {key: leaf(inner) for key, inner in part.spaces.items()}
            if isinstance(part, Tuple):
                return tuple(map(leaf, part.spaces))
            n = torch.as_tensor(np.array(getattr(part, "nvec", getattr(part, "n", 0)), np.int64))
            return (stepno.reshape(*stepno.shape, *[1] * n.ndim) + 1) * 7 % n

        return leaf(space)

    return Says(act)


@pytest.mark.parametrize("space", SPACES.values(), ids=SPACES)
@pytest.mark.parametrize("module", [same, threaded])
def test_actions_and_observations_are_int64_and_counted_from_0(module, space):
    class Recording(Echo):
        shows = None

        def _show(self):
            self.shows = [*(self.shows or []), super()._show()]
            return self.shows[-1]

    envs = [Recording(space, j) for j in range(2)]
    with module.rollout(envs, acting(space), 5) as feed:
        state = next(feed).state
    for j, env in enumerate(envs):
        acts, obs = ([leaf[:, j].numpy() for leaf in nested.leaves(tree)] for tree in (state.act, state.obs))
        assert {leaf.dtype for leaf in [*acts, *obs]} == {np.dtype(np.int64)}
        for t in range(6):
            for got, expected in zip(obs, numbers_of(space, env.shows[t]), strict=True):
                np.testing.assert_array_equal(got[t], expected)
        for t in range(5):
            for got, expected in zip(acts, numbers_of(space, env.got[t]), strict=True):
                np.testing.assert_array_equal(got[t + 1], expected)
            for leaf, part in zip(nested.leaves(env.got[t]), leaves_of(space), strict=True):
                assert leaf.dtype == part.dtype
                assert isinstance(leaf, np.integer if not part.shape else np.ndarray)
        assert len({str(got) for got in env.got}) > 1


def leaves_of(space):
    if isinstance(space, Dict):
        return [leaf for key in sorted(space.spaces) for leaf in leaves_of(space[key])]
    return [leaf for part in space.spaces for leaf in leaves_of(part)] if isinstance(space, Tuple) else [space]


@pytest.mark.parametrize("mode", ["NEXT_STEP", "SAME_STEP", "DISABLED"])
@pytest.mark.parametrize("name", ["int32", "negative start", "multi with start", "nested"])
def test_vector_environments_get_and_show_the_values_of_their_spaces(name, mode):
    class Ends(Echo):
        def step(self, action):
            obs = super().step(action)[0]
            return obs, 0.0, len(self.got) % 3 == 0, False, {}

    def fragment_of(envs):
        with same.rollout(envs, acting(SPACES[name]), 3, final=True) as feed:
            return next(feed)

    vector = gymnasium.vector
    makers = [lambda j=j: Ends(SPACES[name], j) for j in range(2)]
    envs = vector.SyncVectorEnv(makers, autoreset_mode=vector.AutoresetMode[mode])
    got, expected = fragment_of(envs), fragment_of([make() for make in makers])
    for part in ("obs", "act"):
        # the last row is after an end, which NEXT_STEP shows otherwise
        for x, y in zip(*(nested.leaves(getattr(some.state, part)) for some in (got, expected)), strict=True):
            assert x.dtype == torch.int64
            assert torch.equal(x[:3], y[:3])
    for x, y in zip(nested.leaves(got.env.final.obs), nested.leaves(expected.env.final.obs), strict=True):
        assert torch.equal(x, y)


def test_an_environment_without_start_is_not_equal_to_one_with():
    with pytest.raises(ValueError, match="equal spaces"):
        same.rollout([Echo(Discrete(3)), Echo(Discrete(3, start=1))], acting(Discrete(3)), 2)


def test_multibinary_keeps_its_dtype():
    def act(stepno):
        return torch.stack([stepno % 2, stepno // 2 % 2], -1)

    env = Echo(MultiBinary(2))
    with same.rollout([env], Says(act), 4) as feed:
        state = next(feed).state
    assert state.obs.dtype == state.act.dtype == torch.int8
    assert [got.tolist() for got in env.got] == state.act[1:, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.bool, torch.uint8, torch.int8, torch.int16, torch.int32, torch.int64])
def test_multibinary_takes_integers_of_any_width(dtype):
    actor = Says(lambda stepno: torch.stack([stepno % 2, stepno // 2 % 2], -1).to(dtype))
    env = Echo(MultiBinary(2))
    with same.rollout([env], actor, 4) as feed:
        act = next(feed).state.act
    assert act.dtype == torch.int8
    assert act[1:, 0].tolist() == [[0, 0], [1, 0], [0, 1], [1, 1]]
    assert [got.tolist() for got in env.got] == act[1:, 0].tolist()


@pytest.mark.parametrize("dtype", [torch.int16, torch.int64])
def test_integers_that_a_box_would_wrap_around_are_refused_at_the_call(dtype):
    def acting_in(dtype):
        return Says(lambda stepno: torch.full((*stepno.shape, 2), 100, dtype=dtype))

    space = Box(-100, 100, (2,), np.int8)
    with pytest.raises(ValueError, match=r"expected .*int8, got torch\.int.*wrap around.*`act\.to\(torch\.int8\)`"):
        same.rollout([Echo(space)], acting_in(dtype), 2)
    for fitting in (torch.int8, torch.bool):
        same.rollout([Echo(space)], acting_in(fitting), 2).close()


def test_spaces_of_swapped_bytes_are_in_the_order_of_the_machine_in_rows_alone():
    space = Box(-9, 9, (2,), np.dtype(">f4"))
    env = Echo(space)
    with same.rollout([env], Says(lambda stepno: torch.full((*stepno.shape, 2), 1.5)), 4) as feed:
        state = next(feed).state
    assert state.obs.dtype == state.act.dtype == torch.float32
    assert state.obs[-1, 0].tolist() == env.shown.tolist()
    assert [(got.dtype, got.tolist()) for got in env.got] == [(np.dtype(">f4"), [1.5, 1.5])] * 4


# --- actions outside of the space -------------------------------------------------------------------------------------


def at_step_2(right, wrong, column=1):
    """Act rightly, but at step 2 in one environment."""

    def act(stepno):
        acts = torch.as_tensor(right).expand(*stepno.shape, *np.shape(right)).clone()
        hit = (stepno == 2) & (torch.arange(stepno.shape[1]) == column)
        acts[hit] = torch.as_tensor(wrong, dtype=acts.dtype)
        return acts

    return act


NAN, INF = float("nan"), float("inf")
OUTSIDE = {
    "n": (Discrete(3), 0, 3, r"got 3, expected integers from 0 to 2"),
    "negative": (Discrete(3), 0, -2, r"got -2, expected integers from 0 to 2\."),
    "as for NaN logits": (Discrete(3), 0, -1, r"got -1, .*rlplay\.sampling draws -1 where logits are NaN"),
    "many": (Discrete(10**6), 5, 10**6, r"got 1000000, expected integers from 0 to 999999"),
    "with start": (
        Discrete(3, start=5, dtype=np.int32),
        0,
        5,
        r"got 5, .* 0 to 2, counted from 0 whatever the `start`",
    ),
    "multi": (MultiDiscrete([2, 4]), [1, 3], [2, 3], r"got \[2, 3\], expected integers from 0 to \[1 3\]"),
    "multi, equal": (MultiDiscrete([4, 4]), [1, 3], [2, 4], r"got \[2, 4\]"),
    "bits": (MultiBinary(2), [0, 1], [0, 2], r"got \[0, 2\], expected integers from 0 to 1"),
    "bits, wrapping around": (MultiBinary(2), [0, 1], [0, 257], r"got \[0, 127\].*127 stands for larger numbers, too"),
    "bits, wrapping around below": (MultiBinary(2), [0, 1], [-256, 1], r"got \[-128, 1\]"),
    "box": (Box(-1, 1, (2,), np.float32), [0.0, 5.0], [0.0, NAN], r"got \[0\.0, nan\], expected no NaN"),
    "box, float64": (Box(-1, 1, (), np.float64), 0.0, NAN, r"got nan, expected no NaN"),
    "box, float16": (Box(-1, 1, (2, 2), np.float16), [[0.0] * 2] * 2, [[INF, 0.0], [NAN, -INF]], "expected no NaN"),
}


class Silent(gymnasium.Env):
    observation_space = Box(-1, 1, (1,), np.float32)

    def __init__(self, space):
        self.action_space = space

    def reset(self, *, seed=None, options=None):
        return np.zeros(1, np.float32), {}

    def step(self, action):
        return np.zeros(1, np.float32), 0.0, False, False, {}


def where(caught):
    return "".join(caught.value.__notes__)


@pytest.mark.parametrize(("space", "right", "wrong", "match"), OUTSIDE.values(), ids=OUTSIDE)
@pytest.mark.parametrize("how", [{}, {"groups": 3}, {"workers": 2, "worker": "thread"}], ids=str)
def test_an_action_outside_of_its_space_names_environment_and_step(space, right, wrong, match, how):
    number = 0 if "groups" in how else 1  # the first environment of each group, or the second of all
    envs = [Silent(space) for _ in range(3)]
    feed = threaded.rollout(envs, Says(at_step_2(right, wrong, number)), 5, **how)
    with pytest.raises(ValueError, match=f"`act` for environment {number} is outside of its .*{match}") as caught:
        next(feed)
    assert f"environment {number}, in env.step, at step 2 of fragment 0" in where(caught)


def test_a_compiled_step_does_not_wrap_bits_around(monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # the compiler's progress bars have a thread that does not end
    actor = Says(at_step_2([0, 1], [0, 256]))
    with (
        same.rollout([Silent(MultiBinary(2)) for _ in range(2)], actor, 5, compile=True) as feed,
        pytest.raises(ValueError, match=r"environment 1 is outside of its .*got \[0, 127\]"),
    ):
        next(feed)


def test_an_action_in_a_nest_is_named_by_its_path():
    space = Dict({"move": Discrete(2), "aim": Box(-1, 1, (), np.float32)})

    def act(stepno):
        return {"move": stepno * 0, "aim": torch.where(stepno == 1, NAN, 0.5)}

    feed = same.rollout([Silent(space)], Says(act), 3)
    with pytest.raises(ValueError, match=r"`act\['aim'\]` for environment 0"):
        next(feed)


def test_the_action_of_a_box_is_an_array_even_without_dimensions():
    box, discrete = Box(-9, 9, (), np.float64), Discrete(3)
    envs = Echo(box), Echo(Dict({"move": discrete, "aim": box}))  # `contains` warns of a NumPy scalar
    for env, act in zip(envs, (lambda t: t.double(), lambda t: {"move": t % 3, "aim": t.double()}), strict=True):
        with same.rollout([env], Says(act), 3) as feed:
            next(feed)
    (kept,), (nest,) = ({type(action) for action in env.got} for env in envs)
    assert (kept, nest) == (np.ndarray, dict)
    assert [action.item() for action in envs[0].got] == [0.0, 1.0, 2.0]
    assert [(type(a["aim"]), a["aim"].item(), type(a["move"])) for a in envs[1].got] == [
        (np.ndarray, float(t), np.int64) for t in range(3)
    ]


def test_infinite_actions_are_the_environments_own_affair():
    space = Box(-1, 1, (2,), np.float32)
    with same.rollout([Silent(space)], Says(at_step_2([0.0, 1.0], [INF, -INF], 0)), 5) as feed:
        assert next(feed).state.act[3, 0].tolist() == [INF, -INF]
    largest = float(np.finfo(np.float32).max)
    with same.rollout([Silent(space)], Says(at_step_2([0.0, 1.0], [largest, -largest], 0)), 5) as feed:
        next(feed)


def test_the_action_of_an_environment_that_is_not_stepped_does_not_matter():
    class Short(Silent):
        n = 0

        def step(self, action):
            assert self.action_space.contains(action)
            self.n += 1
            return np.zeros(1, np.float32), 0.0, self.n == 2, False, {}

    def only_at_the_beginning(stepno):  # after the end of its episode a sticky environment stays at step 0
        return torch.where((stepno == 0) & ended, 7, 0)

    ended = torch.tensor([False])
    actor = Says(only_at_the_beginning)
    env = Short(Discrete(2))
    step = env.step

    def noted(action):
        answer = step(action)
        ended[0] = answer[2]
        return answer

    env.step = noted
    with same.rollout([env], actor, 5, sticky=True) as feed:
        assert next(feed).env.valid.flatten().tolist() == [True, True, False, False, False]


def test_nan_logits_end_in_an_error_in_every_engine():
    class Broken(BaseActorModule):
        def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
            return torch.where(stepno == 2, -1, 0), (), ()

    def make():
        return Silent(Discrete(2))

    for feed in (
        single.rollout(make, Broken(), 5, n_envs=2),
        episodic.rollout([make(), make()], Broken()),
        threaded.rollout([make, make], Broken(), 5, workers=2),
    ):
        with feed, pytest.raises(ValueError, match=r"environment [01] is outside of its action space") as caught:
            next(feed)
        assert "in env.step, at step 2 of fragment 0" in where(caught)
    with pytest.raises(ValueError, match="environment 0 is outside of its action space"):
        evaluate([make()], Broken(), n_steps=5)
    feed = same.rollout(gymnasium.vector.SyncVectorEnv([make, make]), Broken(), 5)
    with pytest.raises(ValueError, match="environment 0 is outside of its action space"):
        next(feed)


def test_sampled_actions_of_a_space_with_start_are_right():
    class Actor(BaseActorModule):
        def forward(self, obs, *, fin, hx=None, **ignored):
            return sampling.categorical(torch.zeros(*fin.shape, 3), generator=self.generator), hx, {}

    env = Echo(Discrete(3, start=5, dtype=np.int32))
    with same.rollout([env], Actor(), 50, seed=0) as feed:
        act = next(feed).state.act[1:, 0]
    assert [int(got) for got in env.got] == (act + 5).tolist()
    assert set(act.tolist()) == {0, 1, 2}
