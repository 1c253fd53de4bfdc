"""C51, quantile regression and R2D2 against transcriptions of their papers, in float64."""

from __future__ import annotations

import math
from functools import partial

import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import c51, dqn, quantile, r2d2, unroll
from rlplay.zoo.actors import Duelling, mlp
from rlplay.zoo.distributional import CategoricalQNetwork, NoisyLinear, QuantileQNetwork, resample
from tests.support.fragments import Dense, Table, fragment_of, made_sticky, random_batch, random_fragment

exactly = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
N, A, GAMMA = 12, 3, 0.9
ATOMS = torch.linspace(-2, 3, 7, dtype=torch.float64)


def categorical(seed=0, atoms=ATOMS):
    torch.manual_seed(seed)
    head = nn.Sequential(mlp(2, 8, A * len(atoms)), nn.Unflatten(-1, (A, len(atoms))))
    return CategoricalQNetwork(head, atoms, epsilon=0.0).double()


def quantiles(seed=0, n=5):
    torch.manual_seed(seed)
    return QuantileQNetwork(nn.Sequential(mlp(2, 8, A * n), nn.Unflatten(-1, (A, n))), epsilon=0.0).double()


def gradients(loss, module):
    return torch.autograd.grad(loss, list(module.parameters()), retain_graph=True)


def info_of(actor, state):
    return actor(state.obs)[2]


# C51


def test_the_divergence_is_never_negative_so_that_it_may_be_a_priority():
    """Where the target is the network's own distribution, rounding gives either sign."""
    atoms = torch.linspace(-10, 10, 51)
    batch, actor = random_batch(0, 64), categorical(atoms=atoms.double()).float()
    batch = batch._replace(rew=torch.zeros(1, 64), discount=torch.ones(1, 64))
    batch = nested.map(lambda x: x.float() if x.is_floating_point() else x, batch)
    buffer_takes = []
    for seed in range(20):
        torch.manual_seed(seed)
        with torch.no_grad():
            for p in actor.parameters():
                p.zero_()
            actor.logits[0][-1].bias.copy_(torch.randn(51).repeat(A) / 10)
        _, info = c51.replayed(batch, actor, atoms=atoms)
        assert info["kl"].max() < 1e-5
        buffer_takes.append(bool((info["kl"] >= 0).all()))
    assert all(buffer_takes)


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("with_target", [False, True])
def test_c51_equals_algorithm_1(double, with_target):
    batch, actor = random_batch(1, N), categorical()
    target = categorical(1) if with_target else actor
    here = info_of(actor, batch.state)["q_logits"][0].log_softmax(-1)
    theirs = info_of(target, batch.next)["q_logits"][0].softmax(-1).detach()
    chooser = info_of(actor, batch.next)["q_logits"][0].softmax(-1) if double else theirs
    low, high, step = -2.0, 3.0, 5 / 6
    total = 0.0
    for i in range(N):
        best = int((chooser[i] @ ATOMS).argmax())
        m = torch.zeros(7, dtype=torch.float64)
        for j in range(7):
            y = batch.rew[0, i] + batch.discount[0, i] * ATOMS[j]
            b = (y.clamp(low, high) - low) / step
            lower, upper = math.floor(b), math.ceil(b)
            if lower == upper:
                m[lower] += theirs[i, best, j]
            else:
                m[lower] += theirs[i, best, j] * (upper - b)
                m[upper] += theirs[i, best, j] * (b - lower)
        log_p = here[i, batch.act[0, i]]
        positive = m > 0
        entropy = -(m[positive] * m[positive].log()).sum()
        total = total + batch.weight[i] * (-(m * log_p).sum() - entropy) / N

    loss, info = c51.replayed(batch, actor, atoms=ATOMS, target=target if with_target else None, double=double)
    exactly(loss, total)
    exactly(gradients(loss, actor), gradients(total, actor))
    exactly((info["kl"] * batch.weight).mean(), total.detach())
    assert (info["kl"] >= 0).all()
    chosen = here.exp()[torch.arange(N), batch.act[0]] @ ATOMS
    exactly(info["q"], chosen.mean().detach())


