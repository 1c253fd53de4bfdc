"""Memory that arrays and tensors share, and objects that environments share, are shared again after a resume."""

import subprocess
import sys
import threading

import gymnasium
import numpy as np
import pytest
import torch

from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor
from tests.support.assertions import assert_same_bytes
from tests.support.saving import through_torch
from tests.support.scripts import PREAMBLE


class Tells(gymnasium.Env):
    """A subclass defines `advance`, and `told`: the observation."""

    observation_space = gymnasium.spaces.Box(-1e3, 1e3, (4,), np.float32)
    action_space = gymnasium.spaces.Discrete(1000)

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.observation(), {}

    def step(self, action):
        self.t += 1
        self.advance()
        return self.observation(), 1.0, self.t >= 50, False, {}

    def observation(self):
        return np.array([float(x) for x in self.told()], np.float32)

    def told(self):
        return self.state


def saved_and_expected(envs, **options):
    feed = same.rollout(envs, CountingActor(), 4, seed=0, **options)
    next(feed)
    saved = through_torch(feed.state_dict())
    return saved, [next(feed) for _ in range(2)]


def assert_goes_on(make, **options):
    saved, expected = saved_and_expected(make(), **options)
    feed = same.rollout(make(), CountingActor(), 4, state=saved, **options)
    assert_same_bytes([next(feed) for _ in range(2)], expected)


class Views(Tells):
    def __init__(self):
        self.state = np.zeros(4, np.float32)
        self.pos, self.vel = self.state[:2], self.state[2:]

    def reset(self, **options):
        self.state[:] = 1
        return super().reset(**options)

    def advance(self):
        self.pos += self.vel


class TensorViews(Views):
    def __init__(self):
        self.state = torch.zeros(4)
        self.pos, self.vel = self.state[:2], self.state[2:]


class ViewsAlone(Views):
    """The array that owns the memory is not an attribute."""

    def __init__(self):
        self.state, self.pos, self.vel = (lambda x: (x[1:-1], x[1:3], x[3:5]))(np.zeros(6, np.float32))


class Reversed(Views):
    def __init__(self):
        self.state = np.zeros((2, 2), np.float32).T[::-1]
        self.pos, self.vel = self.state[:, ::-1]

    def told(self):
        return self.state.ravel()


class Fields(Views):
    def __init__(self):
        self.record = np.zeros(2, [("flag", np.int8), ("pos", np.float32), ("vel", np.float32)])
        self.state, self.pos, self.vel = self.record["pos"], self.record["pos"], self.record["vel"]

    def reset(self, **options):
        self.vel[:] = 1
        return super().reset(**options)

    def told(self):
        return np.concatenate([self.record["pos"], self.record["vel"]])


class TensorOfArray(Views):
    def __init__(self):
        self.state = np.zeros(4, np.float32)
        self.pos, self.vel = torch.from_numpy(self.state[:2]), self.state[2:]

    def advance(self):
        self.pos += torch.from_numpy(self.vel)


class ArrayOfTensor(Views):
    def __init__(self):
        self.state = torch.zeros(4)
        self.pos, self.vel = self.state.numpy()[:2], self.state[2:].numpy()


class OverlapsItself(Tells):
    def __init__(self):
        self.state = np.lib.stride_tricks.as_strided(np.zeros(3, np.float32), (2, 2), (4, 4))

    def advance(self):
        self.state[0, 1] += 1

    def told(self):
        return self.state.ravel()


class DeepViews(Tells):
    """The views are held by other objects, one of which is a parameter."""

    def __init__(self):
        self.net = torch.nn.Linear(1, 4)
        self.things = {"state": [self.net.weight.detach()[:, 0]]}

    def reset(self, **options):
        self.things["state"][0][:] = 0
        return super().reset(**options)

    def advance(self):
        with torch.no_grad():
            self.net.weight += 1

    def told(self):
        return self.things["state"][0]


