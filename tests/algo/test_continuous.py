"""SAC, TD3 and DDPG against transcriptions of their papers, in float64."""

from __future__ import annotations

import copy
import math
from functools import partial

import numpy as np
import pytest
import torch
from torch import nn
from torch.distributions import Normal

from rlplay import nested
from rlplay.algo import sac, td3
from rlplay.engine import BaseActorModule
from rlplay.zoo.actors import GaussianActorCritic, mlp
from rlplay.zoo.continuous import Critics, Deterministic, SquashedGaussian
from tests.support.fragments import Dense, random_batch

exactly = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
N = 12


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


def batch_of(seed=0, **changes):
    act = torch.rand(1, N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)) * 2 - 1
    return random_batch(seed, N, act)._replace(**changes)


def soft_actor(seed=0, **bounds):
    torch.manual_seed(seed)
    bounds = {"low": [-1.0, -3.0], "high": [1.0, 5.0]} | bounds
    return SquashedGaussian(mlp(2, 8, 4), **bounds).double()


def hard_actor(seed=0):
    torch.manual_seed(seed)
    return Deterministic(mlp(2, 8, 2), [-1.0, -3.0], [1.0, 5.0]).double()


def critics(seed=0, n=2):
    torch.manual_seed(seed + 10)
    return Critics(4, 8, n=n).double()


def gradients(loss, *modules):
    parameters = [p for module in modules for p in module.parameters()]
    found = torch.autograd.grad(loss, parameters, allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if x is None else x for x, p in zip(found, parameters, strict=True)]


def drawn(actor, obs):
    """Draw actions and their log-densities, by torch's distribution of the normal variate."""
    mean, log_std = actor.policy(obs).chunk(2, dim=-1)
    pre_tanh = mean + log_std.exp() * torch.randn(mean.shape, dtype=mean.dtype)
    unit = pre_tanh.tanh()
    log_p = Normal(mean, log_std.exp()).log_prob(pre_tanh).sum(-1) - (1 - unit**2).log().sum(-1)
    return actor.centre + actor.scale * unit, log_p


# SAC


@pytest.mark.parametrize("n", [1, 2, 3])
def test_sac_critic_loss_equals_a_transcription(n):
    batch, actor, critic, target = batch_of(), soft_actor(), critics(n=n), critics(1, n=n)
    log_alpha = torch.tensor(-0.7, dtype=torch.float64)
    torch.manual_seed(5)
    with torch.no_grad():
        act, log_p = drawn(actor, batch.next.obs)
        soft = torch.stack([q(torch.cat([batch.next.obs, act], -1))[..., 0] for q in target.each]).min(0).values
        y = batch.rew + batch.discount * (soft - math.exp(-0.7) * log_p)
    q = torch.stack([q(torch.cat([batch.state.obs, batch.act], -1))[..., 0] for q in critic.each])
    expected = sum((batch.weight * (one - y) ** 2).mean() / 2 for one in q)

    torch.manual_seed(5)
    loss, info = sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)
    exactly(loss, expected)
    exactly(gradients(loss, critic), gradients(expected, critic))
    assert all((x == 0).all() for x in gradients(loss, actor, target))
    exactly(info["td_error"], (y - q.mean(0))[0].detach())
    exactly([info["q"], info["target"]], [q.mean().detach(), y.mean()])


def test_sac_actor_and_temperature_losses_equal_transcriptions():
    batch, actor, critic = batch_of(), soft_actor(), critics()
    log_alpha = torch.tensor(-0.7, dtype=torch.float64, requires_grad=True)
    torch.manual_seed(5)
    act, log_p = drawn(actor, batch.state.obs)
    q = torch.stack([q(torch.cat([batch.state.obs, act], -1))[..., 0] for q in critic.each]).min(0).values
    expected = (batch.weight * (math.exp(-0.7) * log_p - q)).mean()

    torch.manual_seed(5)
    loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
    exactly(loss, expected)
    exactly(gradients(loss, actor), gradients(expected, actor))
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())  # and the critic's own gradients are not touched
    assert log_alpha.grad is None
    exactly(info["log_p"], log_p[0].detach())
    exactly([info["q"], info["entropy"]], [q.mean().detach(), -log_p.mean().detach()])

    loss = sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-2.0)
    exactly(loss.detach(), 0.7 * (log_p.detach() - 2).mean())
    loss.backward()
    exactly(log_alpha.grad, -(log_p.detach() - 2).mean())


