"""Actors that are refused at the call: arguments of ``forward``, modules of TorchScript, changes in place, others."""

from __future__ import annotations

import functools
import inspect
import traceback

import gym
import numpy as np
import pytest
import torch
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.testing import LedgerEnv


def env():
    return LedgerEnv(gym.spaces)


ENGINES = {
    "same": lambda actor: same.rollout([env()], actor, 3),
    "threaded": lambda actor: threaded.rollout([env()], actor, 3),
    "compiled": lambda actor: same.rollout([env()], actor, 3, compile=True),
    "single": lambda actor: single.rollout(env, actor, 3, 1),
    "episodic": lambda actor: episodic.rollout([env()], actor),
    "evaluate": lambda actor: evaluate([env()], actor),
}


def zeros(fin):
    return fin.long(), (), {}


class ObsOnly(BaseActorModule):
    def forward(self, obs):
        return zeros(obs[..., 0] < -1)


class NoHx(BaseActorModule):
    def forward(self, obs, *, act, rew, fin, stepno, virtual):
        return zeros(fin)


class FinFirst(BaseActorModule):
    def forward(self, obs, fin, hx=None):
        return zeros(fin)


class OtherWord(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, is_virtual=False, **ignored):
        return zeros(fin)


class PositionalOnly(BaseActorModule):
    def forward(self, obs, act, rew, fin, stepno, hx, virtual, /):
        return zeros(fin)


class NeedsMask(BaseActorModule):
    def forward(self, obs, *, mask, fin, **ignored):
        return zeros(fin)


class ObsByName(BaseActorModule):
    def forward(self, *, obs, fin, **ignored):
        return zeros(fin)


class Inherits(NoHx):
    pass


def logged(function):
    @functools.wraps(function)
    def logging(self, obs, **given):
        return function(self, obs, **given)

    return logging


class Decorated(BaseActorModule):
    @logged
    def forward(self, obs, *, fin):
        return zeros(fin)


MISFITS = {
    ObsOnly: ["ObsOnly.forward(self, obs)", "`act`, `rew`, `fin`, `stepno`, `hx`, `virtual`", "`**ignored`"],
    NoHx: ["NoHx.forward", "does not take `hx`:", "`**ignored`"],
    FinFirst: ["does not take `act`, `rew`, `stepno`, `virtual`:", "`**ignored`"],
    Inherits: ["Inherits.forward", "does not take `hx`:", "`**ignored`"],
    PositionalOnly: ["PositionalOnly.forward", "`act`, `rew`, `fin`", "`**ignored`"],
    NeedsMask: ["NeedsMask.forward", "'mask'", "give it those parameters"],
    ObsByName: ["ObsByName.forward", "too many positional", "give it those parameters"],
}


@pytest.mark.parametrize(("kind", "words"), MISFITS.items(), ids=[kind.__name__ for kind in MISFITS])
def test_a_forward_that_does_not_take_what_it_is_called_with_is_refused_with_the_remedy(kind, words):
    with pytest.raises(TypeError) as caught:
        same.rollout([env()], kind(), 3)
    message = str(caught.value)
    assert [word for word in words if word not in message] == [], message
    line = inspect.getsourcelines(kind.forward)[1]
    assert f"line {line} of {__file__}" in message


@pytest.mark.parametrize("open_feed", ENGINES.values(), ids=ENGINES)
def test_every_engine_tells_it_at_the_users_line(open_feed):
    with pytest.raises(TypeError, match=r"does not take `hx`: end its parameters with `\*\*ignored`") as caught:
        open_feed(NoHx())
    assert __file__ in {frame.filename for frame in traceback.extract_tb(caught.value.__traceback__)}


class FailsInside(BaseActorModule):
    def forward(self, obs):
        return zeros(torch.ones(1) + "1")


class CallsPartWrongly(BaseActorModule):
    """The error is that of a part, whose ``forward`` is not the actor's."""

    def __init__(self):
        super().__init__()
        self.part = nn.Linear(2, 2)

    def forward(self, obs, *, fin, **ignored):
        self.part(obs, hx=None)


class StripsKeywords(BaseActorModule):
    """A hook takes the keywords away that ``forward`` does not know: it works."""

    def __init__(self, error=False):
        super().__init__()
        self.error = error
        self.register_forward_pre_hook(keep_fin, with_kwargs=True)

    def forward(self, obs, *, fin):
        return (fin.long() + "1" if self.error else fin.long()), (), {}


def keep_fin(module, args, kwargs):
    return args, {"fin": kwargs["fin"]}


class OwnStep(BaseActorModule):
    """It has a ``step`` of its own, which calls ``forward`` in a way of its own."""

    def forward(self, obs):
        return zeros(obs[..., 0] < -1)

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        return self(obs, wrong=1)


OTHERS = {
    CallsPartWrongly: r"Linear\.forward\(\) got an unexpected keyword argument 'hx'",
    OwnStep: r"unexpected keyword argument 'wrong'",
    Decorated: r"forward\(\) got an unexpected keyword argument 'act'",
}


@pytest.mark.parametrize(("kind", "message"), OTHERS.items(), ids=[kind.__name__ for kind in OTHERS])
def test_type_errors_of_other_calls_stay_as_they_are(kind, message):
    with pytest.raises(TypeError, match=message) as caught:
        same.rollout([env()], kind(), 3)
    assert "ignored" not in str(caught.value)


def test_a_hook_may_take_away_keywords_that_forward_does_not_know():
    with same.rollout([env()], StripsKeywords(), 3) as feed:
        next(feed)
    with pytest.raises(TypeError, match=r"unsupported operand|must be") as caught:
        same.rollout([env()], StripsKeywords(error=True), 3)
    assert "ignored" not in str(caught.value)


