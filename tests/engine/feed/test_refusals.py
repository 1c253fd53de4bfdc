"""Wrong input is refused at the call, with a message that helps, and leaves no thread and no environment open."""

from __future__ import annotations

import copy
import threading
from functools import partial
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from gym.spaces import Box, Dict, Discrete, MultiDiscrete, Text, Tuple
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from tests.support.scripted import ActorWithSlowReset, ScriptedActor, ScriptedEnv

ENGINES = {"same": same.rollout, "threaded": threaded.rollout}


@pytest.fixture(params=ENGINES.values(), ids=ENGINES)
def rollout(request):
    return request.param


@pytest.fixture
def refuses(rollout):
    """See that a call raises an error whose message has these words, and that nothing is left of it.

    The call has an instance and a factory for environments of a class, which differ from those given.
    """

    def check(kind, *words, env=ScriptedEnv, envs=None, actor=None, resets=1, **arguments):
        mine, made = env(), []

        def factory():
            made.append(env())
            return made[-1]

        threads = set(threading.enumerate())
        with pytest.raises(kind) as caught:
            rollout([mine, factory] if envs is None else envs, ScriptedActor() if actor is None else actor, **arguments)
        assert [word for word in words if word not in str(caught.value)] == [], str(caught.value)
        assert set(threading.enumerate()) == threads
        assert all(env.counts["step"] == 0 and env.counts["reset"] <= resets for env in (mine, *made))
        assert mine.counts["close"] == 0
        assert [env.counts["close"] for env in made] == [1] * len(made)
        return caught.value

    return check


# environments


def test_no_environments_are_refused(refuses):
    refuses(ValueError, "`envs`", "empty", "at least one", envs=[])
    refuses(ValueError, "`envs`", "empty", envs=iter(()))


def test_a_single_environment_is_refused_and_the_message_suggests_a_list(refuses):
    env = ScriptedEnv()
    refuses(TypeError, "`envs`", "list", "[env]", envs=env)
    refuses(TypeError, "`envs`", "list", envs=lambda: env)
    refuses(TypeError, "`envs`", "list", envs=3)
    assert not env.counts


def test_the_same_environment_twice_is_refused(refuses):
    env = ScriptedEnv()
    refuses(ValueError, "same environment", "twice", "instance of its own", envs=[env, ScriptedEnv(), env])
    assert not env.counts


class Wraps:
    """A wrapper as those of gym: it steps the environment inside."""

    def __init__(self, env):
        self.env = env
        self.observation_space, self.action_space = env.observation_space, env.action_space
        self.reset, self.step = env.reset, env.step


def test_the_same_environment_twice_inside_of_wrappers_is_refused(refuses):
    env = ScriptedEnv()
    words = "same environment", "twice", "a ScriptedEnv", "inside of wrappers", "instance of its own"
    refuses(ValueError, *words, envs=[Wraps(env), Wraps(env)])
    refuses(ValueError, *words, envs=[env, Wraps(Wraps(env))])
    refuses(ValueError, *words, envs=[Wraps(env), env])
    refuses(ValueError, *words, envs=[lambda: Wraps(env), lambda: Wraps(env)])
    assert not env.counts


def test_an_object_that_is_no_environment_is_refused(refuses):
    refuses(
        TypeError, "`envs[1]`", "neither an environment nor a factory", "'CartPole'", envs=[ScriptedEnv(), "CartPole"]
    )
    made = ScriptedEnv()
    error = refuses(TypeError, "environment 1", "has no `reset`", envs=[lambda: made, lambda: SimpleNamespace(step=1)])
    assert "no environment" in str(error)
    assert made.counts == {"close": 1}
    refuses(TypeError, "environment 0", "None", envs=[lambda: None])


def test_a_vector_environment_beside_a_single_one_is_refused(refuses):
    vector = SimpleNamespace(num_envs=2, single_observation_space=ScriptedEnv.observation_space, step=bool, reset=bool)
    refuses(
        TypeError,
        "environment 1 of `envs` is a vector",
        "environment 0 is a single",
        "a list of",
        envs=[ScriptedEnv(), vector],
    )


