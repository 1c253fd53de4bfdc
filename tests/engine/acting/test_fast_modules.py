"""Modules of the behaviour copy skip the look-up of hooks, and otherwise behave as before."""

from __future__ import annotations

import copy

import cloudpickle
import gymnasium.spaces
import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.engine import BaseActorModule
from rlplay.engine.acting.fast_modules import fast_step, make_fast
from rlplay.engine.rollout import same
from rlplay.testing import make_ledger


class Doubled(nn.Linear):
    def __call__(self, x):
        return 2 * super().__call__(x)


class Own(nn.Module):
    def __init__(self):
        super().__init__()
        self.forward = lambda x: x + 1


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.ModuleDict({"a": nn.LSTM(4, 5)})["a"])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script.*")
@pytest.mark.parametrize("make", [network, lambda: Doubled(3, 2), Own, lambda: torch.jit.script(nn.Linear(3, 2))])
def test_fast_modules_return_the_same_bit_for_bit(make):
    plain = make()
    lean, x = copy.deepcopy(plain), torch.rand(2, 3, 3)
    make_fast(lean)
    pairs = zip(nested.leaves(plain(x)), nested.leaves(lean(x)), strict=True)
    assert all(torch.equal(one, other) for one, other in pairs)


def test_fast_modules_keep_type_repr_state_and_copies():
    lean = network()
    make_fast(lean)
    make_fast(lean)  # a second time changes nothing
    assert type(lean[0]) is nn.Linear
    assert repr(lean) == repr(network())
    assert list(lean.state_dict()) == list(network().state_dict())
    for twin in (copy.deepcopy(lean), cloudpickle.loads(cloudpickle.dumps(lean))):
        assert torch.equal(twin(torch.ones(1, 3))[0], lean(torch.ones(1, 3))[0])


@pytest.mark.parametrize("make", [nn.Identity, nn.Tanh, nn.Sequential, lambda: nn.Linear(2, 2)])
@pytest.mark.parametrize("everywhere", [False, True])
@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_that_are_registered_later_run(make, everywhere, register):
    module, called = make(), []
    make_fast(module)
    owner = nn.modules.module if everywhere else module
    name = register.replace("register", "register_module") if everywhere else register
    handle = getattr(owner, name)(lambda *args: called.append(1))
    module(torch.ones(2))
    handle.remove()
    module(torch.ones(2))
    assert called == [1]


class Registered(nn.Module):
    kinds = {}  # noqa: RUF012

    def __init_subclass__(cls, **options):
        super().__init_subclass__(**options)
        Registered.kinds[cls.__name__] = cls


class Squared(Registered):
    @staticmethod
    def forward(x):
        return x * x


class Scaled(nn.Linear):
    def forward(self, x):
        return super().forward(x) * 2


class AsksForTypes(BaseActorModule):
    """Looks its layers up by their types, as tables of rules do."""

    rules = {nn.Linear: lambda m, x: m(x), Scaled: lambda m, x: m(x), Squared: lambda m, x: m(x)}  # noqa: RUF012

    def __init__(self):
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(1, 1), Registered.kinds["Squared"](), Scaled(1, 1)])

    def forward(self, obs, fin, **ignored):
        assert type(self) is AsksForTypes
        x = torch.ones(*fin.shape, 1)
        for layer in self.layers:
            x = self.rules[type(layer)](layer, x)
        return torch.zeros(fin.shape, dtype=torch.int64), (), {"x": x[..., 0]}


def test_the_copy_of_an_actor_has_the_very_classes_of_the_actor():
    actor, kinds = AsksForTypes(), dict(Registered.kinds)
    with same.rollout([make_ledger(gymnasium.spaces, 0)], actor, n_steps=5) as feed:
        fragment = next(feed)
    assert torch.equal(fragment.actor["x"], actor(None, fragment.state.fin)[2]["x"].detach())
    assert Registered.kinds == kinds


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_fast_modules_run(register):
    class Hooked(BaseActorModule):
        def __init__(self):
            super().__init__()
            self.layer = nn.Identity()
            getattr(self.layer, register)(lambda *args: CALLS.append(len(args)))

        def forward(self, obs, fin, **ignored):
            return self.layer(torch.zeros(fin.shape, dtype=torch.int64)), (), ()

    actor = Hooked()
    with same.rollout([make_ledger(gymnasium.spaces, 0)], actor, n_steps=5) as feed:
        CALLS.clear()
        next(feed)
    assert len(CALLS) == 6