@pytest.mark.parametrize("double", [True, False])
def test_autocast_rounds_no_mean_of_a_distribution(double):
    """As where the networks are evaluated under autocast, and give logits in float32."""
    atoms = torch.linspace(0, 100, 51)
    batch, actor = nested.map(lambda x: x.float() if x.is_floating_point() else x, random_batch(0, 64)), Told(atoms)
    expected = c51.replayed(batch, actor, target=actor, atoms=atoms, double=double)
    with torch.autocast("cpu", torch.bfloat16):
        found = c51.replayed(batch, actor, target=actor, atoms=atoms, double=double)
        _, _, info = actor(batch.state.obs)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(info["q"], (info["q_logits"].softmax(-1) * atoms).sum(-1), rtol=1e-5, atol=1e-4)


class Told(CategoricalQNetwork):
    """Its logits are in float32, whatever autocast says."""

    def __init__(self, atoms):
        super().__init__(nn.Identity(), atoms, epsilon=0.0)
        torch.manual_seed(0)
        self.table = nn.Parameter(torch.randn(2, A * len(atoms)))

    def react(self, features):
        with torch.autocast("cpu", enabled=False):
            logits = (features.float() @ self.table).unflatten(-1, (A, len(self.atoms)))
        return super().react(logits)


@pytest.mark.parametrize(
    ("value", "expected"),
    [(-9.0, [1, 0, 0]), (9.0, [0, 0, 1]), (0.5, [0, 0.5, 0.5]), (-1.0, [1, 0, 0]), (0.75, [0, 0.25, 0.75])],
)
def test_projection_moves_probability_to_the_neighbours(value, expected):
    got = c51.project(torch.ones(1), torch.tensor([value]), torch.tensor([-1.0, 0.0, 1.0]))
    assert got.tolist() == expected


def test_projection_keeps_the_mean_inside_of_the_grid():
    p = torch.rand(50, 7, dtype=torch.float64).softmax(-1)
    values = torch.rand(50, 7, dtype=torch.float64) * 5 - 2
    m = c51.project(p, values, ATOMS)
    exactly(m.sum(-1), torch.ones(50, dtype=torch.float64))
    exactly(m @ ATOMS, (p * values).sum(-1))


# Quantiles


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("huber", [None, 0.1, 1.0])
def test_quantile_loss_equals_algorithm_1(double, huber):
    batch, actor, target = random_batch(2, N), quantiles(), quantiles(1)
    theta = info_of(actor, batch.state)["q_quantiles"][0]
    theirs = info_of(target, batch.next)["q_quantiles"][0].detach()
    chooser = info_of(actor, batch.next)["q_quantiles"][0] if double else theirs
    total = 0.0
    for i in range(N):
        best = int(chooser[i].mean(-1).argmax())
        for k in range(5):
            for j in range(5):
                y = batch.rew[0, i] + batch.discount[0, i] * theirs[i, best, j]
                u = y - theta[i, batch.act[0, i], k]
                size = u.abs()
                if huber is not None:
                    size = u**2 / 2 if size <= huber else huber * (size - huber / 2)
                tau = (2 * k + 1) / 10
                total = total + batch.weight[i] * abs(tau - float(u < 0)) * size / 5 / N
    loss, info = quantile.replayed(batch, actor, target=target, double=double, huber=huber)
    exactly(loss, total)
    exactly(gradients(loss, actor), gradients(total, actor))
    assert info["td_error"].shape == (N,)