def test_sticky_with_a_vector_environment_is_refused(refuses):
    vector = SimpleNamespace(num_envs=2, single_observation_space=ScriptedEnv.observation_space, step=bool, reset=bool)
    refuses(ValueError, "`sticky=True`", "list", "vector", envs=vector, sticky=True)


def test_a_vector_environment_without_an_autoreset_mode_is_refused(refuses):
    spaces = {
        "single_observation_space": ScriptedEnv.observation_space,
        "single_action_space": ScriptedEnv.action_space,
    }
    vector = SimpleNamespace(num_envs=2, **spaces, step=bool, reset=bool)
    for vector.metadata in ({}, {"autoreset_mode": SimpleNamespace(name="SOMETIMES")}):
        refuses(ValueError, "SAME_STEP", "autoreset_mode", "AutoresetMode", "list", envs=vector)


@pytest.mark.parametrize("name", ["observation_space", "action_space"])
def test_environments_with_unequal_spaces_are_refused_before_any_is_reset(refuses, name):
    env, odd = ScriptedEnv(), ScriptedEnv()
    other = {"observation_space": Box(-1, 1, (3,), np.float32), "action_space": Discrete(3)}[name]
    setattr(odd, name, other)
    words = "equal", "environment 1", name, str(other), str(getattr(ScriptedEnv, name))
    error = refuses(ValueError, *words, envs=[env, odd, ScriptedEnv()])
    assert not env.counts
    assert "environment 2" not in str(getattr(error, "__notes__", ""))


def test_spaces_whose_values_have_no_fixed_shape_are_refused(refuses):
    class Talks(ScriptedEnv):
        observation_space = Text(5)

    class Listens(ScriptedEnv):
        action_space = Dict({"a": Discrete(2), "b": Text(5)})

    refuses(TypeError, "Text", "expected one of", "Box", env=Talks)
    refuses(TypeError, "Text", "expected one of", "Box", env=Listens)


OBSERVATIONS = {
    "shape": (Box(-1, 1, (2,), np.float32), np.zeros(3, np.float32), ["(2,)", "(3,)", "expected"]),
    "no shape": (Box(-1, 1, (2,), np.float32), 0.0, ["(2,)", "()"]),
    "kind": (Box(0, 255, (2,), np.uint8), np.zeros(2, np.float32), ["uint8", "float32", "cast safely"]),
    "sign": (Box(0, 255, (2,), np.uint8), np.zeros(2, np.int64), ["uint8", "int64", "cast safely"]),
    "discrete": (Discrete(3), 1.0, ["integer", "float64"]),
    "dict": (Dict({"a": Discrete(2), "b": Discrete(2)}), {"a": 0}, ["dict", "['a', 'b']", "['a']"]),
    "leaf": (Dict({"a": Tuple((Discrete(2),))}), {"a": (np.zeros(2, int),)}, ["obs['a'][0]", "(2,)", "()"]),
    "tuple": (Tuple((Discrete(2), Discrete(2))), (0, 1, 0), ["tuple of 2", "tuple of 3"]),
    "nothing": (Box(-1, 1, (2,), np.float32), None, ["the observation is None", "`return`"]),
}


@pytest.mark.parametrize(("space", "observation", "words"), OBSERVATIONS.values(), ids=OBSERVATIONS)
def test_an_observation_that_does_not_fit_its_space_is_refused(refuses, space, observation, words):
    class Odd(ScriptedEnv):
        observation_space = space

        def _obs(self):
            return observation

    error = refuses(ValueError, "obs", *words, env=Odd)
    assert "environment 0, in env.reset" in error.__notes__[0]


FINE = {
    "float64 for float32": (Box(-1, 1, (2,), np.float32), np.zeros(2)),
    "out of bounds": (Box(-1, 1, (2,), np.float32), np.full(2, 9, np.float32)),
    "uint8 for discrete": (Discrete(3), np.uint8(1)),
    "plain integers": (Box(0, 255, (2,), np.uint8), [1, 255]),
    "list for a tuple": (Tuple((Discrete(2), Discrete(2))), [0, 1]),
}