def test_the_temperature_rises_where_the_policy_is_too_certain():
    for log_p, sign in ((3.0, 1), (1.0, -1)):
        log_alpha = torch.zeros((), requires_grad=True)
        sac.temperature_loss(torch.full((4,), log_p), log_alpha, target_entropy=-2.0).backward()
        assert math.copysign(1, -log_alpha.grad) == sign


def test_sac_takes_a_nest_of_actions():
    class Nest(BaseActorModule):
        def __init__(self):
            super().__init__()
            self.a, self.b = soft_actor(), soft_actor(1)

        def forward(self, obs, **ignored):
            (a, _, info_a), (b, _, info_b) = self.a(obs), self.b(obs)
            return {"a": a, "b": (b,)}, (), {"a": info_a, "b": (info_b,)}

    class Critic(nn.Module):
        def __init__(self):
            super().__init__()
            self.inner = Critics(6, 8).double()

        def forward(self, obs, act):
            return self.inner(obs, torch.cat([act["a"], act["b"][0]], -1))

    one, actor, critic = batch_of(), Nest(), Critic()
    batch = one._replace(act={"a": one.act, "b": (one.act,)})
    torch.manual_seed(5)
    act_a, log_p_a = drawn(actor.a, batch.state.obs)
    act_b, log_p_b = drawn(actor.b, batch.state.obs)
    q = critic.inner(batch.state.obs, torch.cat([act_a, act_b], -1)).min(-1).values
    expected = (batch.weight * (log_p_a + log_p_b - q)).mean()
    torch.manual_seed(5)
    loss, _ = sac.actor_loss(batch, actor, critic, log_alpha=torch.zeros(()))
    exactly(loss, expected)
    assert sac.critic_loss(batch, actor, critic, target=critic, log_alpha=torch.zeros(()))[0].isfinite()


# TD3


@pytest.mark.parametrize("noise", [0.0, 0.2, 2.0])
def test_td3_losses_equal_transcriptions(noise):
    batch, actor, slow, critic, target = batch_of(), hard_actor(), hard_actor(1), critics(), critics(1)
    low, high = torch.tensor([-1.0, -3.0]).double(), torch.tensor([1.0, 5.0]).double()
    e = torch.randn(1, N, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(7))
    with torch.no_grad():
        unit = slow.policy(batch.next.obs).tanh() + (noise * e).clamp(-0.5, 0.5)
        act = torch.stack([unit[..., 0], 1 + 4 * unit[..., 1]], -1)
        act = torch.max(torch.min(act, high), low)
        y = batch.rew + batch.discount * target(batch.next.obs, act).min(-1).values
    expected = (batch.weight * ((critic(batch.state.obs, batch.act) - y[..., None]) ** 2).sum(-1)).mean() / 2

    args = {"target": target, "low": low, "high": high, "noise": noise}
    loss, info = td3.critic_loss(batch, slow, critic, generator=torch.Generator().manual_seed(7), **args)
    exactly(loss, expected)
    exactly(gradients(loss, critic), gradients(expected, critic))
    exactly(info["target"], y.mean())

    centre, scale = torch.tensor([0.0, 1.0]), torch.tensor([1.0, 4.0])
    q = critic(batch.state.obs, centre + scale * actor.policy(batch.state.obs).tanh())[..., 0]
    loss, info = td3.actor_loss(batch, actor, critic)
    exactly(loss, -(batch.weight * q).mean())
    exactly(gradients(loss, actor), gradients(-(batch.weight * q).mean(), actor))
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())
    exactly(info["q"], q.mean().detach())


def test_td3_without_noise_and_with_one_critic_is_ddpg():
    batch, slow, critic, target = batch_of(), hard_actor(1), critics(n=1), critics(1, n=1)
    slow.eval()
    act = slow(batch.next.obs)[0]
    y = batch.rew + batch.discount * target(batch.next.obs, act)[..., 0]
    expected = (batch.weight * (critic(batch.state.obs, batch.act)[..., 0] - y).square()).mean() / 2
    bounds = {"low": torch.tensor([-1.0, -3.0]), "high": torch.tensor([1.0, 5.0])}
    exactly(td3.critic_loss(batch, slow, critic, target=target, noise=0, **bounds)[0], expected.detach())


# Both


def losses_of(batch, seed=5):
    """Compute all losses of a batch, and their gradients."""
    torch.manual_seed(seed)
    actor, hard, critic, target = soft_actor(), hard_actor(), critics(), critics(1)
    log_alpha = torch.zeros((), dtype=torch.float64)
    yield from (
        (loss, gradients(loss, *modules))
        for loss, modules in [
            (sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)[0], [critic]),
            (sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)[0], [actor]),
            (td3.critic_loss(batch, hard, critic, target=target, low=-1.0, high=1.0)[0], [critic]),
            (td3.actor_loss(batch, hard, critic)[0], [hard]),
        ]
    )


