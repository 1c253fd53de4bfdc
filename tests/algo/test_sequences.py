"""SAC and TD3 over sequences, with recurrent actors and critics, against loops over rows and environments."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from rlplay import nested
from rlplay.algo import sac, td3
from rlplay.engine import Final
from rlplay.zoo.actors import mlp
from rlplay.zoo.continuous import Critics, Deterministic, RecurrentCritics, SquashedGaussian
from tests.support.fragments import gradients, made_sticky, random_fragment

exactly = partial(torch.testing.assert_close, rtol=1e-9, atol=1e-9)
BOUNDS = LOW, HIGH = [-1.0, -3.0], [1.0, 5.0]
GAMMA, LOG_ALPHA = 0.9, torch.tensor(-0.7, dtype=torch.float64)
LOSSES = {"log_alpha": LOG_ALPHA}


def soft_actor(seed=0):
    """Draw nothing: in eval mode the action is that of the mean."""
    torch.manual_seed(seed)
    return SquashedGaussian(mlp(6, 8, 4), *BOUNDS, core=nn.GRU(2, 6)).double().eval()


def hard_actor(seed=0):
    torch.manual_seed(seed)
    return Deterministic(mlp(6, 8, 2), *BOUNDS, core=nn.GRU(2, 6)).double().eval()


def critics(seed=0):
    torch.manual_seed(seed + 10)
    return RecurrentCritics(nn.GRU(4, 5), 2, 8).double()


def fragments():
    yield random_fragment(0, recurrent=True, box=True)
    yield made_sticky(random_fragment(1, recurrent=True, box=True))
    fragment = random_fragment(2, recurrent=True, box=True)
    yield fragment._replace(env=fragment.env._replace(final=()))


each_fragment = pytest.mark.parametrize("fragment", list(fragments()), ids=["ends", "sticky", "without final"])


def run(core, x, x_final, fragment, hx, burn_in=0):
    """Return the outputs of a recurrent layer for each row of each environment, and for each last state."""
    rows, after = [], []
    for t in range(len(x)):
        if t == burn_in:
            hx = hx.detach()
        hx = torch.where(fragment.state.fin[t][None, :, None], 0, hx)
        out, hx = core(x[t : t + 1], hx)
        rows.append(out[0])
        after.append(hx)
    final, lasts = fragment.env.final, []
    for k in range(len(final.t) if isinstance(final, Final) else 0):
        t, b = final.t[k], final.b[k]
        lasts.append(core(x_final[None, k : k + 1], after[t][:, b : b + 1].contiguous())[0][0, 0])
    return torch.stack(rows), lasts


def actor_rows(actor, fragment, burn_in=0):
    final = fragment.env.final
    return run(actor.core, fragment.state.obs, getattr(final, "obs", None), fragment, fragment.hx, burn_in)


def memory_rows(critic, fragment, burn_in=0):
    state, final = fragment.state, fragment.env.final
    x_final = None
    if isinstance(final, Final):
        x_final = torch.cat([final.obs, state.act[final.t + 1, final.b]], -1)
    hx = torch.zeros(1, state.fin.shape[1], 5, dtype=torch.float64)
    hx = torch.zeros(1, state.fin.shape[1], 5, dtype=torch.float64)
    before = torch.where(state.fin[..., None], 0, state.act)  # an action of the previous episode is not remembered
    return run(critic.memory.core, torch.cat([state.obs, before], -1), x_final, fragment, hx, burn_in)


def soft(actor, features):
    """Return the action of the mean, and its log-density."""
    mean, log_std = actor.policy(features).chunk(2, -1)
    unit = mean.tanh()
    log_p = torch.distributions.Normal(mean, log_std.exp()).log_prob(mean).sum(-1) - (1 - unit**2).log().sum(-1)
    return actor.centre + actor.scale * unit, log_p


def hard(actor, features):
    return actor.centre + actor.scale * actor.policy(features).tanh(), 0.0


def q_of(critic, features, act):
    return torch.stack([one(torch.cat([features, act], -1))[..., 0] for one in critic.each], -1)


def targets(fragment, actor, target, react, alpha, burn_in=0):
    """Return `y` of each transition, computed one by one."""
    with torch.no_grad():
        (rows, lasts), (features, last_features) = actor_rows(actor, fragment), memory_rows(target, fragment)

        def value(h, z):
            act, log_p = react(actor, h)
            return (q_of(target, z, act).amin(-1) - alpha * log_p).item()

        env, y = fragment.env, torch.zeros_like(fragment.state.rew[1:], dtype=torch.float64)
        for t, b in [(t, b) for t in range(len(y)) for b in range(y.shape[1])]:
            y[t, b] = fragment.state.rew[t + 1, b]
            if env.terminated[t, b] or not env.valid[t, b]:
                continue
            if not env.truncated[t, b]:
                y[t, b] += GAMMA * value(rows[t + 1, b], features[t + 1, b])
            elif isinstance(env.final, Final):
                (k,) = ((env.final.t == t) & (env.final.b == b)).nonzero()[0]
                y[t, b] += GAMMA * value(lasts[k], last_features[k])
    return y


KINDS = {
    "SAC": (soft_actor, soft, LOG_ALPHA.exp(), sac, LOSSES),
    "TD3": (
        hard_actor,
        hard,
        0.0,
        td3,
        {"low": torch.tensor(BOUNDS[0]), "high": torch.tensor(BOUNDS[1]), "noise": 0.0},
    ),
}


@each_fragment
@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_critic_losses_equal_a_loop_over_transitions(kind, burn_in, fragment):
    make, react, alpha, module, options = KINDS[kind]
    actor, critic, target = make(), critics(), critics(1)
    weight = torch.rand(fragment.state.fin.shape[1], dtype=torch.float64)
    y, valid = targets(fragment, actor, target, react, alpha)[burn_in:], fragment.env.valid[burn_in:]
    features, _ = memory_rows(critic, fragment, burn_in)
    q = q_of(critic, features[burn_in:-1], fragment.state.act[1 + burn_in :])
    expected = ((q - y[..., None]) ** 2).sum(-1) / 2 * weight
    expected = expected[valid].sum() / valid.sum()

    loss, info = module.sequence_critic_loss(
        fragment, actor, critic, target=target, gamma=GAMMA, weight=weight, burn_in=burn_in, **options
    )
    exactly(loss, expected)
    exactly(gradients(loss, critic), gradients(expected, critic))
    assert all((x == 0).all() for one in (actor, target) for x in gradients(loss, one))
    exactly(info["td_error"], ((y - q.mean(-1)) * valid).detach())
    exactly([info["q"], info["target"]], [q.mean(-1)[valid].mean().detach(), y[valid].mean()])


@each_fragment
@pytest.mark.parametrize("burn_in", [0, 3])
@pytest.mark.parametrize("kind", KINDS)
def test_actor_losses_equal_transcriptions(kind, burn_in, fragment):
    make, react, alpha, module, _ = KINDS[kind]
    actor, critic, valid = make(), critics(), fragment.env.valid[burn_in:]
    weight = torch.rand(valid.shape, dtype=torch.float64)
    rows, _ = actor_rows(actor, fragment, burn_in)
    features = memory_rows(critic, fragment)[0].detach()
    act, log_p = react(actor, rows[burn_in:-1])
    q = q_of(critic, features[burn_in:-1], act)
    q = q.amin(-1) if kind == "SAC" else q[..., 0]
    expected = ((alpha * log_p - q) * weight)[valid].sum() / valid.sum()

    more = LOSSES if kind == "SAC" else {}
    loss, info = module.sequence_actor_loss(fragment, actor, critic, weight=weight, burn_in=burn_in, **more)
    exactly(loss, expected)
    exactly(gradients(loss, actor), gradients(expected, actor))
    loss.backward()
    assert all(p.grad is None for p in critic.parameters())
    exactly(info["q"], q[valid].mean().detach())
    if kind == "SAC":
        exactly(info["log_p"][valid], log_p[valid].detach())
        exactly(info["entropy"], -log_p[valid].mean().detach())
        log_alpha = torch.zeros((), dtype=torch.float64, requires_grad=True)
        sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-2.0, valid=info["valid"]).backward()
        exactly(log_alpha.grad, -(log_p[valid].mean() - 2).detach())


def test_without_memories_a_sequence_gives_the_losses_of_its_transitions():
    """Of one step each, so that the transitions of a replay buffer are the same."""
    from rlplay.replay import Uniform

    fragment = random_fragment(3, T=6, box=True)._replace(actor=())
    fragment = nested.map(lambda x: x.float() if x.is_floating_point() else x, fragment)
    fragment = fragment._replace(env=fragment.env._replace(final=fragment.env.final._replace(actor=())))
    buffer = Uniform(100)
    buffer.commit(fragment)
    torch.manual_seed(0)
    actor = SquashedGaussian(mlp(2, 8, 4), *BOUNDS).eval()
    critic, target = (Critics(4, 8) for _ in range(2))
    (batch,) = buffer.epoch(24, gamma=GAMMA)
    assert len(batch.ids) == 24
    log_alpha = LOG_ALPHA.float()
    one, _ = sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)
    other, _ = sac.sequence_critic_loss(fragment, actor, critic, target=target, log_alpha=log_alpha, gamma=GAMMA)
    torch.testing.assert_close(one, other)
    one, _ = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
    other, _ = sac.sequence_actor_loss(fragment, actor, critic, log_alpha=log_alpha)
    torch.testing.assert_close(one, other)


def test_what_is_not_valid_changes_no_bit():
    fragment = made_sticky(random_fragment(1, recurrent=True, box=True))
    unused = ~fragment.env.valid
    assert unused.any()
    state = fragment.state
    obs, act = state.obs.clone(), state.act.clone()
    obs[:-1][unused & state.fin[1:]] = float("nan")
    act[1:][unused] = float("nan")
    spoilt = fragment._replace(state=state._replace(obs=obs, act=act))

    def losses(fragment):
        actor, critic, options = soft_actor(), critics(), {"log_alpha": LOG_ALPHA}
        one = sac.sequence_critic_loss(fragment, actor, critic, target=critics(1), gamma=GAMMA, **options)[0]
        other = sac.sequence_actor_loss(fragment, actor, critic, **options)[0]
        return [one.detach(), other.detach(), *gradients(one, critic), *gradients(other, actor)]

    for x, y in zip(losses(fragment), losses(spoilt), strict=True):
        assert torch.equal(x, y)


@pytest.mark.parametrize("kind", KINDS)
def test_padding_is_an_action_for_which_the_critic_is_defined(kind):
    class Directed(RecurrentCritics):
        def forward(self, rows, act):
            return super().forward(rows, act / act.norm(dim=-1, keepdim=True))  # NaN where the action is zero

    make, _, _, module, options = KINDS[kind]
    fragment, critic = made_sticky(random_fragment(1, recurrent=True, box=True)), Directed(nn.GRU(4, 5), 2, 8).double()
    loss, _ = module.sequence_critic_loss(fragment, make(), critic, target=critics(1), gamma=GAMMA, **options)
    assert all(x.isfinite().all() for x in gradients(loss, critic))


@pytest.mark.parametrize("kind", KINDS)
def test_values_in_half_precision_are_averaged_in_float32(kind):
    """Of several hundred transitions, whose errors alternate: a sum in bfloat16 would be far off."""
    make, _, _, module, options = KINDS[kind]
    critic = Critics(4, 8).bfloat16()
    plain = critic.forward
    critic.forward = lambda obs, act: plain(obs.bfloat16(), act.bfloat16())
    fragment = random_fragment(5, T=64, B=8, recurrent=True, box=True)
    loss, info = module.sequence_critic_loss(fragment, make(), critic, target=critic, gamma=GAMMA, **options)
    with torch.no_grad():
        q = critic(fragment.state.obs[:-1], fragment.state.act[1:]).double()
    y = info["td_error"].double() + q.mean(-1)
    torch.testing.assert_close(loss.double(), ((q - y.unsqueeze(-1)) ** 2).sum(-1).mean() / 2, rtol=1e-5, atol=0)
    torch.testing.assert_close(info["q"].double(), q.mean(), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("kind", KINDS)
def test_a_critic_is_not_called_for_no_last_states(kind):
    """Not every network accepts an empty batch: here the last size would be ambiguous."""

    class Reshaping(Critics):
        def forward(self, rows, act):
            return super().forward(rows, act).view(*act.shape[:2], -1)

    make, _, _, module, options = KINDS[kind]
    fragment = random_fragment(0, recurrent=True, box=True)
    fragment = fragment._replace(state=fragment.state._replace(fin=torch.zeros_like(fragment.state.fin)))
    over, final = torch.zeros_like(fragment.env.valid), nested.map(lambda x: x[:0], fragment.env.final)
    fragment = fragment._replace(env=fragment.env._replace(terminated=over, truncated=over, final=final))
    critic, without = Reshaping(4, 8).double(), fragment._replace(env=fragment.env._replace(final=()))
    args = {"target": critic, "gamma": GAMMA, **options}
    loss, _ = module.sequence_critic_loss(fragment, make(), critic, **args)
    exactly(loss, module.sequence_critic_loss(without, make(), critic, **args)[0])


class Parallel(DistributedDataParallel):
    """Calls its module as its base class does, without a process group."""

    def __init__(self, module):
        nn.Module.__init__(self)
        self.module = module

    def forward(self, *args):
        return self.module(*args)


class Compiled(nn.Module):
    """Calls its module as what `torch.compile` returns."""

    def __init__(self, module):
        super().__init__()
        self._orig_mod = module

    def forward(self, *args):
        return self._orig_mod(*args)


@pytest.mark.parametrize("wrap", [Parallel, lambda module: Compiled(Parallel(module))])
@pytest.mark.parametrize("kind", KINDS)
def test_a_memory_is_used_in_a_critic_that_is_wrapped(kind, wrap):
    """Without its memory the critic would take the observations, which are as wide as its features."""
    make, _, _, module, options = KINDS[kind]
    fragment, critic = random_fragment(0, recurrent=True, box=True), RecurrentCritics(nn.GRU(4, 2), 2, 8).double()
    args = {"target": critic, "gamma": GAMMA, **options}
    expected, _ = module.sequence_critic_loss(fragment, make(), critic, **args)
    loss, _ = module.sequence_critic_loss(fragment, make(), wrap(critic), **args)
    exactly(loss, expected)
    exactly(gradients(loss, critic), gradients(expected, critic))


@pytest.mark.parametrize("weight", [torch.ones(3), torch.ones(9, 1)])
def test_weights_of_another_shape_are_refused(weight):
    with pytest.raises(ValueError, match=r"`weight` must be \(T, B\) = \(9, 4\) or \(B,\) = \(4,\), got"):
        sac.sequence_actor_loss(
            random_fragment(0, recurrent=True, box=True), soft_actor(), critics(), weight=weight, **LOSSES
        )


def test_critics_of_another_form_are_refused():
    class Flat(RecurrentCritics):
        def forward(self, rows, act):
            return super().forward(rows, act)[..., 0]

    critic = Flat(nn.GRU(4, 5), 2, 8).double()
    with pytest.raises(ValueError, match=r"must return \(n_seq, B, n\) = \(9, 4, 'n'\), the values of n critics"):
        sac.sequence_actor_loss(random_fragment(0, recurrent=True, box=True), soft_actor(), critic, **LOSSES)