@pytest.mark.parametrize(("space", "observation"), FINE.values(), ids=FINE)
def test_an_observation_that_can_be_cast_safely_is_taken(rollout, space, observation):
    class Odd(ScriptedEnv):
        observation_space = space

        def _obs(self):
            return observation

    rollout([Odd(), Odd()], ScriptedActor(), 2).close()


VALUES = [0.25, -3.0]
STEPS = {
    # how a step's observation differs -> whether it is taken
    "as the space says": (lambda x: x, True),
    "with gaps": (lambda x: np.repeat(x, 2)[::2], True),
    "backwards": (lambda x: np.ascontiguousarray(x[::-1])[::-1], True),
    "read-only": (lambda x: np.frombuffer(x.tobytes(), x.dtype), True),
    "float64": (lambda x: x.astype(np.float64), True),
    "float16": (lambda x: x.astype(np.float16), True),
    "bytes swapped": (lambda x: x.astype(">f4"), True),
    "a list": (lambda x: x.tolist(), True),
    "a dimension more": (lambda x: x[None], False),
    "one too few": (lambda x: x[:1], False),
    "one too many": (lambda x: np.append(x, x[:1]), False),
    "complex": (lambda x: x.astype(complex), False),
    "bytes": (lambda x: x.tobytes(), False),
    "none": (lambda x: None, False),
}


@pytest.mark.parametrize(("form", "taken"), STEPS.values(), ids=STEPS)
def test_an_observation_of_another_form_during_a_run_is_cast_or_refused(form, taken):
    class Odd(ScriptedEnv):
        steps = 0

        def step(self, action):
            self.steps += 1
            _, *rest = super().step(action)
            right = np.array(VALUES, np.float32)
            return form(right) if self.steps == 2 else right, *rest

    with same.rollout([ScriptedEnv(), Odd()], ScriptedActor(), 3) as feed:
        if not taken:
            with pytest.raises(ValueError, match="obs") as caught:
                next(feed)
            assert "environment 1, in env.step, at step 1" in caught.value.__notes__[0]
        else:
            assert next(feed).state.obs[2, 1].tolist() == VALUES


# the actor's answers


class Answers(BaseActorModule):
    """Answers as the contract asks for, but for the parts given: functions of a right part, or of the whole answer."""

    def __init__(self, act=None, hx=None, info=None, whole=None):
        super().__init__()
        self.odd = [part or (lambda x: x) for part in (act, hx, info)]
        self.whole = whole or (lambda *parts: parts)

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        right = fin.long(), fin.float(), fin.float()
        return self.whole(*(part(x) for part, x in zip(self.odd, right, strict=True)))