CALLS = []
"""A global variable: what a local function holds is copied with the actor."""


class Shifts(nn.Module):
    """Has a parameter, a buffer and a module, each under a name that any of its kind may use for something else."""

    def __init__(self, free=True):
        super().__init__()
        self.free = nn.Parameter(torch.ones(2)) if free else 3.0
        self.register_buffer("count", torch.zeros(()))
        self.inner = nn.Linear(2, 2)

    def forward(self, x):
        self.count = self.count + 1
        return self.inner(x) * self.free + self.count


def both():
    """A module before and after, next to one of its kind that has a plain number for a parameter."""
    torch.manual_seed(0)
    pair = nn.ModuleList([Shifts(), Shifts(free=False)])
    lean = copy.deepcopy(pair)
    make_fast(lean)
    assert type(lean[0]) is type(lean[1]) is Shifts
    return pair, lean


def halve(module):
    module.free = nn.Parameter(torch.full((2,), 0.5))


def make_plain(module):
    del module.free
    module.free = 7.0
    assert module.free == 7.0


def register_again(module):
    del module.free
    module.register_parameter("free", nn.Parameter(torch.full((2,), 2.0)))


def exchange(module):
    module.inner = nn.Sequential(nn.Identity(), module.inner)


def exchange_by_name(module):
    module.add_module("inner", nn.Sequential(nn.Identity(), module.inner))


def exchange_in_torchs_dict(module):
    module._modules["inner"] = nn.Sequential(nn.Identity(), module._modules.pop("inner"))


def make_none_and_put_back(module):
    inner, module.inner = module.inner, None
    assert module.inner is None
    module.inner = inner


def delete_and_put_back(module):
    inner = module.inner
    del module.inner
    assert not hasattr(module, "inner")
    module._modules.update(inner=inner)


def replace_weight_by_a_plain_attribute(module):
    weight = module.inner.weight.detach() * 2
    del module.inner.weight
    module.inner.weight = weight


CHANGES = [
    *(lambda module: None, halve, make_plain, register_again, exchange, exchange_by_name, exchange_in_torchs_dict),
    *(make_none_and_put_back, delete_and_put_back, replace_weight_by_a_plain_attribute),
]


@pytest.mark.parametrize("change", CHANGES)
def test_parameters_and_submodules_of_fast_modules_may_be_replaced(change):
    plain, lean = both()
    x = torch.rand(3, 2)
    for which in (0, 1):
        for module in (plain, lean):
            change(module[which])
        for _ in range(2):
            assert torch.equal(plain[which](x), lean[which](x))
    assert plain.state_dict().keys() == lean.state_dict().keys()


def test_fast_modules_do_not_find_a_deleted_parameter():
    for pair in both():
        del pair[0].free
        assert not hasattr(pair[0], "free")
        with pytest.raises(AttributeError, match="has no attribute 'free'"):
            del pair[0].free


def test_functional_call_works_on_fast_modules():
    x, other = torch.rand(3, 2), {"free": torch.full((2,), 3.0), "inner.weight": torch.zeros(2, 2)}
    one, two = (torch.func.functional_call(pair[0], other, (x,)) for pair in both())
    assert torch.equal(one, two)


def test_a_getattr_of_the_users_class_is_called_on_fast_modules():
    class Talks(nn.Linear):
        asked = 0

        def __getattr__(self, name):
            Talks.asked += name == "weight"
            return super().__getattr__(name)

    lean = Talks(2, 2)
    make_fast(lean)
    Talks.asked = 0
    lean(torch.zeros(1, 2))
    assert Talks.asked == 1


def test_the_users_actor_does_not_become_fast():
    actor = Named()
    with same.rollout([make_ledger(gymnasium.spaces, 0)], actor, n_steps=5) as feed:
        next(feed)
        assert type(actor) is Named
        assert type(actor.layer) is nn.Identity


class Named(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Identity()

    def forward(self, obs, fin, **ignored):
        return self.layer(torch.zeros(fin.shape, dtype=torch.int64)), (), ()


def rows_network(*, bias=True):
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 70), nn.Tanh(), nn.Linear(70, 33, bias=bias), nn.ReLU(), nn.Identity())