def test_a_next_state_that_is_not_known_changes_no_bit():
    batch = batch_of()
    spoilt = nested.map(torch.clone, batch)
    ends = batch.discount[0] == 0
    assert 0 < ends.sum() < N
    spoilt.next.obs[0, ends] = math.nan
    for got, expected in zip(losses_of(spoilt), losses_of(batch), strict=True):
        assert all(map(torch.equal, nested.leaves(got), nested.leaves(expected)))


def test_a_learnt_reward_gets_no_gradient_from_the_targets():
    expected = list(losses_of(batch_of()))
    scale = torch.ones((), dtype=torch.float64, requires_grad=True)
    batch = batch_of()._replace(rew=batch_of().rew * scale)
    got = list(losses_of(batch))
    exactly(got, expected)
    for loss, _ in got:
        loss.backward()
    assert scale.grad is None


class Rounded(nn.Module):
    """Two critics in bfloat16, which has no number between 256 and 258; their values do not depend on the state."""

    def __init__(self):
        super().__init__()
        self.value = nn.Parameter(torch.tensor(256.0, dtype=torch.bfloat16))

    def forward(self, obs, act):
        return self.value.expand(*obs.shape[:2], 2)


def test_values_in_half_precision_are_compared_in_float32():
    critic, batch = Rounded(), batch_of(rew=torch.full((1, N), 0.25), discount=torch.ones(1, N), weight=torch.ones(N))
    loss, info = td3.critic_loss(batch, hard_actor(), critic, target=critic, low=-1.0, high=1.0)
    torch.testing.assert_close(loss, torch.tensor(0.25**2))
    torch.testing.assert_close(info["td_error"], torch.full((N,), 0.25))
    torch.testing.assert_close(info["target"], torch.tensor(256.25))
    assert td3.actor_loss(batch, hard_actor(), critic)[0].dtype == torch.float32


def test_actions_may_be_of_a_wider_dtype_than_observations():
    batch = nested.map(lambda x: x.float() if x.is_floating_point() else x, batch_of())
    wide = batch._replace(act=batch.act.double())
    actor, critic = hard_actor().float(), critics().float()
    options = {"target": critic, "low": -1.0, "high": 1.0, "noise": 0.0}
    expected, _ = td3.critic_loss(batch, actor, critic, **options)
    assert torch.equal(td3.critic_loss(wide, actor, critic, **options)[0], expected)


def test_losses_never_wait_for_the_device():
    batch = nested.map(lambda x: x.to("meta"), batch_of())
    actor, hard, critic = soft_actor().to("meta"), hard_actor().to("meta"), critics().to("meta")
    log_alpha = torch.zeros((), device="meta", requires_grad=True)
    loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
    sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-2.0).backward()
    loss.backward()
    sac.critic_loss(batch, actor, critic, target=critic, log_alpha=log_alpha)[0].backward()
    bounds = {"low": actor.centre - actor.scale, "high": actor.centre + actor.scale}
    td3.critic_loss(batch, hard, critic, target=critic, **bounds)[0].backward()
    td3.actor_loss(batch, hard, critic)[0].backward()


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"noise": -1.0}, ValueError, "`noise` must be a number >= 0, got -1.0"),
        ({"high": math.inf}, ValueError, "`high` must be finite"),
        ({"low": np.float32(-np.inf)}, ValueError, "`low` must be finite"),
        ({"noise_clip": math.nan}, ValueError, "`noise_clip` must be a number >= 0"),
        ({"target_actor": Dense(recurrent=True)}, ValueError, r"Dense has a recurrent state.*sequences"),
        (
            {"critic": lambda obs, act: obs[..., 0]},
            ValueError,
            r"must return \(1, N, n\) = \(1, 12, 'n'\).*got",
        ),
        ({"batch": random_batch()}, TypeError, "for the real actions of a Box, got torch.int64"),
    ],
)
def test_td3_names_what_is_wrong(change, error, message):
    args = {"batch": batch_of(), "target_actor": hard_actor(), "critic": critics(), "low": -1.0, "high": 1.0} | change
    call = partial(td3.critic_loss, target=critics(), **args)
    with pytest.raises(error, match=message):
        call()


def test_sac_names_an_action_that_is_not_of_the_policy():
    actor = soft_actor()
    plain = actor.forward
    actor.forward = lambda *args, **rest: (*plain(*args, **rest)[:2], {"mean": torch.zeros(1, N, 2)})
    with pytest.raises(ValueError, match="lacks 'log_std'"):
        sac.actor_loss(batch_of(), actor, critics(), log_alpha=torch.zeros(()))