ANSWERS = {
    # how the answer differs -> the error, words of its message
    "act: float for Discrete": ({"act": lambda x: x.float()}, ValueError, ["act", "integer", "float32", ".long()"]),
    "act: no time": (
        {"act": lambda x: x[0]},
        ValueError,
        ["act", "(1, n_envs, ...) = (1, 2)", "got (2,): the first dimension, n_seq, was dropped", "`.unsqueeze(0)`"],
    ),
    "act: a batch too wide": ({"act": lambda x: x.repeat(1, 2)}, ValueError, ["act", "(1, 2)", "got (1, 4)"]),
    "act: batch first": ({"act": lambda x: x.T}, ValueError, ["act", "got (2, 1)", "swapped", ".transpose(0, 1)"]),
    "act: a dimension more": (
        {"act": lambda x: x[..., None]},
        ValueError,
        ["act", "(1, 2)", "got (1, 2, 1): remove the last dimension with `.squeeze(-1)`"],
    ),
    "act: logits": ({"act": lambda x: x[..., None].repeat(1, 1, 3)}, ValueError, ["got (1, 2, 3)", "logits", "drawn"]),
    "act: a large array": (
        {"act": lambda x: np.zeros((500, 3))},
        TypeError,
        ["a tensor, got ndarray of shape (500, 3)."],
    ),
    "act: an array": ({"act": lambda x: x.numpy()}, TypeError, ["act", "tensor", "ndarray"]),
    "act: a dict": ({"act": lambda x: {"a": x}}, TypeError, ["act", "tensor", "dict"]),
    "act: none": ({"act": lambda x: ()}, TypeError, ["act", "tensor", "tuple"]),
    "info: no batch": (
        {"info": lambda x: {"a": [x[0]]}},
        ValueError,
        ["info['a'][0]", "got (2,): the first dimension, n_seq"],
    ),
    "info: a scalar": ({"info": lambda x: x.sum()}, ValueError, ["info", "(1, n_envs, ...)", "got ()"]),
    "info: batch first": (
        {"info": lambda x: x.T},
        ValueError,
        ["info", "n_envs = 2", "got (2, 1): the first two", "swapped"],
    ),
    "info: a number": ({"info": lambda x: {"a": x, "b": 0.5}}, TypeError, ["info['b']", "tensor", "float 0.5"]),
    "info: an array": ({"info": lambda x: [x.numpy()]}, TypeError, ["info[0]", "tensor", "ndarray"]),
    "hx: batch first": ({"hx": lambda x: x.T}, ValueError, ["hx", "(n_layers, n_envs, ...)", "got (2, 1)"]),
    "hx: no layers": ({"hx": lambda x: (x, x[0])}, ValueError, ["hx[1]", "(n_layers, n_envs, ...)", "got (2,)"]),
    "hx: a number": ({"hx": lambda x: 3}, TypeError, ["hx", "tensor", "int 3"]),
    "a pair": (
        {"whole": lambda act, hx, info: (act, {"info": info})},
        TypeError,
        [
            "`step` must return (act, hx, info), got 2 values (Tensor of shape (1, 2), dict): an actor without memory "
            "returns `hx` unchanged."
        ],
    ),
    "an action alone": (
        {"whole": lambda act, hx, info: act},
        TypeError,
        ["`step`", "got Tensor of shape (1, 2): end it with `return act"],
    ),
    "one value": ({"whole": lambda act, hx, info: (act,)}, TypeError, ["got 1 value (Tensor of shape (1, 2)): end it"]),
    "no values": (
        {"whole": lambda act, hx, info: ()},
        TypeError,
        ["got 0 values: end it with `return act, hx, info`."],
    ),
    "nothing": ({"whole": lambda act, hx, info: None}, TypeError, ["`step`", "got None: is a `return` missing?"]),
}


@pytest.mark.parametrize(("parts", "kind", "words"), ANSWERS.values(), ids=ANSWERS)
def test_an_actor_output_of_another_form_than_the_contracts_is_refused(refuses, parts, kind, words):
    refuses(kind, "the actor's", *words, actor=Answers(**parts))


ACTIONS = {
    "Box: shape": (Box(-1, 1, (3,), np.float32), lambda x: x[..., None].float(), ["(1, 2, 3)", "got (1, 2, 1)."]),
    "Box of one: shape": (Box(-1, 1, (1,), np.float32), lambda x: x.float(), ["got (1, 2): add", "`.unsqueeze(-1)`"]),
    "Box of integers: kind": (Box(0, 9, (), np.int64), lambda x: x.float(), ["int64", "float32"]),
    "MultiDiscrete: shape": (MultiDiscrete([2, 2]), lambda x: x, ["(1, 2, 2)", "got (1, 2)"]),
    "Dict: keys": (Dict({"a": Discrete(2), "b": Discrete(2)}), lambda x: {"a": x}, ["action space", "'b'"]),
    "Dict: a tuple": (Dict({"a": Discrete(2)}), lambda x: (x,), ["action space", "dict"]),
    "Dict: leaf": (Dict({"a": Discrete(2)}), lambda x: {"a": x[0]}, ["act['a']", "(1, 2)", "got (2,)"]),
    "Tuple: parts": (Tuple((Discrete(2), Discrete(2))), lambda x: (x,), ["action space", "2"]),
}