class Holds(BaseActorModule):
    def __init__(self, part):
        super().__init__()
        self.parts = nn.ModuleList([nn.Linear(2, 2), part])

    def forward(self, obs, *, fin, **ignored):
        return zeros(fin)


class Tiny(nn.Module):
    def forward(self, x):
        return x + 1


@pytest.mark.parametrize("open_feed", [ENGINES[name] for name in ("same", "threaded", "single", "evaluate")])
@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")
def test_modules_of_torchscript_are_refused_with_the_reason(open_feed):
    parts = [
        torch.jit.script(nn.Linear(2, 2)),
        torch.jit.trace(nn.Linear(2, 2), torch.ones(1, 2)),
        torch.jit.script(Tiny()),
        torch.jit.freeze(torch.jit.script(nn.Linear(2, 2)).eval()),
    ]
    for part in parts:
        with pytest.raises(TypeError, match=r"in `parts\.1` a TorchScript module.*outside of Python.*compile=True"):
            open_feed(Holds(part))
    with pytest.raises(TypeError, match=r"in `parts\.1\.1` a TorchScript module"):
        open_feed(Holds(nn.Sequential(nn.Linear(2, 2), parts[0])))
    with pytest.raises(TypeError, match="the actor is a TorchScript module"):
        open_feed(parts[0])


class Keeps(BaseActorModule):
    def __init__(self, buffer):
        super().__init__()
        self.register_buffer("table", buffer)

    def forward(self, obs, *, fin, **ignored):
        return zeros(fin)


@pytest.mark.filterwarnings("ignore:Sparse CSR:UserWarning")
@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("sparse", [torch.Tensor.to_sparse, torch.Tensor.to_sparse_csr])
def test_sparse_buffers_are_refused(engine, sparse):
    with pytest.raises(ValueError, match=r"the actor's 'table' is no dense tensor, but torch\.sparse_.*`to_dense\(\)`"):
        ENGINES[engine](Keeps(sparse(torch.eye(3))))


@pytest.mark.filterwarnings("ignore:torch.quantize_per_tensor:UserWarning")
@pytest.mark.skipif(not hasattr(torch, "quantize_per_tensor"), reason="this version of torch has no such tensors")
@pytest.mark.parametrize("engine", ENGINES)
def test_quantized_buffers_are_refused(engine):
    buffer = torch.quantize_per_tensor(torch.eye(3), 0.1, 0, torch.qint8)
    with pytest.raises(ValueError, match=r"the actor's 'table' is quantized \(torch\.qint8\).*`int_repr\(\)`"):
        ENGINES[engine](Keeps(buffer))


@pytest.mark.parametrize("engine", ENGINES)
def test_expanded_buffers_are_refused(engine):
    with pytest.raises(ValueError, match=r"the actor's 'table' .*several of its elements in one place.*`clone\(\)`"):
        ENGINES[engine](Keeps(torch.ones(1, 3).expand(4, 3)))


@pytest.mark.parametrize("buffer", [torch.ones(1, 3).expand(1, 3), torch.ones(0, 1).expand(0, 3), torch.ones(2, 3).T])
def test_buffers_in_other_orders_are_taken(buffer):
    with same.rollout([env()], Keeps(buffer), 3) as feed:
        next(feed)


class NamesItGenerator(BaseActorModule):
    def __init__(self, generator):
        super().__init__()
        self.generator = generator

    def forward(self, obs, *, fin, **ignored):
        return zeros(fin)


@pytest.mark.parametrize("engine", ENGINES)
@pytest.mark.parametrize("generator", [nn.Linear(2, 2), np.random.default_rng(0)], ids=["module", "NumPy"])
def test_an_attribute_generator_that_is_none_of_torch_is_refused(engine, generator):
    with pytest.raises(TypeError, match=r"`generator` is .*the name of the random generator.*another name"):
        ENGINES[engine](NamesItGenerator(generator))


@pytest.mark.parametrize("generator", [None, torch.Generator()], ids=["none", "torch"])
def test_a_generator_of_torch_is_taken(generator):
    with same.rollout([env()], NamesItGenerator(generator), 3) as feed:
        next(feed)


class ScalesInPlace(BaseActorModule):
    def forward(self, obs, *, fin, **ignored):
        x = obs["vector"].float()
        x /= 255
        return zeros(fin)


class ClampsInPlace(BaseActorModule):
    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        rew.clamp_(-1, 1)
        return zeros(fin)


@pytest.mark.parametrize(
    ("kind", "form", "name"), [(ScalesInPlace, "dict", r"obs\['vector'\]"), (ClampsInPlace, "vector", "rew")]
)
def test_an_actor_that_changes_its_inputs_in_place_is_refused(kind, form, name):
    envs = [LedgerEnv(gym.spaces, form=form)]
    with pytest.raises(ValueError, match=rf"changes its input `{name}` in place.* new tensor, as by `x = x / 255`"):
        threaded.rollout(envs, kind(), 3)
    with pytest.raises(ValueError, match=rf"changes its input `{name}` in place"):
        evaluate(envs, kind())


class TakesPlainGenerators(BaseActorModule):
    """Cannot draw from generators of a derived class, as code under `torch.compile` cannot."""

    def forward(self, obs, *, fin, **ignored):
        if type(self.generator) is not torch.Generator:
            raise TypeError("not a plain generator")
        return zeros(fin)


@pytest.mark.parametrize("engine", ENGINES)
def test_an_actor_that_cannot_draw_from_the_generator_of_the_copy_fails_at_the_call(engine):
    with pytest.raises(TypeError, match="not a plain generator"):
        ENGINES[engine](TakesPlainGenerators())
