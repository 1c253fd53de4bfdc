"""The behaviour copy reaches nothing of the learner's actor: each reference is followed into the copy, or refused."""

from __future__ import annotations

import collections
import copy
import functools
import threading
import types
import weakref

import numpy as np
import pytest
import torch
from torch import nn

from rlplay.engine import BaseActorModule
from rlplay.engine.acting.copying.copy_actor import copy_actor
from rlplay.engine.rollout import same
from tests.support.collecting import ledgers

CPU = torch.device("cpu")


class Head(nn.Module):
    def __init__(self):
        super().__init__()
        self.w = nn.Parameter(torch.zeros(1))
        self.register_buffer("b", torch.zeros(1))

    def forward(self, x):
        return x * (self.w + self.b)


class Actor(BaseActorModule):
    """Its value is its one weight."""

    def __init__(self, build):
        super().__init__()
        self.head = Head()
        self.value = build(self)

    def forward(self, obs, *, fin, hx=None, **ignored):
        value = self.value(self, torch.ones(1))
        return torch.zeros_like(fin, dtype=torch.int64), (), {"value": value.detach().expand(fin.shape).clone()}


def value_of(actor):
    return actor(None, fin=torch.zeros(1, 1))[2]["value"].item()


def shift(actor, by):
    with torch.no_grad():
        actor.head.w += by


class Bare:
    """Holds what it is given."""

    def __init__(self, **held):
        vars(self).update(held)

    def __call__(self, x):
        return self.head(x)


class Slotted:
    __slots__ = ("call",)

    def __init__(self, call):
        self.call = call


class Shallow(Bare):
    """Its copy holds the very list of the original."""

    def __deepcopy__(self, memo):
        return Shallow(items=self.items)


class Itself(Bare):
    def __deepcopy__(self, memo):
        return self


class Forgetful(Bare):
    def __deepcopy__(self, memo):
        return Forgetful(head=copy.deepcopy(self.head))


class ItselfModule(Head):
    def __deepcopy__(self, memo):
        return self


Pair = collections.namedtuple("Pair", "first second")


def stored(make, use):
    """Keep something in the attribute `kept`, and use it."""

    def build(actor):
        actor.kept = make(actor)
        return lambda actor, x: use(actor.kept, x)

    return build


def hooked(actor):
    actor.body = nn.Identity()
    actor.body.register_forward_hook(lambda module, inputs, output: actor.head(output))
    return lambda actor, x: actor.body(x)


def hooked_before(actor):
    actor.body = nn.Identity()
    actor.handle = actor.body.register_forward_pre_hook(
        functools.partial(lambda head, *args: head(args[1][0]), actor.head)
    )
    return lambda actor, x: actor.body(x)


def deeper(actor):
    def outer():
        table = {"head": [actor.head]}
        return lambda x: table["head"][0](x)

    return outer()


def recursive(actor):
    def down(x, n=3):
        return actor.head(x) if n == 0 else down(x, n - 1)

    return down


def with_attribute(actor):
    def f(x):
        return f.head(x)

    f.head = actor.head
    return f


def two_that_share_a_variable(actor):
    head = None

    def fill():
        nonlocal head
        head = actor.head

    fill()
    return Pair(lambda x: head(x), fill)


def parametrized(actor):
    class Plus(nn.Module):
        def __init__(self):
            super().__init__()
            self.use = lambda x: x + actor.head.w

        def forward(self, x):
            return self.use(x)

    actor.layer = nn.Linear(1, 1, bias=False)
    nn.init.zeros_(actor.layer.weight)
    nn.utils.parametrize.register_parametrization(actor.layer, "weight", Plus())
    return lambda actor, x: actor.layer(x)


def weak_key(actor):
    return weakref.WeakKeyDictionary({actor.head: 1})


def locked(actor):
    return Bare(head=actor.head, lock=threading.Lock())