@pytest.mark.parametrize(("space", "act", "words"), ACTIONS.values(), ids=ACTIONS)
def test_an_action_that_does_not_fit_its_space_is_refused(refuses, space, act, words):
    class Other(ScriptedEnv):
        action_space = space

    refuses(ValueError, "the actor's", *words, env=Other, actor=Answers(act=act))


class Forgets(BaseActorModule):
    """Returns no recurrent state, from `forward`."""

    def forward(self, obs, *, fin, **ignored):
        return fin.long(), {"value": torch.zeros(fin.shape)}


def test_an_answer_of_many_values_is_told_in_a_few_words():
    with pytest.raises(TypeError, match=r"got 4096 values \(float, .*, and 4088 more\): end it") as caught:
        same.rollout([ScriptedEnv(), ScriptedEnv()], Answers(whole=lambda *parts: [0.5] * 4096), 3)
    assert len(str(caught.value)) < 250


def test_the_method_that_the_user_wrote_is_named(refuses):
    refuses(TypeError, "the actor's `forward` must return (act, hx, info), got 2 values (Tensor of", actor=Forgets())


def test_the_remedy_for_a_shape_is_right_with_one_environment_too(refuses):
    one = [ScriptedEnv()]
    refuses(ValueError, "got (1, 1, 1): remove the last", envs=one, actor=Answers(act=lambda x: x[..., None]))
    refuses(
        ValueError, "(1, 1, 3): are these logits?", envs=one, actor=Answers(act=lambda x: x[..., None].repeat(1, 1, 3))
    )
    refuses(ValueError, "got (1,): the first dimension, n_seq", envs=one, actor=Answers(act=lambda x: x[0]))


def test_actor_outputs_are_checked_in_each_group(refuses):
    def second_group_only(x):
        return x.float() if x.shape[1] == 1 else x

    envs = [ScriptedEnv(), ScriptedEnv(), ScriptedEnv()]
    refuses(ValueError, "act", ".long()", envs=envs, actor=Answers(act=second_group_only), groups=2)


# devices and numbers


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a CUDA device")
@pytest.mark.parametrize("name", ["device", "actor_device"])
def test_a_device_that_is_not_there_is_refused(refuses, name):
    for device in ("cuda", "cuda:0", torch.device("cuda", 3)):
        refuses(ValueError, f"`{name}`", "0 CUDA devices", f"{name}='cpu'", resets=0, **{name: device})


@pytest.mark.parametrize("name", ["device", "actor_device"])
def test_a_device_that_torch_does_not_know_is_refused(refuses, name):
    refuses(ValueError, f"`{name}`", "'gpu'", "'cuda:0'", resets=0, **{name: "gpu"})
    refuses(ValueError, f"`{name}`", "xpu", "not supported", resets=0, **{name: "xpu"})


NUMBERS = {
    "n_steps": (ValueError, 0, ["at least 1", "got 0"]),
    "n_steps: negative": (ValueError, -5, ["at least 1", "got -5"]),
    "n_steps: bool": (TypeError, True, ["integer", "True"]),
    "n_steps: float": (TypeError, 51.0, ["integer", "51.0"]),
    "lag": (ValueError, -1, ["at least 0", "got -1"]),
    "lag: bool": (TypeError, True, ["integer", "True"]),
    "lag: float": (TypeError, 1.0, ["integer", "1.0"]),
    "groups": (ValueError, 0, ["at least 1", "got 0"]),
    "groups: float": (TypeError, 1.0, ["integer", "1.0"]),
    "groups: None": (TypeError, None, ["integer", "None"]),
    "seed": (ValueError, -1, ["at least 0", "got -1"]),
    "seed: float": (TypeError, 0.5, ["integer", "0.5"]),
    "seed: str": (TypeError, "0", ["integer", "'0'"]),
    "sticky: str": (TypeError, "False", ["True or False", "got 'False'"]),
    "final: int": (TypeError, 1, ["True or False", "got 1"]),
    "compile: str": (TypeError, "reduce-overhead", ["True or False", "got 'reduce-overhead'"]),
    "device: float": (ValueError, 1.5, ["torch device such as", "got 1.5"]),
    "device: huge": (ValueError, 10**30, ["torch device such as", "got 1000"]),
    "actor_device: bool": (ValueError, True, ["torch device such as", "got True"]),
    "info: a name": (TypeError, "TimeLimit", ["tuple of names", "info=('TimeLimit',)"]),
    "info: a number": (TypeError, 3, ["tuple of names", "got 3; leave it out for none"]),
    "info: numbers": (TypeError, (1, 2), ["strings", "[1, 2]"]),
    "info: no dtype": (TypeError, {"a": "nonsense"}, ["info['a']", "dtype", "nonsense"]),
    "info: objects": (TypeError, {"a": object}, ["info['a']", "numeric or bool"]),
}