SHAPES = [(1, 8, 3), (1, 1, 3), (5, 2, 3), (8, 3), (3,), (2, 2, 2, 3), (0, 4, 3), (1, 0, 3)]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("context", ["plain", "autocast", "grad"])
def test_layers_of_rows_return_the_same_bit_for_bit(shape, bias, context):
    plain = rows_network(bias=bias)
    lean, x = copy.deepcopy(plain), torch.rand(shape)
    make_fast(lean)
    for some in (x, x.transpose(0, -2) if x.ndim > 1 else x, torch.rand(*shape[:-1], 6)[..., ::2]):
        with torch.set_grad_enabled(context == "grad"), torch.autocast("cpu", torch.bfloat16, context == "autocast"):
            one, other = plain(some), lean(some)
        assert one.shape == other.shape
        assert one.dtype == other.dtype
        assert torch.equal(one, other)


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_a_layer_of_rows_with_a_hook_sees_its_input_as_it_is(register):
    lean, shapes = rows_network(), []
    make_fast(lean)
    lean(torch.rand(1, 2, 3))
    handle = getattr(lean[2], register)(lambda module, args, *rest: shapes.append(args[0].shape))
    lean(torch.rand(1, 2, 3))
    assert shapes == [(1, 2, 70)]
    handle.remove()
    lean(torch.rand(1, 2, 3))
    assert len(shapes) == 1


def change_weights_in_place(lean):
    with torch.no_grad():
        lean[0].weight.mul_(2)
        lean[2].bias.add_(1)


def replace_a_parameter(lean):
    lean[0].weight = nn.Parameter(torch.rand(70, 3))


def replace_a_layer(lean):
    lean[2] = nn.Linear(70, 4)


def append_a_layer_of_another_kind(lean):
    lean.append(nn.Softmax(dim=1))


@pytest.mark.parametrize(
    "change", [change_weights_in_place, replace_a_parameter, replace_a_layer, append_a_layer_of_another_kind]
)
def test_what_changes_in_layers_of_rows_counts_at_once(change):
    torch.manual_seed(1)
    plain = rows_network()
    lean, x = copy.deepcopy(plain), torch.rand(2, 3, 3)
    make_fast(lean)
    lean(x)
    for network in (plain, lean):
        torch.manual_seed(2)
        change(network)
    assert torch.equal(plain(x), lean(x))


def assign_data(lean):
    lean[0].weight.data = lean[0].weight.data * 3


def fill_from_a_vector(lean):
    nn.utils.vector_to_parameters(torch.rand(sum(x.numel() for x in lean.parameters())), lean.parameters())


@pytest.mark.parametrize("change", [assign_data, fill_from_a_vector])
def test_weights_whose_memory_is_replaced_count_at_once(change):
    plain = rows_network()
    lean, x = copy.deepcopy(plain), torch.rand(1, 3, 3)
    make_fast(lean)
    for _ in range(3):
        for network in (plain, lean):
            torch.manual_seed(2)
            change(network)
        with torch.no_grad():
            assert torch.equal(plain(x), lean(x))
    assert torch.equal(plain.double()(x.double()), lean.double()(x.double()))


def test_gradients_flow_through_layers_of_rows():
    lean, x = rows_network(), torch.rand(1, 3, 3)
    make_fast(lean)
    with torch.no_grad():
        lean(x)
    lean(x).sum().backward()
    assert lean[0].weight.grad.abs().sum() > 0
    lean.requires_grad_(False)
    assert not lean(x).requires_grad


@pytest.mark.parametrize("register", ["register_forward_hook", "register_forward_pre_hook"])
def test_hooks_of_an_actor_that_are_registered_later_run_at_its_steps(register):
    actor, called = BaseActorModule(), []
    actor.__class__ = type("Answers", (BaseActorModule,), {"forward": lambda self, obs, **ignored: (obs, (), ())})
    make_fast(actor)
    step = fast_step(actor)
    handle = getattr(actor, register)(lambda *args: called.append(1))
    step(0, 1, 2, 3, 4, hx=(), virtual=False)
    handle.remove()
    assert step(0, 1, 2, 3, 4, hx=(), virtual=False) == (1, (), ())
    assert called == [1]
