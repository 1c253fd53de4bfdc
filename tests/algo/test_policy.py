"""Distributions over the actions of every kind of space, against torch's own, sums and integrals; and in the losses."""

from __future__ import annotations

import math
from collections import OrderedDict
from functools import partial

import pytest
import torch
from torch import nn
from torch.distributions import Bernoulli, Categorical, Normal

from rlplay import nested
from rlplay.algo import a2c, ppo, unroll, vtrace
from rlplay.algo.distributions import Bits, PreTanh, SquashedGaussian
from rlplay.algo.distributions import Categorical as Ours
from rlplay.algo.policy import carried_out, mean_action, policy
from tests.support.fragments import made_sticky
from tests.support.policies import Linear, every_kind, fragment_of

GAMMA = 0.9
LOSSES = {"a2c": a2c.loss, "ppo": ppo.loss, "vtrace": vtrace.loss}
every = pytest.mark.parametrize("loss", [partial(f, gamma=GAMMA) for f in LOSSES.values()], ids=LOSSES)
exactly = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)


def squash_area(mean, log_std):
    """Integrate the entropy of one squashed variate over actions, on a grid that is fine near the bounds."""
    u = torch.linspace(-12, 12, 200_001, dtype=torch.float64)
    act, slope = u.tanh(), 1 / u.cosh() ** 2
    density = Normal(mean, log_std.exp()).log_prob(u).exp() / slope
    return -torch.trapezoid((density * density.clamp(min=1e-300).log() * slope), u) + 0 * act.sum()


def by_hand(info, act, pre_tanh=None):
    """Return log p and entropy ``(T, B)`` of the actions ``(T, B, ...)``."""
    if isinstance(act, torch.Tensor):
        T = len(act)
        if "mean" in info:
            mean, log_std = info["mean"][:T], info["log_std"][:T]
            if "pre_tanh" not in info:
                normal = Normal(mean, log_std.exp())
                return normal.log_prob(act).sum(-1), normal.entropy().sum(-1)
            u = torch.atanh(act / 2)  # the action of the space is twice the tanh
            density = Normal(mean, log_std.exp()).log_prob(u) - (1 - (act / 2) ** 2).log()
            pairs = zip(mean.flatten().detach(), log_std.flatten().detach(), strict=True)
            entropy = torch.stack([squash_area(*pair) for pair in pairs]).view_as(mean)
            return density.sum(-1), entropy.sum(-1)
        logits = info["logits"]
        if isinstance(logits, tuple):
            parts = [Categorical(logits=x[:T]) for x in logits]
            return (
                sum(part.log_prob(act[..., i]) for i, part in enumerate(parts)),
                sum(part.entropy() for part in parts),
            )
        if act.ndim == 2:
            return Categorical(logits=logits[:T]).log_prob(act), Categorical(logits=logits[:T]).entropy()
        bits = Bernoulli(logits=logits[:T])
        return bits.log_prob(act.double()).sum(-1), bits.entropy().sum(-1)
    keys = list(act) if isinstance(act, dict) else range(len(act))
    found = [by_hand(info[key], act[key]) for key in keys]
    return sum(x for x, _ in found), sum(x for _, x in found)


def gradients(loss, actor):
    return torch.autograd.grad(loss, list(actor.parameters()), allow_unused=True)


@every_kind
def test_log_probabilities_and_entropies_equal_those_of_torch(kind):
    fragment, actor = fragment_of(kind), Linear(kind)
    info = unroll(fragment, actor).info
    act = nested.map(lambda x: x[1:], fragment.state.act)
    log_p, entropy = by_hand(info.get("policy", info), act)
    got = policy(info, carried_out(fragment), fragment.env.valid)
    exactly(got.log_prob(carried_out(fragment)), log_p, rtol=1e-7 if kind in ("squashed", "tuple", "named") else 1e-9)
    torch.testing.assert_close(got.entropy(), entropy, rtol=0, atol=1e-7)


@every_kind
def test_losses_of_every_space_equal_transcriptions(kind):
    """A2C with the value targets of one step, term by term; PPO and V-trace agree with it in their own tests."""
    fragment, actor = fragment_of(kind), Linear(kind)
    info, _, final = unroll(fragment, actor)
    act, v = nested.map(lambda x: x[1:], fragment.state.act), info["value"]
    log_p, entropy = by_hand(info.get("policy", info), act)
    env, ahead = fragment.env, v[1:].detach().clone()
    ahead[env.final.t, env.final.b] = final["value"].detach()
    target = fragment.state.rew[1:] + GAMMA * ahead * ~env.terminated
    policy_loss = -(log_p * (target - v[:-1].detach())).mean()
    expected = policy_loss + 0.5 * (target - v[:-1]).square().mean()
    loss, got = a2c.loss(fragment, actor, gamma=GAMMA, C=0.0, entropy_weight=0.0)
    exactly(loss, expected, rtol=1e-7)
    for x, y in zip(gradients(loss, actor), gradients(expected, actor), strict=True):
        torch.testing.assert_close(x, y, rtol=1e-6, atol=1e-9)
    torch.testing.assert_close(got["entropy"], entropy.mean().detach(), rtol=0, atol=1e-7)