class Integers(Tells):
    """Tensors of dtypes for which torch's own pickling does not work."""

    def __init__(self):
        self.state = torch.zeros(4, dtype=torch.uint16)
        self.others = [torch.zeros(0, dtype=torch.uint64), torch.ones(2, 3, dtype=torch.float8_e4m3fn).T]

    def advance(self):
        self.state = (self.state.int() + self.others[1].float().sum().int()).to(torch.uint16)


class Gaps(Tells):
    """The last bits of a product depend on the gaps between the elements."""

    def __init__(self):
        self.whole = np.random.default_rng(0).random((65, 65), np.float32)
        self.w, self.x = self.whole[:, ::2], np.ones(65, np.float32)
        del self.whole

    def advance(self):
        self.x = self.w @ self.x[:33]
        self.x /= self.x.max()

    def told(self):
        return self.x[:4]


class Learns(Tells):
    """Accumulates gradients over four steps, in parameters and in a tensor."""

    def __init__(self):
        self.net, self.bias = torch.nn.Linear(1, 1), torch.zeros(1, requires_grad=True)
        self.optim = torch.optim.SGD([*self.net.parameters(), self.bias], 0.1, momentum=0.5)

    def reset(self, **options):
        for x in (*self.net.parameters(), self.bias):
            x.data.fill_(0.5)
        return super().reset(**options)

    def advance(self):
        (self.net(torch.full((1,), float(self.t))) + self.bias).square().sum().backward()
        if self.t % 5 == 0:
            self.optim.step()
            self.optim.zero_grad()

    def told(self):
        return [*self.net.weight[0].tolist(), *self.net.bias.tolist(), *self.bias.tolist(), 0]


MEMORY = [Views, TensorViews, ViewsAlone, Reversed, Fields, TensorOfArray, ArrayOfTensor, OverlapsItself, DeepViews]


@pytest.mark.parametrize("kind", [*MEMORY, Integers, Gaps, Learns])
def test_an_environment_goes_on_with_arrays_and_tensors_that_share_memory(kind):
    assert_goes_on(lambda: [kind()])


def test_a_vector_environment_goes_on_with_arrays_that_share_memory():
    class Batch(gymnasium.vector.VectorEnv):
        num_envs, metadata = 2, {"autoreset_mode": gymnasium.vector.AutoresetMode.DISABLED}
        single_observation_space = gymnasium.spaces.Box(-1e3, 1e3, (2,), np.float32)
        single_action_space = gymnasium.spaces.Discrete(1000)

        def __init__(self):
            self.state = np.zeros((2, 2), np.float32)
            self.pos, self.vel = self.state.T

        def reset(self, **options):
            self.vel[:] = 1
            return self.state, {}

        def step(self, action):
            self.pos += self.vel
            return self.state, np.ones(2), np.zeros(2, bool), np.zeros(2, bool), {}

    assert_goes_on(Batch)


def objects():
    array = np.array([[], {}], dtype=object)
    return {"all": array, "one": array[:1]}


def subclass():
    array = np.ma.zeros(3)
    return {"masked": array, "plain": array.data}


def over_bytes():
    data = bytearray(8)
    return {"bytes": data, "array": np.frombuffer(data, np.float64)}


@pytest.mark.parametrize(("make", "path"), [(objects, "all"), (subclass, "masked"), (over_bytes, "array")])
def test_memory_that_would_come_apart_is_refused_with_a_path_to_it(make, path):
    env = Views()
    env.things = make()
    feed = same.rollout([env], CountingActor(), 4)
    with pytest.raises(TypeError, match=rf"`env\.things\['{path}'\]`.* shares memory with .*get_state"):
        feed.state_dict()


class Counter:
    def __init__(self):
        self.n, self.array = 0, np.zeros(4, np.float32)