@pytest.mark.parametrize(("name", "kind", "value", "words"), [(n, *case) for n, case in NUMBERS.items()], ids=NUMBERS)
def test_an_argument_out_of_range_is_refused_before_any_environment_is_reset(refuses, name, kind, value, words):
    name = name.split(":")[0]
    refuses(kind, f"`{name}", *words, resets=0, **{name: value})


def test_more_groups_than_environments_are_refused(refuses):
    error = refuses(ValueError, "`groups`", "at most", "2", "got 3", groups=3)
    assert "environment 1" not in str(getattr(error, "__notes__", ""))


@pytest.mark.parametrize("name", ["timeout", "start_timeout"])
@pytest.mark.parametrize("seconds", [0, -1.0, float("nan"), True])
def test_a_timeout_that_is_not_positive_is_refused(name, seconds):
    env = ScriptedEnv()
    with pytest.raises(ValueError, match=f"`{name}` must be a positive number of seconds, got {seconds}"):
        threaded.rollout([env], ScriptedActor(), **{name: seconds})
    assert not env.counts


def test_a_timeout_beyond_all_floats_waits_for_ever():
    with threaded.rollout([ScriptedEnv()], ScriptedActor(), timeout=10**400, start_timeout=10**400) as feed:
        next(feed)


# actors that could not be followed


class Wrapper(nn.Module):
    """Stands for torch's DistributedDataParallel, which needs a process group."""

    def __init__(self, module):
        super().__init__()
        self.module = module


class DistributedDataParallel(Wrapper):
    pass


class Lazy(ScriptedActor):
    def __init__(self):
        super().__init__()
        self.body = nn.LazyLinear(2)


class Nest(ScriptedActor):
    """Has a module inside."""

    def __init__(self, body=None):
        super().__init__()
        self.body = nn.Linear(2, 2) if body is None else body


def compiled_in_place():
    actor = Nest()
    actor.body.forward = torch.compile(actor.body.forward, backend="eager")
    return actor


def with_step_replaced():
    actor = ScriptedActor()
    actor.step = actor.step
    return actor


def with_a_graph():
    actor = ScriptedActor()
    actor.last = actor.weight * 2
    return actor


def with_a_lock():
    actor = ScriptedActor()
    actor.lock = threading.Lock()
    return actor


ACTORS = {
    "no module": (lambda: lambda *args: None, TypeError, ["`actor`", "BaseActorModule", "function"]),
    "another module": (lambda: nn.Linear(2, 2), TypeError, ["`actor`", "BaseActorModule", "Linear"]),
    "a class": (lambda: ScriptedActor, TypeError, ["`actor`", "BaseActorModule"]),
    "lazy": (Lazy, ValueError, ["'body.weight'", "lazy", "call the actor once"]),
    "compiled": (
        lambda: torch.compile(ScriptedActor(), backend="eager"),
        TypeError,
        ["OptimizedModule", "`._orig_mod`"],
    ),
    "a compiled part": (lambda: Nest(torch.compile(nn.Linear(2, 2), backend="eager")), TypeError, ["OptimizedModule"]),
    "data parallel": (lambda: nn.DataParallel(ScriptedActor()), TypeError, ["DataParallel", "`.module`"]),
    "DDP": (
        lambda: DistributedDataParallel(ScriptedActor()),
        TypeError,
        ["DistributedDataParallel", "`.module`", "learner"],
    ),
    "a DDP part": (lambda: Nest(DistributedDataParallel(nn.Linear(2, 2))), TypeError, ["DistributedDataParallel"]),
    "step set on the instance": (with_step_replaced, TypeError, ["`step`", "instance", "outside of it"]),
    "a part's forward compiled": (compiled_in_place, TypeError, ["`forward`", "instance", "outside of it"]),
    "a tensor with a graph": (with_a_graph, TypeError, ["cannot be copied", "deepcopy", "parameters, buffers or"]),
    "a lock": (with_a_lock, TypeError, ["cannot be copied", "deepcopy", "lock", "__deepcopy__"]),
}