@every
@every_kind
@pytest.mark.parametrize("garbage", [math.nan, math.inf])
def test_padding_changes_no_bit_with_any_space(loss, kind, garbage):
    fragment, actor = made_sticky(fragment_of(kind, seed=3)), Linear(kind)
    unused = ~fragment.env.valid
    assert 0 < unused.sum() < unused.numel()
    spoilt = nested.map(torch.clone, fragment)
    for x in nested.leaves((spoilt.actor, spoilt.state.obs)):
        x[:-1][unused] = garbage
    for x in nested.leaves((spoilt.state.act, spoilt.state.rew)):
        x[1:][unused] = garbage if x.is_floating_point() else 99
    results = []
    for one in (fragment, spoilt):
        total, info = loss(one, actor)
        assert total.isfinite()
        results.append((total, info, gradients(total, actor)))
    assert all(map(torch.equal, nested.leaves(results[0]), nested.leaves(results[1])))


@every
@every_kind
def test_minus_infinity_forbids_with_finite_gradients(loss, kind):
    total, info = loss(fragment_of(kind), Linear(kind), entropy_weight=0.1)
    total.backward()
    assert all(x.isfinite().all() for x in (total, *info.values()))
    actor = Linear(kind)
    loss(fragment_of(kind), actor, entropy_weight=0.1)[0].backward()
    assert all(x.grad.isfinite().all() for x in actor.parameters())


def test_a_forbidden_action_has_no_probability_no_entropy_and_no_gradient():
    logits = torch.tensor([1.0, -math.inf, 0.5], dtype=torch.float64, requires_grad=True)
    ours = Ours(logits)
    assert ours.log_prob(torch.tensor(1)).item() == -math.inf
    p = torch.tensor([1.0, 0.5], dtype=torch.float64).softmax(0)
    exactly(ours.entropy(), -(p * p.log()).sum())
    (ours.entropy() + ours.log_prob(torch.tensor(2))).backward()
    assert logits.grad.isfinite().all()
    assert logits.grad[1] == 0


def test_bits_with_infinite_logits_are_certain():
    logits = torch.tensor([[0.3, -math.inf, math.inf]], dtype=torch.float64, requires_grad=True)
    bits, coin = Bits(logits, 1), Bernoulli(logits=logits[:, 0])
    exactly(bits.log_prob(torch.tensor([[1, 0, 1]])), coin.log_prob(torch.ones(1, dtype=torch.float64)))
    for impossible in ([1, 1, 1], [0, 0, 0]):
        assert bits.log_prob(torch.tensor([impossible])).item() == -math.inf
    exactly(bits.entropy(), coin.entropy())
    (bits.entropy() + bits.log_prob(torch.tensor([[1, 0, 1]]))).sum().backward()
    assert logits.grad.isfinite().all()
    assert (logits.grad[0, 1:] == 0).all()


@pytest.mark.parametrize(("std", "tolerance"), [(0.01, 1e-7), (1.5, 1e-7), (4.0, 1e-3)])
@pytest.mark.parametrize("mean", [0.0, 0.7, -3.0])
def test_entropy_of_a_squashed_gaussian_has_the_stated_error(mean, std, tolerance):
    u = torch.linspace(-12 * std, 12 * std, 400_001, dtype=torch.float64) + mean
    normal = Normal(torch.tensor(mean, dtype=torch.float64), std)
    slope = 2 * (math.log(2) - u - nn.functional.softplus(-2 * u))
    expected = normal.entropy() + torch.trapezoid(normal.log_prob(u).exp() * slope, u)
    one = torch.tensor([mean, math.log(std)], dtype=torch.float64)
    assert SquashedGaussian(one[:1], one[1:], 1).entropy().item() == pytest.approx(expected.item(), abs=tolerance)


