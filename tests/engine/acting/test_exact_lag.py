"""Whatever an actor is made of, fragment ``k`` has the weights of ask ``max(0, k - lag)``, or the actor is refused."""

from __future__ import annotations

import collections
import functools
import types
import weakref

import gymnasium.spaces
import pytest
import torch
from hypothesis import Phase, given, settings
from hypothesis import strategies as st
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, single, threaded
from rlplay.testing import make_ledger

N_FRAGMENTS = 4


class Head(nn.Module):
    def __init__(self, start):
        super().__init__()
        self.w = nn.Parameter(torch.full((1,), float(start)))

    def forward(self, x):
        return x * self.w


class Source(nn.Module):
    """Adds to what the parametrized weight is; holds a getter."""

    def __init__(self, get):
        super().__init__()
        self.get = get

    def forward(self, x):
        return x + self.get()


class Object:
    def __init__(self, held):
        self.held = held

    def get(self):
        return self.held()


# Getters: each takes the actor and the name of one of its weights, and makes a function without arguments, or an
# object that can be called like one, which returns the weight.

GETTERS = {
    "closure": lambda actor, name: lambda: getattr(actor, name).w,
    "closure over the module": lambda actor, name: (lambda head: lambda: head.w)(getattr(actor, name)),
    "closure over the weight": lambda actor, name: (lambda w: lambda: w)(getattr(actor, name).w),
    "default": lambda actor, name: lambda head=getattr(actor, name): head.w,  # noqa: B008
    "partial": lambda actor, name: functools.partial(getattr, getattr(actor, name), "w"),
    "bound method": lambda actor, name: functools.partial(getattr(actor, name).forward, torch.ones(1)),
    "bound function": lambda actor, name: types.MethodType(lambda head: head.w, getattr(actor, name)),
    "weak reference": lambda actor, name: (lambda ref: lambda: ref().w)(weakref.ref(getattr(actor, name))),
    "proxy": lambda actor, name: (lambda proxy: lambda: proxy.w)(weakref.proxy(getattr(actor, name))),
    "weak dict": lambda actor, name: functools.partial(
        lambda known: known["it"].w, weakref.WeakValueDictionary(it=getattr(actor, name))
    ),
    "weak set": lambda actor, name: (lambda known: lambda: next(iter(known)).w)(
        weakref.WeakSet([getattr(actor, name)])
    ),
    "view": lambda actor, name: (lambda view: lambda: view)(getattr(actor, name).w.detach().view(1)),
    "view in a partial": lambda actor, name: functools.partial(torch.clone, getattr(actor, name).w.data[:]),
    "a class made here": lambda actor, name: type("Local", (), {"__call__": lambda self: getattr(actor, name).w})(),
}

# Wrappers: each takes the actor and a getter, keeps the getter somehow, and returns another getter.


def in_dict(actor, get):
    return functools.partial(lambda table: table["get"](), {"get": get})


def in_list(actor, get):
    return (lambda held: lambda: held[0][0]())([(get,)])


def in_named_tuple(actor, get):
    return (lambda held: lambda: held.get())(collections.namedtuple("Holder", "get")(get))


def in_object(actor, get):
    return Object(get).get


def in_closure(actor, get):
    def call():
        return get()

    return call


def in_hook(actor, get):
    body = nn.Identity()
    body.register_forward_hook(lambda module, inputs, output: output * get())
    actor.bodies.append(body)
    return functools.partial(body, torch.ones(1))


def in_parametrization(actor, get):
    layer = nn.Linear(1, 1, bias=False).requires_grad_(False)
    nn.init.zeros_(layer.weight)
    nn.utils.parametrize.register_parametrization(layer, "weight", Source(get), unsafe=True)
    actor.bodies.append(layer)
    return lambda: layer(torch.ones(1))


def in_attribute(actor, get):
    def call():
        return call.get()

    call.get = get
    return call


WRAPPERS = [in_dict, in_list, in_named_tuple, in_object, in_closure, in_hook, in_parametrization, in_attribute]


class Actor(BaseActorModule):
    """Reports the sum of what its getters return. Weights may be tied or used as a buffer's memory."""

    def __init__(self, spec):
        super().__init__()
        getters, tied, as_buffer = spec
        self.bodies = nn.ModuleList()
        self.a, self.b = Head(1), Head(10)
        if tied:
            self.b.w = self.a.w
        if as_buffer:
            self.register_buffer("memory", self.a.w.detach().view(1))
        self.getters = []
        for name, getter, wrappers in getters:
            get = GETTERS[getter](self, name)
            for wrap in wrappers:
                get = wrap(self, get)
            self.getters.append(get)

    def forward(self, obs, *, fin, hx=None, **ignored):
        value = sum(get().detach().reshape(()) for get in self.getters)
        return torch.zeros(fin.shape, dtype=torch.int64), (), {"value": value.expand(fin.shape).clone()}


CANNOT_BE_SENT = {"weak reference", "proxy", "weak dict", "weak set", "a class made here"}


def specs(getters, wrappers):
    """Draw what an Actor is made of: its getters, and whether its weights are tied, or are a buffer's memory."""
    getter = st.tuples(st.sampled_from("ab"), st.sampled_from(getters), st.lists(st.sampled_from(wrappers), max_size=3))
    return st.tuples(st.lists(getter, min_size=1, max_size=3), st.booleans(), st.booleans())


def value_of(actor):
    return actor(None, fin=torch.zeros(1, 1))[2]["value"].item()


def check(engine, spec, lag):
    actor = Actor(spec)
    try:
        if engine is single:
            feed = single.rollout(functools.partial(make_ledger, gymnasium.spaces, 0), actor, 3, 2, lag=lag, seed=0)
        else:
            feed = engine.rollout([make_ledger(gymnasium.spaces, j) for j in range(2)], actor, 3, lag=lag, seed=0)
    except TypeError:
        if not any(getter == "a class made here" for _, getter, _ in spec[0]):
            raise
        return
    values = []
    with feed:
        for k in range(N_FRAGMENTS):
            values.append(value_of(actor))
            shown = next(feed).actor["value"]
            assert (shown == values[max(0, k - lag)]).all(), (k, values, shown)
            with torch.no_grad():
                actor.a.w += 1
                if actor.b.w is not actor.a.w:
                    actor.b.w += 100
    assert len(set(values)) == N_FRAGMENTS


@pytest.mark.parametrize("engine", [same, threaded])
@given(spec=specs(list(GETTERS), WRAPPERS), lag=st.integers(0, 2))
@settings(max_examples=60, deadline=None)
def test_every_fragment_is_collected_by_the_weights_of_its_ask(engine, spec, lag):
    check(engine, spec, lag)


@given(
    spec=specs(
        [getter for getter in GETTERS if getter not in CANNOT_BE_SENT],
        [wrapper for wrapper in WRAPPERS if wrapper is not in_parametrization],
    ),
    lag=st.integers(0, 1),
)
@settings(max_examples=3, deadline=None, phases=[Phase.generate])
def test_so_it_is_in_another_process(spec, lag):
    check(single, spec, lag)