@pytest.mark.parametrize(("make", "kind", "words"), ACTORS.values(), ids=ACTORS)
def test_an_actor_that_cannot_be_copied_is_refused_before_any_environment_is_reset(refuses, make, kind, words):
    refuses(kind, "actor", *words, actor=make(), resets=0)


def test_an_actor_on_the_meta_device_is_refused(refuses):
    refuses(ValueError, "meta", actor=Nest().to("meta"), resets=0)
    refuses(ValueError, "'weight'", "meta device", "initialise", actor=Nest().to("meta"), resets=0, device="cpu")


def test_a_module_that_only_has_a_part_called_module_is_no_wrapper(rollout):
    rollout([ScriptedEnv()], Nest(Wrapper(nn.Linear(2, 2))), 2).close()


def test_a_refused_actor_can_be_repaired_and_used(rollout):
    env, actor = ScriptedEnv(), Nest()
    actor.last = actor.weight * 2
    with pytest.raises(TypeError, match="detached"):
        rollout([env], actor, 2)
    actor.last = actor.last.detach()
    with rollout([env], actor, 2) as feed:
        next(feed)


# actors whose methods have another signature


def names(self, stepno, observation, act, rew, fin, /, *, hx, virtual): ...
def order(self, stepno, act, obs, rew, fin, /, *, hx, virtual): ...
def by_keywords(self, stepno, obs, act, rew, fin, *, hx, virtual): ...
def positional(self, stepno, obs, act, rew, fin, /, hx, virtual): ...
def one_less(self, stepno, obs, act, rew, fin, /, *, hx): ...
def one_more(self, stepno, obs, act, rew, fin, /, *, hx, virtual, greedy=False): ...
def anything(self, *args, **kwargs): ...


@pytest.mark.parametrize("step", [names, order, by_keywords, positional, one_less, one_more, anything])
def test_a_step_with_another_signature_is_refused_when_its_class_is_defined(step):
    with pytest.raises(TypeError) as caught:
        type("Wrong", (BaseActorModule,), {"step": step})
    message = str(caught.value)
    assert "Wrong.step" in message
    assert "def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual)" in message
    assert "`/`" in message


def reset_renamed(self, state, at): ...
def reset_reordered(self, at, hx): ...
def reset_by_keyword(self, hx, *, at): ...
def reset_without_at(self, hx): ...


@pytest.mark.parametrize("reset", [reset_renamed, reset_reordered, reset_by_keyword, reset_without_at])
def test_a_reset_with_another_signature_is_refused_when_its_class_is_defined(reset):
    with pytest.raises(TypeError, match=r"Wrong.reset.*expected `def reset\(self, hx, at\)`"):
        type("Wrong", (BaseActorModule,), {"reset": reset})


def test_defaults_and_annotations_of_a_signature_are_free():
    class Right(BaseActorModule):
        def reset(self, hx: object, at: int | None = None) -> object: ...
        def step(self, stepno=0, obs=0, act=0, rew: int = 0, fin=0, /, *, hx=None, virtual=False): ...

    assert Right() is not None


# resets that do not honour a mask


class OneOnly(ScriptedActor):
    """Takes nothing but an integer."""

    def reset(self, hx, at):
        hx = hx.clone()
        hx[:, range(100)[at]] = 0
        return hx