call = lambda kept, x: kept(x)  # noqa: E731
FOLLOWED = {
    "a closure": stored(lambda actor: lambda x: actor.head(x), call),
    "one in a dict": stored(lambda actor: {"f": lambda x: actor.head(x)}, lambda kept, x: kept["f"](x)),
    "one in a tuple in a list": stored(lambda actor: [(lambda x: actor.head(x),)], lambda kept, x: kept[0][0](x)),
    "one in a named tuple": stored(lambda actor: Pair(lambda x: actor.head(x), 2), lambda kept, x: kept.first(x)),
    "one in a deque": stored(lambda actor: collections.deque([lambda x: actor.head(x)]), lambda kept, x: kept[0](x)),
    "one in a set": stored(lambda actor: {lambda x: actor.head(x)}, lambda kept, x: next(iter(kept))(x)),
    "one in a frozenset": stored(
        lambda actor: frozenset([lambda x: actor.head(x)]), lambda kept, x: next(iter(kept))(x)
    ),
    "one in slots": stored(lambda actor: Slotted(lambda x: actor.head(x)), lambda kept, x: kept.call(x)),
    "one that is a key": stored(lambda actor: {(lambda x: actor.head(x)): 1}, lambda kept, x: next(iter(kept))(x)),
    "a factory": stored(lambda actor: collections.defaultdict(lambda: actor.head), lambda kept, x: kept["new"](x)),
    "a default": stored(lambda actor: lambda x, head=actor.head: head(x), call),
    "a keyword's default": stored(lambda actor: lambda x, *, weight=actor.head.w: x * weight, call),
    "a partial": stored(lambda actor: functools.partial(lambda head, x: head(x), actor.head), call),
    "a partial of a closure": stored(lambda actor: functools.partial(lambda x: actor.head(x)), call),
    "a partial of a partial": stored(
        lambda actor: [functools.partial(functools.partial(lambda x: actor.head(x)))], lambda kept, x: kept[0](x)
    ),
    "one closure deeper": stored(lambda actor: (lambda inner: lambda x: inner(x))(lambda x: actor.head(x)), call),
    "containers in a closure": stored(deeper, call),
    "an object in a closure": stored(lambda actor: (lambda held: lambda x: held(x))(Bare(head=actor.head)), call),
    "recursion": stored(recursive, call),
    "a function's attribute": stored(with_attribute, call),
    "functions that share a variable": stored(two_that_share_a_variable, lambda kept, x: kept.first(x)),
    "a bound method": stored(lambda actor: {"f": actor.head.forward}, lambda kept, x: kept["f"](x)),
    "a bound method of another object": stored(lambda actor: Bare(head=actor.head).__call__, call),
    "a closure bound to an object": stored(lambda actor: types.MethodType(lambda own, x: actor.head(x), Bare()), call),
    "a built-in method": stored(lambda actor: [actor.head].__getitem__, lambda kept, x: kept(0)(x)),
    "a built-in method in a closure": stored(
        lambda actor: (lambda get: lambda x: get(0)(x))([actor.head].copy().__getitem__), call
    ),
    "a wrapped function": stored(lambda actor: torch.no_grad()(lambda x: actor.head(x)), call),
    "a weak reference": stored(lambda actor: weakref.ref(actor.head), lambda kept, x: kept()(x)),
    "one to the actor in a list": stored(lambda actor: [weakref.ref(actor)], lambda kept, x: kept[0]().head(x)),
    "a weak method": stored(lambda actor: weakref.WeakMethod(actor.head.forward), lambda kept, x: kept()(x)),
    "a proxy": stored(lambda actor: [weakref.proxy(actor)], lambda kept, x: kept[0].head(x)),
    "a proxy in a closure": stored(lambda actor: (lambda other: lambda x: other.head(x))(weakref.proxy(actor)), call),
    "weak values": stored(lambda actor: weakref.WeakValueDictionary(a=actor.head), lambda kept, x: kept["a"](x)),
    "weak keys": stored(weak_key, lambda kept, x: next(iter(kept))(x)),
    "a weak set": stored(lambda actor: weakref.WeakSet([actor.head]), lambda kept, x: next(iter(kept))(x)),
    "a kept view": stored(lambda actor: actor.head.w.detach().view(1), lambda kept, x: x * kept),
    "a kept view with a gradient": stored(lambda actor: actor.head.w.view(1, 1), lambda kept, x: x * kept),
    "a kept view in a closure": stored(lambda actor: (lambda view: lambda x: x * view)(actor.head.w.detach()[:]), call),
    "the data": stored(lambda actor: {"d": actor.head.w.data}, lambda kept, x: x * kept["d"]),
    "an array": stored(
        lambda actor: actor.head.w.detach().numpy()[::-1], lambda kept, x: x * torch.tensor(kept.copy())
    ),
    "a hook": hooked,
    "a hook before": hooked_before,
    "a parametrization": parametrized,
}


def both(build):
    actor = Actor(build)
    assert value_of(actor) == 0
    shift(actor, 1)
    assert value_of(actor) == 1, "the example is wrong: the actor does not use its weight"
    try:
        return actor, copy_actor(actor, CPU).module
    finally:
        assert value_of(actor) == 1