def test_quantile_regression_finds_the_quantiles_of_rewards():
    """Rewards drawn uniformly from 0 to 1, and no next state: the quantiles are the taus themselves."""
    torch.manual_seed(0)
    actor = QuantileQNetwork(nn.Sequential(nn.Linear(1, 4, bias=False), nn.Unflatten(-1, (1, 4))), epsilon=0.0).double()
    optim = torch.optim.SGD(actor.parameters(), lr=0.3)
    batch = random_batch(0, 1000)
    state = batch.state._replace(obs=torch.ones(1, 1000, 1, dtype=torch.float64))
    rew = (torch.arange(1000, dtype=torch.float64)[None] + 0.5) / 1000
    batch = batch._replace(state=state, next=state, act=0 * batch.act, rew=rew, discount=0 * rew)
    batch = batch._replace(weight=torch.ones(1000))
    for _ in range(300):
        optim.zero_grad()
        quantile.replayed(batch, actor, huber=None)[0].backward()
        optim.step()
    expected = torch.tensor([0.125, 0.375, 0.625, 0.875], dtype=torch.float64)
    torch.testing.assert_close(actor.quantiles[0].weight[:, 0].detach(), expected, rtol=0, atol=0.01)


# Both


BOTH = {"c51": (partial(c51.replayed, atoms=ATOMS), categorical), "quantile": (quantile.replayed, quantiles)}
both = pytest.mark.parametrize(("loss", "make"), BOTH.values(), ids=BOTH)


@both
def test_a_next_state_that_is_not_known_changes_no_bit(loss, make):
    batch, actor, results = random_batch(3, N), make(), []
    spoilt = nested.map(torch.clone, batch)
    ends = batch.discount[0] == 0
    assert 0 < ends.sum() < N
    spoilt.next.obs[0, ends] = math.nan
    for one in (batch, spoilt):
        total, info = loss(one, actor)
        results.append([total, *info.values(), *gradients(total, actor)])
    assert all(map(torch.equal, *results))


@both
def test_distributional_losses_never_wait_for_the_device(loss, make):
    batch = nested.map(lambda x: x.to("meta"), random_batch(3, N))
    loss(batch, make().to("meta"), target=make().to("meta"), double=True)[0].backward()


@both
def test_distributional_losses_name_what_is_wrong(loss, make):
    name = "q_logits" if make is categorical else "q_quantiles"
    with pytest.raises(ValueError, match=f"lacks '{name}'"):
        loss(random_batch(), Dense())
    with pytest.raises(TypeError, match="single Discrete space"):
        loss(random_batch(act=torch.zeros(1, N, 2)), make())
    actor = make()
    actor.forward = lambda *args, **rest: (None, (), {name: torch.zeros(1, N, A)})
    with pytest.raises(ValueError, match=rf"`{name}` must be \(n_seq, B, A, n\) = \(1, 12, 'A', .*got \(1, 12, 3\)"):
        loss(random_batch(), actor)
    with pytest.raises(ValueError, match=r"recurrent state"):
        loss(random_batch(), Dense(recurrent=True))


def test_the_number_of_atoms_is_checked():
    with pytest.raises(ValueError, match=r"\(1, 12, 'A', 5\), got \(1, 12, 3, 7\)"):
        c51.replayed(random_batch(), categorical(), atoms=ATOMS[:5])


# R2D2


def test_rescaling_is_inverted():
    x = torch.tensor([-1e4, -3.0, -1e-3, 0.0, 0.5, 7.0, 1e5], dtype=torch.float64)
    for epsilon in (1e-3, 1e-2):
        y = x.sign() * ((x.abs() + 1).sqrt() - 1) + epsilon * x
        exactly(r2d2.rescaled(x, epsilon), y)
        torch.testing.assert_close(r2d2.unscaled(y, epsilon), x, rtol=1e-8, atol=1e-9)