class Counts(Tells):
    """It shares what it is given with other environments."""

    def __init__(self, counter, array, row):
        self.counter, self.table = counter, [counter]
        self.array, self.row = array, row

    def advance(self):
        self.counter.n += 1
        self.array += self.table[0].n
        self.row += 1

    def told(self):
        return [self.counter.n, self.array[0, 0], self.row[0], self.table[0].n]


def make_sharing():
    counter, array = Counter(), np.zeros((3, 1), np.float32)
    return [gymnasium.wrappers.TimeLimit(Counts(counter, array[k:], array[k : k + 1, 0]), 9) for k in range(3)]


def test_environments_go_on_with_what_they_share():
    assert_goes_on(make_sharing)


class Calls(Tells):
    """It shares a function with other environments, and that function counts its calls."""

    def __init__(self, rule):
        self.rule = rule

    def advance(self):
        self.n = self.rule()

    def told(self):
        return [self.n if self.t else 0, 0, 0, 0]


def make_that_call():
    n = 0

    def count():
        nonlocal n
        n += 1
        return n

    return [Calls(count) for _ in range(3)]


def test_environments_go_on_with_the_variables_of_a_function_that_they_share():
    assert_goes_on(make_that_call)


class Meets(Counts):
    """It reads the other environments."""

    t = 0

    def told(self):
        first, second = self.counter.envs
        return [self.counter.n, first.t, second.t, first is self]


def make_that_meet():
    counter = Counter()
    counter.envs = [Meets(counter, np.zeros((1, 1)), np.zeros(1)) for _ in range(2)]
    return counter.envs


def test_environments_that_refer_to_each_other_go_on_with_each_other():
    assert_goes_on(make_that_meet)


def test_environments_that_share_something_go_on_in_worker_processes_each_with_a_copy_of_it():
    saved, expected = saved_and_expected(make_sharing())
    factories = [lambda k=k: make_sharing()[k] for k in range(3)]
    with threaded.rollout(factories, CountingActor(), 4, state=saved, lag=0, workers=3) as feed:
        first = next(feed).state.obs[:, :, 0]
    last = expected[0].state.obs[0, 2, 0]
    assert first[1:].tolist() == [[last + k] * 3 for k in range(1, 5)]


SCRIPT = """
class Counter:
    n = 0

class Counts(Env):
    def __init__(self, counter):
        super().__init__()
        self.counter = counter

    def step(self, action):
        self.counter.n += 1
        return np.float32(self.counter.n), 1.0, False, False, {}

def make():
    counter = Counter()
    return [Counts(counter) for _ in range(3)]

feed = same.rollout(make(), Actor(), 2, seed=0)
next(feed)
saved, expected = feed.state_dict(), next(feed)
assert torch.equal(next(same.rollout(make(), Actor(), 2, state=saved)).state.obs, expected.state.obs)
factories = [lambda k=k: make()[k] for k in range(3)]
with threaded.rollout(factories, Actor(), 2, state=saved, lag=0, workers=3) as feed:
    assert next(feed).state.obs[1:].tolist() == [[7.0] * 3, [8.0] * 3]
"""


def test_what_environments_share_may_be_of_a_class_of_the_users_script():
    subprocess.run([sys.executable, "-c", PREAMBLE + SCRIPT], check=True)


def test_what_only_one_environment_refers_to_is_saved_with_it_alone():
    envs = [gymnasium.wrappers.TimeLimit(Views(), 99) for _ in range(2)]
    for env in envs:
        env.np_random.random()
    saved, _ = saved_and_expected(envs)
    assert [sorted(one["env"]) for one in saved["collector"]["environments"]] == [["data", "kinds"]] * 2


def test_what_environments_share_and_cannot_be_saved_is_refused_with_a_path_to_it():
    envs = make_sharing()
    envs[0].unwrapped.counter.lock = threading.Lock()
    feed = same.rollout(envs, CountingActor(), 4)
    with pytest.raises(TypeError, match=r"environment 0 cannot be saved: `env\.env\.counter\.lock`"):
        feed.state_dict()