@pytest.mark.parametrize("form", FOLLOWED)
def test_the_copy_uses_its_own_weights_and_the_actor_its_own(form):
    actor, copied = both(FOLLOWED[form])
    shift(actor, 1)
    assert (value_of(actor), value_of(copied)) == (2, 1)
    shift(copied, 10)
    assert (value_of(actor), value_of(copied)) == (2, 11)


@pytest.mark.parametrize("form", [form for form in FOLLOWED if form != "an array"])
def test_so_does_a_copy_of_the_copy(form):
    _, copied = both(FOLLOWED[form])
    twin = copy_actor(copied, CPU).module
    shift(copied, 1)
    assert (value_of(copied), value_of(twin)) == (2, 1)
    shift(twin, 10)
    assert (value_of(copied), value_of(twin)) == (2, 11)


def local_class(actor):
    class Local:
        def __call__(self, x):
            return actor.head(x)

    return Local()


def class_attribute(actor):
    class Local:
        def __call__(self, x):
            return self.shared(x)

    Local.shared = actor.head
    return Local()


def by_name(actor):
    class Local:
        shared = (actor.head,)

        def __call__(self, x):
            return getattr(self, "shared")[0](x)  # noqa: B009

    return Local()


def own_module(actor):
    actor.head = ItselfModule()
    return None


def global_one(actor):
    globals()["the_actor"] = actor
    return lambda x: the_actor.head(x)  # noqa: F821


def global_view(actor):
    globals()["the_view"] = actor.head.w.detach()
    return lambda x: helper(x)


def helper(x):
    return x * the_view  # noqa: F821


def module_with(**variables):
    module = types.ModuleType("nets")
    vars(module).update(variables)
    globals()["nets"] = module
    return module


def of_a_module(actor):
    module_with(heads={"value": actor.head})
    return lambda x: nets.heads["value"](x)  # noqa: F821


def of_a_module_in_a_module(actor):
    module_with(inner=module_with(head=actor.head))
    return lambda x: nets.inner.head(x)  # noqa: F821


def running(actor):
    def generate():
        while True:
            yield actor.head

    generator = generate()
    return lambda x: next(generator)(x)


def cached(actor):
    return functools.lru_cache(lambda x: actor.head(x))


REFUSED = {
    "a class made in a function": (
        stored(local_class, call),
        r"__class__\.__call__` is a function .* the actor itself",
    ),
    "a class attribute": (stored(class_attribute, call), r"`actor\.kept\.__class__\.shared`.*`actor\.head`"),
    "a class attribute by getattr": (stored(by_name, call), r"shared\[0\]`.*`actor\.head`"),
    "a global": (
        stored(global_one, call),
        r"`actor\.kept` is a function .* the actor itself by its variable `the_actor`",
    ),
    "a global's view, by another function": (stored(global_view, call), r"helper > the_view"),
    "what a module has": (stored(of_a_module, call), r"variable `nets\.heads|kept > nets\.heads"),
    "what a module in a module has": (stored(of_a_module_in_a_module, call), r"nets\.inner\.head"),
    "a __deepcopy__ that returns the original": (
        stored(lambda actor: Itself(head=actor.head), call),
        r"`actor\.kept\.head`",
    ),
    "a module with such a __deepcopy__": (stored(own_module, lambda kept, x: x), r"`actor\.head`"),
    "a __deepcopy__ without memo": (
        stored(lambda actor: Forgetful(head=actor.head), call),
        r"kept\.head.*copy\.deepcopy\(part, memo\)",
    ),
    "what cannot be copied": (
        stored(lambda actor: (lambda held: lambda x: held(x))(locked(actor)), call),
        r"`held\.head`",
    ),
    "a generator": (stored(running, call), r"`actor\.kept` is a function .*`generator"),
    "a cache": (stored(cached, call), r"`actor\.kept.*the actor itself"),
    "a list that a __deepcopy__ shares": (
        stored(lambda actor: Shallow(items=[actor.head]), lambda kept, x: kept.items[0](x)),
        r"`actor\.kept\.items",
    ),
}


@pytest.mark.parametrize("form", REFUSED)
def test_what_cannot_be_followed_is_refused_with_its_path(form):
    build, message = REFUSED[form]
    actor = Actor(lambda actor: build(actor))
    before = dict(vars(actor))
    with pytest.raises(TypeError, match=message):
        copy_actor(actor, CPU)
    assert vars(actor) == before