def test_squashed_densities_are_finite_at_the_bounds_in_float32():
    """An action that is 1 in float32 cannot be inverted; its `pre_tanh` tells the density."""
    u = torch.tensor([[12.0, -30.0]])
    assert (u.tanh().abs() == 1).all()
    fragment = fragment_of("squashed")
    T, B = fragment.env.valid.shape
    info = {name: torch.zeros(1 + T, B, 2) for name in ("mean", "log_std")} | {"pre_tanh": u.expand(1 + T, B, 2)}
    act = carried_out(fragment._replace(actor=info))
    got = policy(info, act, fragment.env.valid).log_prob(act)
    x = u.double()
    expected = (Normal(0.0, 1.0).log_prob(x) + 2 * x.abs() - math.log(4)).sum()
    torch.testing.assert_close(got, expected.float().expand(T, B))


def test_squashed_densities_of_half_precision_are_computed_in_float32():
    torch.manual_seed(0)
    mean, x = torch.randn(2, 100, 1, 6).bfloat16()
    got = SquashedGaussian(mean.float(), torch.zeros(100, 1, 6), 2).log_prob(PreTanh(x))
    expected = SquashedGaussian(mean.double(), torch.zeros(100, 1, 6).double(), 2).log_prob(PreTanh(x.double()))
    torch.testing.assert_close(got.double(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("kind", "change", "message"),
    [
        (
            "squashed",
            lambda info: {k: x for k, x in info.items() if k != "pre_tanh"},
            "'pre_tanh', so its policy is",
        ),
        ("box", lambda info: info | {"pre_tanh": info["mean"]}, "policy that collected the fragment is squashed"),
        ("dict", lambda info: info, r"info\['turn'\]"),
        ("multi_discrete", lambda info: info, "`logits` must be a tuple of 2 tensors.*got tuple of 1"),
        ("tuple", lambda info: info, "must be a tuple with an element for each part"),
    ],
)
def test_an_info_that_does_not_fit_the_action_is_named(kind, change, message):
    fragment, actor = fragment_of(kind), Linear(kind)
    fragment = fragment._replace(actor=change(fragment.actor))
    broken = {
        "dict": lambda info: info | {"turn": {}},
        "multi_discrete": lambda info: info | {"logits": info["logits"][:1]},
        "tuple": lambda info: info | {"policy": info["policy"][:1]},
    }.get(kind, lambda info: info)
    plain = actor.info
    actor.info = lambda x: broken(plain(x))
    with pytest.raises(ValueError, match=message):
        a2c.loss(fragment, actor, gamma=GAMMA)


def test_an_action_that_is_no_array_is_refused():
    fragment = fragment_of("discrete")
    with pytest.raises(TypeError, match="Actions must be tensors, or mappings or tuples of them; got NoneType"):
        policy({"logits": ()}, None, fragment.env.valid)


def test_parts_of_an_action_without_tensors_add_nothing():
    turn, valid = torch.randint(3, (4, 2)), torch.ones(4, 2, dtype=torch.bool)
    info = {"logits": torch.randn(5, 2, 3, dtype=torch.float64)}
    act = ({}, {"none": (), "turn": turn}, ())
    got, expected = policy({"policy": ((), {"turn": info}, ())}, act, valid), policy(info, turn, valid)
    exactly(got.log_prob(act), expected.log_prob(turn))
    exactly(got.entropy(), expected.entropy())


@every_kind
def test_minibatches_of_any_space_are_a_partition(kind):
    fragment, actor = fragment_of(kind), Linear(kind)
    whole, _ = ppo.loss(fragment, actor, gamma=GAMMA)
    parts = list(ppo.losses(fragment, actor, gamma=GAMMA, n_epochs=1, n_minibatches=3))
    exactly(sum(5 * loss for loss, _ in parts) / 15, whole)


def test_first_import_paths_are_the_same_modules():
    import rlplay.algo.actor_critic
    import rlplay.algo.ppo

    from rlplay.algo.losses import ppo as here

    assert rlplay.algo.ppo is here is ppo
    assert rlplay.algo.actor_critic.policy_terms


def test_a_tuple_of_logits_for_a_single_choice_is_refused():
    info = {"logits": (torch.zeros(2, 3, 4),)}
    with pytest.raises(ValueError, match=r"`logits` must be \(n_seq, B, \.\.\.\) = \(n_seq, 3, A\).*got tuple"):
        policy(info, torch.zeros(2, 3, dtype=torch.int64), torch.ones(2, 3, dtype=torch.bool))


def test_the_means_of_ordered_actions_keep_their_places():
    """In `nested`, a dict's leaves are sorted by key, and those of an OrderedDict are not."""
    act = OrderedDict(b=torch.zeros(1, 2, 1), a=torch.zeros(1, 2, 1))
    found = mean_action({"a": {"mean": act["a"] + 1}, "b": {"mean": act["b"] + 2}}, act)
    assert list(found) == ["b", "a"]
    assert (found["a"] == 1).all()
    assert (found["b"] == 2).all()