class Flat(nn.Module):
    """A critic that lacks the dimension of the critics."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(4, 1).double()

    def forward(self, obs, act):
        return self.linear(torch.cat([obs, act], -1)).squeeze(-1)


@pytest.mark.parametrize(
    "loss",
    [
        lambda batch, log_alpha: sac.actor_loss(batch, soft_actor(), Flat(), log_alpha=log_alpha),
        lambda batch, log_alpha: sac.critic_loss(batch, soft_actor(), critics(), target=Flat(), log_alpha=log_alpha),
        lambda batch, log_alpha: td3.actor_loss(batch, hard_actor(), Flat()),
        lambda batch, log_alpha: td3.critic_loss(batch, hard_actor(), critics(), target=Flat(), low=-1.0, high=1.0),
    ],
    ids=["sac actor", "sac target", "td3 actor", "td3 target"],
)
def test_a_critic_without_its_last_dimension_is_refused_by_every_loss(loss):
    with pytest.raises(ValueError, match=r"must return \(1, N, n\) = \(1, 12, 'n'\).*got \(1, 12\)"):
        loss(batch_of(), torch.zeros(()))


def test_sac_refuses_actions_that_are_not_real():
    with pytest.raises(TypeError, match=r"real actions of a Box, but `act` of the actor is torch.int64"):
        sac.actor_loss(random_batch(), Dense(), Flat(), log_alpha=torch.zeros(()))


def test_sac_refuses_actions_without_a_gradient():
    batch, actor = batch_of(), GaussianActorCritic(mlp(2, 8, 2), mlp(2, 8, 1), 2).double()
    how = {"log_alpha": torch.zeros(())}
    with pytest.raises(ValueError, match="The actions of GaussianActorCritic have no gradient to its parameters"):
        sac.actor_loss(batch, actor, critics(), **how)
    sac.critic_loss(batch, actor, critics(), target=critics(), **how)  # which needs none
    sac.actor_loss(batch, actor.requires_grad_(False), critics(), **how)


def test_td3_takes_bounds_as_arrays():
    batch, actor, critic = batch_of(), hard_actor(), critics()
    bounds = np.array([-1.0, -3.0], np.float32), np.array([1.0, 5.0], np.float32)
    losses = []
    for low, high in (bounds, map(torch.as_tensor, bounds)):
        how = {"low": low, "high": high, "generator": torch.Generator().manual_seed(0)}
        losses.append(td3.critic_loss(batch, actor, critic, target=critic, **how)[0])
    assert torch.equal(*losses)


# The actors


def test_actors_keep_to_the_bounds_and_are_deterministic_in_eval_mode():
    obs = 100 * torch.randn(1, 1000, 2, dtype=torch.float64)
    for actor in (soft_actor(), hard_actor()):
        act, _, _ = actor(obs)
        assert (act >= torch.tensor([-1.0, -3.0])).all()
        assert (act <= torch.tensor([1.0, 5.0])).all()
        actor.eval()
        exactly(actor(obs)[0], actor(obs)[0])
    act, _, info = hard_actor().eval()(obs)
    exactly(act, info["mean"])


def test_actors_draw_from_their_own_generator():
    obs = torch.randn(1, 5, 2, dtype=torch.float64)
    for make in (soft_actor, hard_actor):
        actors = [copy.deepcopy(make()) for _ in range(2)]
        for actor in actors:
            actor.generator = torch.Generator().manual_seed(3)
        exactly(*[actor(obs)[0] for actor in actors])


@pytest.mark.parametrize("low", [-math.inf, 6.0])
def test_bounds_that_are_no_bounds_are_refused(low):
    with pytest.raises(ValueError, match="`low` and `high` must be finite"):
        soft_actor(low=[-1.0, low])


def test_no_bound_is_passed_by_rounding():
    low = torch.randn(10_000)
    high = low + 0.01 + 3 * torch.rand(10_000)
    low[0], high[0] = -3e38, 3e38
    for kind, n in ((SquashedGaussian, 2), (Deterministic, 1)):
        actor = kind(mlp(1, n * 10_000), low, high).eval()
        for sign in (-1.0, 1.0):
            with torch.no_grad():
                actor.policy[0].bias.fill_(100 * sign)
            act, _, _ = actor(torch.zeros(1, 1, 1))
            assert ((low <= act) & (act <= high)).all()
            torch.testing.assert_close(act[0, 0], high if sign > 0 else low)