def test_priorities_mix_the_largest_and_the_mean_error_of_valid_steps():
    error = torch.tensor([[1.0, -2.0], [-3.0, math.nan], [2.0, math.inf]])
    valid = torch.tensor([[True, True], [True, False], [True, False]])
    torch.testing.assert_close(r2d2.priority(error, valid, 0.9), torch.tensor([0.9 * 3 + 0.1 * 2, 2.0]))
    assert r2d2.priority(error, valid & False).tolist() == [0, 0]
    with pytest.raises(ValueError, match=r"`eta` must be in \[0, 1\], got 2"):
        r2d2.priority(error, valid, 2)


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("n", [0, 1, 4, 8])
@pytest.mark.parametrize("sticky", [False, True])
def test_burn_in_replays_the_rest_of_the_fragment(recurrent, n, sticky):
    """With the weights that are used throughout, the rest of a fragment is what it was in the whole."""
    fragment, actor = random_fragment(4, recurrent=recurrent), Dense(recurrent)
    fragment = made_sticky(fragment) if sticky else fragment
    whole = unroll(fragment, actor)
    rest = r2d2.burn_in(fragment, actor, n)
    got = unroll(rest, actor)
    exactly(got.info, nested.map(lambda x: x[n:], whole.info))
    exactly(got.hx, whole.hx)
    late = fragment.env.final.t >= n
    exactly(got.final, nested.map(lambda x: x[late], whole.final))
    assert torch.equal(rest.env.final.t, fragment.env.final.t[late] - n)
    assert torch.equal(rest.env.valid, fragment.env.valid[n:])
    assert torch.equal(rest.actor["value"], fragment.actor["value"][n:])
    assert not any(x.requires_grad for x in nested.leaves(rest))


def test_burn_in_that_leaves_nothing_is_refused():
    for n in (-1, 9):
        with pytest.raises(ValueError, match="`burn_in` must be from 0 to 8 for a fragment of 9 steps"):
            r2d2.burn_in(random_fragment(), Dense(), n)


@pytest.mark.parametrize("n_lookahead", [1, 3])
@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize("recurrent", [False, True])
def test_dqn_with_burn_in_and_rescaling_equals_a_transcription(recurrent, with_target, n_lookahead):
    burn, epsilon = 3, 1e-2
    fragment, actor = random_fragment(5, recurrent=recurrent), Dense(recurrent)
    target = Dense(recurrent, seed=1) if with_target else actor
    T, B = fragment.env.valid.shape

    def h(x):
        return math.copysign(math.sqrt(abs(x) + 1) - 1, x) + epsilon * x

    def inverse(x):  # by bisection
        low, high = -1e4, 1e4
        for _ in range(200):
            middle = (low + high) / 2
            low, high = (middle, high) if h(middle) < x else (low, middle)
        return low

    online, theirs = unroll(fragment, actor), unroll(fragment, target)
    with torch.no_grad():  # the networks' own recurrent states after the burn-in: that of the whole fragment
        best = online.info["q"].argmax(-1, keepdim=True)
        v = theirs.info["q"].gather(-1, best)[..., 0]
        best = online.final["q"].argmax(-1, keepdim=True)
        lasts = theirs.final["q"].gather(-1, best)[..., 0]
    final, total = fragment.env.final, 0.0
    last = {(int(t), int(b)): x for t, b, x in zip(final.t, final.b, lasts, strict=True)}
    inputs = r2d2.burn_in(fragment, actor, burn)
    q = unroll(inputs, actor).info["q"]
    for b in range(B):
        for t in range(burn, T):
            y, discount, at = 0.0, 1.0, t
            while True:
                y += discount * fragment.state.rew[at + 1, b].item()
                discount *= GAMMA
                if fragment.state.fin[at + 1, b]:
                    if not fragment.env.terminated[at, b]:
                        y += discount * inverse(last[at, b].item())
                    break
                at += 1
                if at - t == n_lookahead or at == T:
                    y += discount * inverse(v[at, b].item())
                    break
            total = total + (h(y) - q[t - burn, b, fragment.state.act[t + 1, b]]) ** 2 / 2
    expected = total / (B * (T - burn))
    options = {"gamma": GAMMA, "burn_in": burn, "rescale": epsilon, "huber": None, "n_lookahead": n_lookahead}
    loss, info = dqn.loss(fragment, actor, target=target if with_target else None, **options)
    exactly(loss, expected, rtol=1e-7)
    for x, y in zip(
        torch.autograd.grad(loss, list(actor.parameters()), allow_unused=True, retain_graph=True),
        torch.autograd.grad(expected, list(actor.parameters()), allow_unused=True),
        strict=True,
    ):
        if x is not None:
            torch.testing.assert_close(x, y)
    assert info["td_error"].shape == (T - burn, B)