@pytest.mark.parametrize("kind", [ActorWithSlowReset, OneOnly])
def test_a_reset_that_does_not_honour_a_mask_is_warned_about_and_called_with_integers(rollout, kind):
    def collected(actor):
        with rollout([ScriptedEnv(length=length) for length in (2, 3, 6)], actor, 7, seed=0) as feed:
            return [next(feed).actor["hx"] for _ in range(3)]

    lesson = r"reset does not honour a bool mask.*`x = x.clone\(\); x\[:, at\] = 0`"
    with pytest.warns(RuntimeWarning, match=lesson) as caught:
        by_integers = collected(kind())
    assert len(caught) == 1
    assert all(map(torch.equal, by_integers, collected(ScriptedActor())))


# what the call does, and what it does not do


class Samples(ScriptedActor):
    """Draws from torch's global generator, and from NumPy's too."""

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        act, hx, _ = super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)
        return act.random_(0, 2), hx, {"noise": torch.rand(fin.shape)}

    def reset(self, hx, at):
        torch.rand(3)
        return super().reset(hx, at)


@pytest.mark.parametrize("groups", [1, 2])
def test_the_call_resets_each_environment_once_and_tries_the_actor_once_per_group(rollout, groups):
    envs, actor = [ScriptedEnv(), ScriptedEnv(), ScriptedEnv()], ScriptedActor()
    weights = copy.deepcopy(actor.state_dict())
    with rollout(envs, actor, groups=groups):
        assert all(env.counts == {"reset": 1} for env in envs)
        assert (actor.script.counts["look"], actor.script.counts["act"]) == (groups, 0)
    assert all(map(torch.equal, weights.values(), actor.state_dict().values()))


def test_the_call_draws_nothing_from_the_global_generator_when_a_seed_is_given(rollout):
    before = torch.random.get_rng_state()
    with rollout([ScriptedEnv(), ScriptedEnv(), ScriptedEnv()], Samples(), seed=0, groups=2):
        assert torch.equal(torch.random.get_rng_state(), before)


def test_the_call_draws_once_from_the_global_generator_when_no_seed_is_given(rollout):
    torch.manual_seed(1)
    torch.randint(2**63 - 1, ())
    after = torch.random.get_rng_state()
    torch.manual_seed(1)
    with rollout([ScriptedEnv(), ScriptedEnv(), ScriptedEnv()], Samples(), groups=2):
        assert torch.equal(torch.random.get_rng_state(), after)


class Draws(ScriptedActor):
    """Draws from the generator that it is given."""

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        act, hx, _ = super().step(stepno, obs, act, rew, fin, hx=hx, virtual=virtual)
        return act.random_(0, 2, generator=self.generator), hx, ()


class Seeded(ScriptedEnv):
    def reset(self, *, seed=None):
        obs, info = super().reset()
        if seed is not None:
            self.first = np.random.default_rng(seed).random(2, np.float32)
        return (self.first if seed is not None else obs), info


def test_the_global_seed_repeats_runs_and_so_does_the_seed_argument(rollout):
    def run(n, **arguments):
        torch.manual_seed(n)
        with rollout([Seeded(), Seeded()], Draws(), 20, **arguments) as feed:
            state = next(feed).state
        return state.obs[0].tolist(), state.act.tolist()

    assert run(1) == run(1)
    assert run(1, seed=3) == run(2, seed=3)
    runs = [run(1), run(2), run(1, seed=3), run(1, seed=4)]
    for part in range(2):
        assert len({repr(one[part]) for one in runs}) == 4


def test_a_refused_call_leaves_an_older_feed_alone(rollout):
    env = ScriptedEnv()
    with rollout([env, ScriptedEnv()], ScriptedActor(), 5) as older:
        next(older)
        for wrong in ({"lag": -1}, {"info": "a"}, {"device": "gpu"}, {"actor": nn.Linear(1, 1)}):
            with pytest.raises((TypeError, ValueError)):
                partial(rollout, [env])(**({"actor": ScriptedActor()} | wrong))
        next(older)