class Registered(Actor):
    everyone = []  # noqa: RUF012
    latest = None

    def __init__(self):
        super().__init__(lambda actor: lambda actor, x: actor.head(x))
        Registered.everyone.append(self)
        Registered.latest = self
        self.table = TABLE

    def report(self):
        return [actor.head for actor in Registered.everyone]


TABLE = {"gamma": 0.5}


def test_globals_and_class_attributes_that_no_step_uses_do_no_harm():
    globals()["some_actor"] = actor = Registered()
    copied = copy_actor(actor, CPU).module
    assert copied.table is not TABLE
    assert type(copied) is Registered


def test_an_attribute_may_have_the_name_of_a_global_variable():
    """As in a notebook whose variables `actor` and `head` are the actor and a part of it, and `self.head` is used."""
    actor = Actor(lambda actor: lambda actor, x: actor.head(x) + actor.kept_number)
    actor.kept_number = 0
    globals()["head"], globals()["kept_number"] = actor.head, actor
    module_with(head=actor.head, other=lambda x: x)
    actor.rule = lambda x: nets.other(actor.head(x))  # noqa: F821
    copied = copy_actor(actor, CPU).module
    shift(copied, 3)
    assert (value_of(actor), value_of(copied)) == (0, 3)


def test_functions_of_modules_and_shared_classes_stay_the_very_same():
    actor = Actor(lambda actor: lambda actor, x: actor.head(x))
    actor.functions = [torch.relu, helper_without_state, Bare, nn.functional.relu]
    assert copy_actor(actor, CPU).module.functions == actor.functions


def helper_without_state(x):
    return x


def test_variables_of_local_functions_are_copied_as_sending_them_would_copy_them():
    counts, table, array = [0], torch.zeros(1), np.zeros(1)
    n = 0

    def count():
        nonlocal n
        n += 1
        counts[0] += 1
        table.add_(1)
        array[0] += 1
        return n, counts[0], table.item(), array[0]

    actor = Actor(lambda actor: lambda actor, x: actor.head(x))
    actor.count = count
    copied = copy_actor(actor, CPU).module
    assert [copied.count(), copied.count()] == [(1, 1, 1.0, 1.0), (2, 2, 2.0, 2.0)]
    assert actor.count() == (1, 1, 1.0, 1.0)


def test_a_view_that_no_longer_belongs_to_its_parameter_is_refused_at_the_next_snapshot():
    actor = Actor(FOLLOWED["a kept view"])
    with same.rollout(ledgers(), actor, 3) as feed:
        next(feed)
        before = actor.head.w.data
        actor.head.w.data = torch.ones(1)
        with pytest.raises(ValueError, match=r"`actor\.kept` shared its memory with the actor's 'head\.w'"):
            next(feed)
        actor.head.w.data = before
        shift(actor, 3)
        assert (next(feed).actor["value"] == 3).all()


def test_weights_that_share_memory_do_so_in_the_copy():
    actor = Actor(lambda actor: lambda actor, x: actor.head(x) * actor.tied)
    actor.register_buffer("tied", actor.head.w.detach().view(1))
    copied = copy_actor(actor, CPU).module
    shift(copied, 3)
    assert value_of(copied) == 9
    assert actor.tied == 0


def test_a_method_whose_cache_refers_to_the_actor_is_refused_with_a_remedy_that_fits():
    class Caches(Actor):
        @functools.cache  # noqa: B019
        def table(self, n):
            return torch.zeros(n)

        def forward(self, obs, **given):
            self.table(3)
            return super().forward(obs, **given)

    actor = Caches(lambda actor: lambda actor, x: actor.head(x))
    actor.table(3)
    with pytest.raises(TypeError, match=r"`actor\.__class__\.table` has a cache of functools.*`cache_clear\(\)`"):
        copy_actor(actor, CPU)
    Caches.table.cache_clear()
    copy_actor(actor, CPU)


@pytest.mark.filterwarnings("ignore:.*weight_norm:FutureWarning")
@pytest.mark.parametrize("name", ["weight_norm", "spectral_norm"])
def test_old_hooks_that_replace_a_weight_are_refused_with_what_to_use_instead(name):
    actor = Actor(lambda actor: lambda actor, x: actor.head(x))
    actor.layer = getattr(nn.utils, name)(nn.Linear(3, 2))
    actor.layer(torch.zeros(1, 3))
    told = rf"Its 'layer' has torch\.nn\.utils\.{name}, .* use torch\.nn\.utils\.parametrizations\.{name}"
    with pytest.raises(TypeError, match=told):
        copy_actor(actor, CPU)