@pytest.mark.parametrize("garbage", [math.nan, 1e30])
@pytest.mark.parametrize("recurrent", [False, True])
def test_padding_changes_no_bit_with_burn_in(recurrent, garbage):
    fragment, actor = made_sticky(random_fragment(8, recurrent=recurrent)), Dense(recurrent)
    unused, results = ~fragment.env.valid, []
    spoilt = nested.map(torch.clone, fragment)
    spoilt.state.obs[:-1][unused] = garbage
    spoilt.state.rew[1:][unused] = garbage
    for one in (fragment, spoilt):
        loss, info = dqn.loss(one, actor, gamma=GAMMA, burn_in=2, rescale=1e-3)
        found = torch.autograd.grad(loss, list(actor.parameters()), allow_unused=True)
        results.append([loss, *info.values(), *(x for x in found if x is not None)])
    assert all(map(torch.equal, *results))


def test_a_rescaling_that_is_none_is_refused():
    with pytest.raises(ValueError, match="`rescale` must be a number > 0, or None"):
        dqn.loss(random_fragment(), Dense(), gamma=GAMMA, rescale=0.0)


# Networks


def test_noise_is_factorised_and_off_in_eval_mode():
    torch.manual_seed(0)
    layer = NoisyLinear(3, 2).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    exactly(layer(x), x @ layer.weight.T + layer.bias)  # no noise before the first draw
    resample(nn.Sequential(layer), torch.Generator().manual_seed(1))
    g = torch.Generator().manual_seed(1)
    e_in, e_out = (torch.empty(n, dtype=torch.float64).normal_(generator=g) for n in (3, 2))
    f_in, f_out = (e.sign() * e.abs() ** 0.5 for e in (e_in, e_out))
    weight = layer.weight + layer.weight_std * f_out[:, None] * f_in[None]
    exactly(layer(x), x @ weight.T + layer.bias + layer.bias_std * f_out)
    exactly(layer.weight_std.detach(), torch.full((2, 3), 0.5 / 3**0.5, dtype=torch.float32).double())
    exactly(layer.eval()(x), x @ layer.weight.T + layer.bias)


def test_duelling_heads_of_atoms():
    value = nn.Sequential(nn.Linear(4, 7), nn.Unflatten(-1, (1, 7)))
    advantage = nn.Sequential(nn.Linear(4, 21), nn.Unflatten(-1, (3, 7)))
    x = torch.randn(1, 5, 4)
    got = Duelling(value, advantage, dim=-2)(x)
    torch.testing.assert_close(got, value(x) + advantage(x) - advantage(x).mean(-2, keepdim=True))


def test_distributional_networks_act_greedily_on_the_mean():
    for actor in (categorical(), quantiles()):
        obs = torch.randn(2, 50, 2, dtype=torch.float64)
        act, _, info = actor(obs)
        assert torch.equal(act, info["q"].argmax(-1))
        actor.epsilon.fill_(1.0)
        assert set(actor(obs)[0].unique().tolist()) == {0, 1, 2}
        assert torch.equal(actor.eval()(obs)[0], act)
    info = categorical()(obs)[2]
    exactly(info["q"], (info["q_logits"].softmax(-1) * ATOMS).sum(-1))


def test_small_returns_survive_rescaling_in_float32():
    x = torch.tensor([-1e-3, 0.0, 1e-6, 1e-3, 0.1, 1.0, 100.0])
    torch.testing.assert_close(r2d2.unscaled(r2d2.rescaled(x)), x, rtol=1e-5, atol=0)


def test_values_in_half_precision_are_rescaled_in_float32():
    actor = Table()
    values = torch.tensor([[3.0, 17.5, 2.0]], dtype=torch.bfloat16)
    actor.forward = lambda obs, **ignored: (obs, (), {"q": values[torch.zeros_like(obs)]})
    _, info = dqn.loss(fragment_of([0, 0], [0.0]), actor, gamma=1.0, rescale=1e-3)
    torch.testing.assert_close(info["target"], torch.tensor(17.5), rtol=1e-6, atol=0)
