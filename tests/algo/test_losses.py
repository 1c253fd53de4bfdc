"""PPO, V-trace and Q-learning against transcriptions of their formulas; properties that all losses have."""

from __future__ import annotations

import math
from functools import partial

import numpy as np
import pytest
import torch
from torch.distributions import Categorical, Normal

from rlplay import nested
from rlplay.algo import a2c, dqn, ppo, unroll, vtrace
from rlplay.engine import State
from rlplay.replay import Batch
from tests.support.fragments import Dense, Table, ended, fragment_of, gradients, made_sticky, random_fragment

ACTOR_CRITIC = {"a2c": a2c.loss, "ppo": ppo.loss, "vtrace": vtrace.loss}
LOSSES = {**ACTOR_CRITIC, "dqn": dqn.loss}
GAMMA = 0.9

every = pytest.mark.parametrize("loss", [partial(f, gamma=GAMMA) for f in LOSSES.values()], ids=LOSSES)
each_actor_critic = pytest.mark.parametrize(
    "loss", [partial(f, gamma=GAMMA) for f in ACTOR_CRITIC.values()], ids=ACTOR_CRITIC
)
recurrence = pytest.mark.parametrize("recurrent", [False, True], ids=["", "recurrent"])
kinds = pytest.mark.parametrize("box", [False, True], ids=["discrete", "box"])


def assert_same_loss_and_gradients(got, expected, actor):
    torch.testing.assert_close(got, expected)
    for x, y in zip(gradients(got, actor), gradients(expected, actor), strict=True):
        torch.testing.assert_close(x, y)


def log_probabilities(info, act):
    """Return the log-probabilities of actions ``(T, B)`` and the entropies, by torch's distributions."""
    if act.is_floating_point():
        policy = Normal(info["mean"], info["log_std"].exp())
        return policy.log_prob(act).sum(-1), policy.entropy().sum(-1)
    policy = Categorical(logits=info["logits"])
    return policy.log_prob(act), policy.entropy()


def first(info, T):
    return nested.map(lambda x: x[:T], info)


def columns(fragment, value, last):
    """Yield the transitions of each column, backward: t, b, the reward, the next value, whether something follows."""
    final = fragment.env.final
    lasts = dict(zip(zip(final.t.tolist(), final.b.tolist(), strict=True), last.tolist(), strict=True))
    T, B = fragment.env.valid.shape
    for b in range(B):
        for t in reversed(range(T)):
            over = bool(fragment.state.fin[t + 1, b])
            ahead = value[t + 1, b].item()
            if over:
                ahead = 0.0 if fragment.env.terminated[t, b] else lasts[t, b]
            yield t, b, fragment.state.rew[t + 1, b].item(), ahead, not over and t + 1 < T


# Transcriptions


@recurrence
@kinds
@pytest.mark.parametrize(("r_bar", "c_bar"), [(1.0, 1.0), (None, 0.7), (1.3, None), (0.0, 1.0)])
def test_vtrace_loss_equals_a_transcription(recurrent, box, r_bar, c_bar):
    fragment, actor = random_fragment(1, recurrent=recurrent, box=box), Dense(recurrent)
    T, act = len(fragment.env.valid), fragment.state.act[1:]
    info, _, final = unroll(fragment, actor)
    log_p, entropy = log_probabilities(first(info, T), act)
    log_mu, _ = log_probabilities(first(fragment.actor, T), act)
    ratio, v = (log_p - log_mu).exp().detach(), info["value"]

    policy = critic = 0.0
    target = target_ahead = 0.0
    for t, b, rew, ahead, follows in columns(fragment, v.detach(), final["value"]):
        here = v[t, b].item()
        rho = min(ratio[t, b].item(), math.inf if r_bar is None else r_bar)
        c = min(ratio[t, b].item(), math.inf if c_bar is None else c_bar)
        target_ahead = target if follows else ahead
        target = here + rho * (rew + GAMMA * ahead - here) + GAMMA * c * (target_ahead - ahead)
        policy = policy - rho * log_p[t, b] * (rew + GAMMA * target_ahead - here)
        critic = critic + (target - v[t, b]) ** 2
    expected = (policy + 0.4 * critic - 0.03 * entropy.sum()) / entropy.numel()

    weights = {"value_weight": 0.4, "entropy_weight": 0.03}
    loss, info = vtrace.loss(fragment, actor, gamma=GAMMA, r_bar=r_bar, c_bar=c_bar, **weights)
    assert_same_loss_and_gradients(loss, expected, actor)
    torch.testing.assert_close(info["kl"], -ratio.log().mean())
    torch.testing.assert_close(info["rho"], ratio.clamp(max=math.inf if r_bar is None else r_bar).mean())


@recurrence
@kinds
@pytest.mark.parametrize("clip", [0.05, 0.3, 10.0])
@pytest.mark.parametrize("normalise", [False, True])
def test_ppo_loss_equals_a_transcription(recurrent, box, clip, normalise):
    fragment, actor = random_fragment(2, recurrent=recurrent, box=box), Dense(recurrent)
    T, act = len(fragment.env.valid), fragment.state.act[1:]
    info, then, C = first(unroll(fragment, actor).info, T), fragment.actor, 0.8
    log_p, entropy = log_probabilities(info, act)
    ratio = (log_p - log_probabilities(first(then, T), act)[0]).exp()

    advantage, later = torch.zeros_like(entropy), 0.0
    for t, b, rew, ahead, follows in columns(fragment, then["value"], fragment.env.final.actor["value"]):
        later = rew + GAMMA * ahead - then["value"][t, b] + GAMMA * C * (later if follows else 0.0)
        advantage[t, b] = later
    target = advantage.detach() + then["value"][:T]
    if normalise:
        advantage = (advantage - advantage.mean()) / advantage.std(correction=0)
    clipped = torch.where(ratio > 1 + clip, 1 + clip, torch.where(ratio < 1 - clip, 1 - clip, ratio))
    policy = -torch.minimum(ratio * advantage.detach(), clipped * advantage.detach()).mean()
    expected = policy + 0.4 * (target - info["value"]).square().mean() - 0.03 * entropy.mean()

    weights = {"value_weight": 0.4, "entropy_weight": 0.03}
    loss, info = ppo.loss(fragment, actor, gamma=GAMMA, C=C, clip=clip, normalise=normalise, **weights)
    assert_same_loss_and_gradients(loss, expected, actor)
    torch.testing.assert_close(info["clipped"], (clipped != ratio).double().mean())
    torch.testing.assert_close(info["kl"], (ratio - 1 - ratio.log()).mean().detach())


@recurrence
@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("with_target", [False, True])
@pytest.mark.parametrize(("n", "huber"), [(1, 1.0), (1, None), (3, 0.1), (None, 0.5)])
def test_dqn_loss_equals_a_transcription(recurrent, double, with_target, n, huber):
    fragment, actor = random_fragment(3, recurrent=recurrent), Dense(recurrent)
    target = Dense(recurrent, seed=1) if with_target else actor
    T, act = len(fragment.env.valid), fragment.state.act[1:]
    online, _, last = unroll(fragment, actor)
    theirs, _, theirs_last = unroll(fragment, target)

    def value(chooses, evaluates):
        if not double:
            return evaluates["q"].max(-1).values.detach()
        return evaluates["q"].gather(-1, chooses["q"].argmax(-1, keepdim=True)).squeeze(-1).detach()

    v, weight = value(online, theirs), torch.rand(T, 4, dtype=torch.float64)
    y = torch.zeros(T, 4, dtype=torch.float64)
    ahead = {
        (t, b): (rew, later, follows) for t, b, rew, later, follows in columns(fragment, v, value(last, theirs_last))
    }
    for t, b in ahead:
        discount, at = 1.0, t
        for _ in range(n or T):
            rew, later, follows = ahead[at, b]
            y[t, b] += discount * rew
            discount, at = discount * GAMMA, at + 1
            if not follows:
                break
        y[t, b] += discount * later
    error = online["q"][:T].gather(-1, act.unsqueeze(-1)).squeeze(-1) - y
    size = error.abs()
    huber_ = math.inf if huber is None else huber
    each = torch.where(size <= huber_, error**2 / 2, min(huber_, 1e9) * (size - min(huber_, 1e9) / 2))

    args = {"gamma": GAMMA, "target": target if with_target else None, "double": double, "huber": huber}
    loss, info = dqn.loss(fragment, actor, n_lookahead=n, weight=weight, **args)
    assert_same_loss_and_gradients(loss, (weight * each).mean(), actor)
    torch.testing.assert_close(info["td_error"], -error.detach())
    assert gradients(loss, actor)[0].abs().max() > 0
    by_column, _ = dqn.loss(fragment, actor, n_lookahead=n, weight=weight[0], **args)
    assert_same_loss_and_gradients(by_column, (weight[0] * each).mean(), actor)


# Replayed transitions


def batch_of(fragment):
    """Make a batch of all transitions of a fragment without ends."""
    T, B = fragment.env.valid.shape

    def rows(x):
        return x.reshape(1, T * B, *x.shape[2:])

    state, following = (nested.map(lambda x, s=s: rows(x[s]), fragment.state) for s in (slice(-1), slice(1, None)))
    nothing = torch.zeros(T * B, dtype=torch.int64)
    discount = torch.full((1, T * B), GAMMA)
    return Batch(State(*state), following.act, following.rew, discount, State(*following), nothing, torch.ones(T * B))


@pytest.mark.parametrize("double", [False, True])
@pytest.mark.parametrize("huber", [None, 0.3])
@pytest.mark.parametrize("with_target", [False, True])
def test_replayed_transitions_are_those_of_the_fragment(double, huber, with_target):
    fragment = random_fragment(4)
    for flags in (fragment.state.fin, fragment.env.terminated, fragment.env.truncated):
        flags.zero_()
    fragment = fragment._replace(env=fragment.env._replace(final=()))
    actor, target = Dense(), Dense(seed=1) if with_target else None
    args = {"target": target, "double": double, "huber": huber}
    expected, info = dqn.loss(fragment, actor, gamma=GAMMA, **args)
    batch = batch_of(fragment)
    loss, got = dqn.replayed(batch, actor, **args)
    assert_same_loss_and_gradients(loss, expected, actor)
    torch.testing.assert_close(got["td_error"], info["td_error"].flatten())
    torch.testing.assert_close([got["q"], got["target"]], [info["q"], info["target"]])

    weight = torch.rand(len(batch.weight))
    weighted, _ = dqn.replayed(batch._replace(weight=weight), actor, **args)
    assert_same_loss_and_gradients(
        weighted, dqn.loss(fragment, actor, gamma=GAMMA, weight=weight.view(9, 4), **args)[0], actor
    )


def test_replayed_dqn_ignores_the_next_state_where_the_discount_is_zero():
    actor, batch = Dense(), batch_of(random_fragment(4))
    unknown = batch.next._replace(obs=torch.full_like(batch.next.obs, math.nan))
    batch = batch._replace(discount=torch.zeros_like(batch.discount), next=unknown)
    loss, info = dqn.replayed(batch, actor)
    assert all(x.isfinite().all() for x in gradients(loss, actor))
    q = actor.step(*batch.state, hx=(), virtual=True)[2]["q"].gather(-1, batch.act[..., None])
    torch.testing.assert_close(info["td_error"], (batch.rew - q[..., 0])[0].detach())


def test_a_recurrent_network_needs_sequences():
    with pytest.raises(ValueError, match=r"Dense has a recurrent state.*sequences"):
        dqn.replayed(batch_of(random_fragment(4)), Dense(recurrent=True))


# Minibatches


@recurrence
def test_one_ppo_minibatch_is_the_fragment(recurrent):
    fragment, actor = random_fragment(5, recurrent=recurrent), Dense(recurrent)
    expected, info = ppo.loss(fragment, actor, gamma=GAMMA)
    ((loss, got),) = ppo.losses(fragment, actor, gamma=GAMMA, n_epochs=1, n_minibatches=1)
    assert_same_loss_and_gradients(loss, expected, actor)
    torch.testing.assert_close(got, info)


def test_the_numbers_of_epochs_and_minibatches_may_be_those_of_numpy():
    options = {"n_epochs": np.int64(2), "n_minibatches": np.int32(3)}
    assert len(list(ppo.losses(random_fragment(5), Dense(), gamma=GAMMA, **options))) == 6


@recurrence
@kinds
@pytest.mark.parametrize("n", [3, 4])
def test_minibatches_are_a_partition(recurrent, box, n):
    fragment, actor = made_sticky(random_fragment(6, B=6, recurrent=recurrent, box=box)), Dense(recurrent)
    whole = [ppo.loss(fragment, actor, gamma=GAMMA, normalise=True)[0]]
    generator = torch.Generator().manual_seed(0)
    args = {"gamma": GAMMA, "normalise": True, "n_epochs": 2, "n_minibatches": n, "generator": generator}
    parts = list(ppo.losses(fragment, actor, **args))
    assert len(parts) == 2 * n
    # each loss is a mean: weighted by the counts of valid transitions, they add up to the whole
    counts = _counts(fragment, n, recurrent, torch.Generator().manual_seed(0))
    for epoch in (0, 1):
        some = slice(epoch * n, epoch * n + n)
        total = sum(count * loss for count, (loss, _) in zip(counts[some], parts[some], strict=True))
        assert_same_loss_and_gradients(total / fragment.env.valid.sum(), whole[0], actor)
    assert not torch.equal(parts[0][0], parts[n][0])


def _counts(fragment, n, recurrent, generator):
    """Return how many valid transitions each of the minibatches of two epochs has."""
    valid, found = fragment.env.valid, []
    for _ in range(2):
        order = torch.randperm(valid.shape[1] if recurrent else valid.numel(), generator=generator)
        pool = valid if recurrent else valid.reshape(1, -1)
        found += [pool[:, chosen].sum() for chosen in order.tensor_split(n)]
    return found


def test_each_minibatch_is_computed_with_the_current_weights():
    fragment, actor = random_fragment(7), Dense()
    seen = []
    for _, info in ppo.losses(fragment, actor, gamma=GAMMA, n_epochs=3, n_minibatches=1):
        seen.append(info["kl"].item())
        with torch.no_grad():
            actor.head.weight[0] += 0.1
    assert len(set(seen)) == 3


@pytest.mark.parametrize(
    ("args", "error", "message"),
    [
        ({"n_minibatches": 0}, ValueError, "`n_minibatches` must be from 1 to the fragment's 36 transitions.*got 0"),
        ({"n_minibatches": 37}, ValueError, "36 transitions.*got 37"),
        ({"n_epochs": -1}, ValueError, "`n_epochs` at least 0"),
        ({"n_epochs": 2.0}, TypeError, "must be integers, got 2.0"),
        ({"clip": 0.0}, ValueError, "`clip` must be a number > 0, got 0.0"),
        ({"gamma": 1.1}, ValueError, "`gamma`"),
    ],
)
def test_wrong_minibatches_are_named_at_the_call(args, error, message):
    with pytest.raises(error, match=message):
        ppo.losses(random_fragment(5), Dense(), **{"gamma": GAMMA, **args})


# What all losses have in common


@every
@recurrence
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_changes_neither_losses_nor_gradients(loss, recurrent, garbage):
    fragment, actor = made_sticky(random_fragment(8, recurrent=recurrent)), Dense(recurrent)
    valid = fragment.env.valid
    spoilt, unused = nested.map(torch.clone, fragment), ~valid
    assert 0 < unused.sum() < valid.numel()
    spoilt.state.obs[:-1][unused] = garbage
    spoilt.state.obs[-1][unused[-1]] = garbage
    spoilt.state.rew[1:][unused] = garbage
    spoilt.state.act[1:][unused] = 10**12
    for said in spoilt.actor.values():
        said[:-1][unused] = garbage

    expected, info = loss(fragment, actor)
    got, spoilt_info = loss(spoilt, actor)
    assert got.isfinite()
    assert all(map(torch.equal, gradients(got, actor), gradients(expected, actor)))
    torch.testing.assert_close((got, spoilt_info), (expected, info), rtol=0, atol=0)

    # the mean is over the valid transitions alone: more padding counts for nothing
    longer = fragment._replace(
        state=nested.map(lambda x: torch.cat([x, x[-1:]]), fragment.state),
        actor=nested.map(lambda x: torch.cat([x, x[-1:]]), fragment.actor),
        env=nested.map(lambda x: torch.cat([x, x[-1:]]), fragment.env._replace(final=()))._replace(
            final=fragment.env.final
        ),
    )
    ends = fragment.state.fin[-1]
    assert ends.all()
    longer.env.valid[-1] = False
    assert_same_loss_and_gradients(loss(longer, actor)[0], expected, actor)


@every
@recurrence
def test_a_look_ahead_row_behind_an_end_changes_no_bit(loss, recurrent):
    """In the NEXT_STEP mode it holds the last observation, which a simulator that has diverged fills with NaN."""
    fragment, actor = random_fragment(8, recurrent=recurrent), Dense(recurrent)
    spoilt, ended = nested.map(torch.clone, fragment), fragment.state.fin[-1]
    assert 0 < ended.sum() < len(ended)
    spoilt.state.obs[-1][ended] = math.nan
    expected, got = loss(fragment, actor)[0], loss(spoilt, actor)[0]
    assert torch.equal(got, expected)
    assert all(map(torch.equal, gradients(got, actor), gradients(expected, actor)))


class Logarithmic(Dense):
    """Takes the logarithm of observations, so that it is not defined where they are zero."""

    def forward(self, obs, **rest):
        return super().forward(obs.log(), **rest)


@every
@recurrence
def test_padding_is_an_observation_for_which_the_actor_is_defined(loss, recurrent):
    fragment = made_sticky(random_fragment(8, recurrent=recurrent))
    state, final = fragment.state, fragment.env.final
    positive = fragment._replace(
        state=state._replace(obs=state.obs.exp()),
        env=fragment.env._replace(final=final._replace(obs=final.obs.exp())),
    )
    expected, _ = loss(fragment, actor := Dense(recurrent))
    got, _ = loss(positive, other := Logarithmic(recurrent))
    torch.testing.assert_close(got, expected)
    torch.testing.assert_close(gradients(got, other), gradients(expected, actor))


@every
@recurrence
@pytest.mark.parametrize("seed", range(4))
def test_a_sticky_column_is_a_fragment_that_stops_where_its_episode_ended(loss, recurrent, seed):
    whole, actor = made_sticky(random_fragment(seed, B=1, recurrent=recurrent)), Dense(recurrent)
    n, final = int(whole.env.valid.sum()), whole.env.final
    state, actor_info = nested.map(lambda x: x[: n + 1], (whole.state, whole.actor))
    env = nested.map(lambda x: x[:n], whole.env._replace(final=()))._replace(final=final)
    stopped = whole._replace(state=state, actor=actor_info, env=env)
    assert_same_loss_and_gradients(loss(whole, actor)[0], loss(stopped, actor)[0], actor)


@every
def test_infos_that_losses_do_not_use_may_be_nan(loss):
    actor, fragment = Table(), fragment_of([7, 1, 2], [1.0, 2.0], valid=[0, 1], fin0=True)
    fragment = fragment._replace(actor=nested.map(torch.Tensor.detach, unroll(fragment, actor).info))
    expected = loss(fragment, actor)[0]
    kept = gradients(expected, actor)
    with torch.no_grad():
        actor.logits[7] = actor.value[7] = math.nan
    got = loss(fragment, actor)[0]
    assert torch.equal(got, expected)
    assert all(map(torch.equal, gradients(got, actor), kept))


@each_actor_critic
def test_an_info_that_was_computed_anew_is_a_constant(loss):
    fragment, actor = random_fragment(7), Dense()
    anew, _, final = unroll(fragment, actor)
    final = fragment.env.final._replace(actor=final)
    fragment = fragment._replace(actor=anew, env=fragment.env._replace(final=final))
    expected, _ = loss(nested.map(torch.Tensor.detach, fragment), actor)
    assert_same_loss_and_gradients(loss(fragment, actor)[0], expected, actor)


@every
def test_losses_without_valid_transitions_are_zero(loss):
    actor = Table()
    said = {"logits": torch.full((2, 1, 3), math.nan), "value": torch.full((2, 1), math.nan)}
    fragment = fragment_of([0, 1], [math.nan], terminated=[1], valid=[0])._replace(actor=said)
    total, _ = loss(fragment, actor)
    assert total == 0
    assert all((x == 0).all() for x in gradients(total, actor))


@every
def test_infos_of_losses_are_detached_and_finite(loss):
    _, info = loss(random_fragment(9), Dense())
    assert not any(x.requires_grad for x in info.values())
    assert all(x.isfinite().all() for x in info.values())
    assert all(x.shape == (() if name != "td_error" else (9, 4)) for name, x in info.items())


@every
def test_losses_never_wait_for_the_device(loss):
    fragment = nested.map(lambda x: x.to("meta"), random_fragment(9))  # where there is nothing to be read
    total, _ = loss(fragment, Dense().to("meta"))
    total.backward()
    assert total.device.type == "meta"


def test_minibatches_and_replayed_batches_never_wait_for_the_device():
    actor, fragment = Dense().to("meta"), nested.map(lambda x: x.to("meta"), random_fragment(9))
    for loss, _ in ppo.losses(fragment, actor, gamma=GAMMA, n_epochs=1, n_minibatches=3):
        loss.backward()
    batch = nested.map(lambda x: x.to("meta"), batch_of(random_fragment(9)))
    dqn.replayed(batch, actor)[0].backward()


@every
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_losses_compute_half_precision_in_float32(loss, dtype):
    fragment = nested.map(lambda x: x.to(dtype) if x.dtype == torch.float64 else x, random_fragment(9))
    total, info = loss(fragment, Dense().to(dtype))
    assert {x.dtype for x in (total, *info.values())} == {torch.float32}
    total.backward()


@every
@pytest.mark.parametrize(("how", "value"), [("truncated", 6.0), ("terminated", 0.0)])
def test_all_losses_bootstrap_at_time_limits(loss, how, value):
    # the critic of the table says the state's number; so do its action values, all alike
    actor = Table()
    with torch.no_grad():
        actor.logits.copy_(torch.arange(8.0)[:, None].expand(-1, 3))
    said = unroll(fragment_of([2, 5], [3.0]), actor).info
    final = ended([6], [0])._replace(actor={"value": torch.tensor([6.0], dtype=torch.float64)})
    fragment = fragment_of([2, 5], [3.0], **{how: [1]}, final=final)._replace(
        actor=nested.map(torch.Tensor.detach, said)
    )
    loss(fragment, actor)[0].backward()
    error = 3.0 + GAMMA * value - 2.0
    if loss.func is dqn.loss:
        assert -actor.logits.grad.sum().item() == pytest.approx(math.copysign(min(1.0, abs(error)), error))
    else:
        assert -actor.value.grad.sum().item() == pytest.approx(error)  # half the square's derivative, of weight 1/2


@each_actor_critic
@kinds
def test_actor_critic_losses_agree_on_policy(loss, box):
    """With the very weights that acted, neither clipping nor importance weights change the gradient."""
    fragment, actor = random_fragment(10, box=box), Dense()
    info, _, final = unroll(fragment, actor)
    ends = fragment.env.final._replace(actor=nested.map(torch.Tensor.detach, final))
    fragment = fragment._replace(actor=nested.map(torch.Tensor.detach, info), env=fragment.env._replace(final=ends))
    options = {"ppo": {"C": 1.0, "normalise": False}}.get(loss.func.__module__.split(".")[-1], {})
    got, _ = loss(fragment, actor, **options)
    expected, _ = a2c.loss(fragment, actor, gamma=GAMMA)
    for x, y in zip(gradients(got, actor), gradients(expected, actor), strict=True):
        torch.testing.assert_close(x, y)


@pytest.mark.parametrize("n", [1, 2, 5, 100])
def test_losses_with_multistep_advantages(n):
    fragment, actor = random_fragment(11), Dense()
    v = unroll(fragment, actor)
    lasts = v.final["value"].detach()
    _, info = a2c.loss(fragment, actor, gamma=GAMMA, n_lookahead=n)
    value, total = v.info["value"].detach(), 0.0
    ahead = {(t, b): rest for t, b, *rest in columns(fragment, value, lasts)}
    for t, b in ahead:
        discount, at, follows = 1.0, t, True
        for _ in range(n):
            rew, later, follows = ahead[at, b]
            total += discount * rew
            discount, at = discount * GAMMA, at + 1
            if not follows:
                break
        total += discount * later - value[t, b].item()
    assert info["advantage"].item() == pytest.approx(total / len(ahead))
    if n == 100:
        assert a2c.loss(fragment, actor, gamma=GAMMA)[1]["advantage"].item() == pytest.approx(total / len(ahead))


def test_gae_lambda_and_n_lookahead_exclude_each_other():
    with pytest.raises(ValueError, match=r"`C` = 0.9 \(GAE\) and `n_lookahead` = 2 exclude each other"):
        a2c.loss(random_fragment(), Dense(), gamma=GAMMA, C=0.9, n_lookahead=2)


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"huber": 0.0}, "`huber` must be a number > 0, or None"),
        ({"n_lookahead": 0}, "`n_lookahead` must be a number of steps >= 1"),
        ({"gamma": -0.1}, "`gamma`"),
        ({"weight": torch.ones(9)}, r"`weight` must be \(T, B\) = \(9, 4\) or \(B,\) = \(4,\), got \(9,\)"),
        ({"weight": torch.ones(2, 9, 4)}, "`weight` must be"),
    ],
)
def test_dqn_names_the_argument_that_is_out_of_range(args, message):
    with pytest.raises(ValueError, match=message):
        dqn.loss(random_fragment(), Dense(), **{"gamma": GAMMA, **args})
    if "huber" in args:
        with pytest.raises(ValueError, match=message):
            dqn.replayed(batch_of(random_fragment()), Dense(), **args)


@pytest.mark.parametrize(
    ("loss", "box", "info", "message"),
    [
        (dqn.loss, False, {"value": ()}, "lacks 'q'; it has"),
        (dqn.loss, False, {"q": ()}, r"`q` must be \(n_seq, B, A\) = \(10, 4, 'A'\), got \(10, 4\)"),
        (vtrace.loss, True, {"mean": (2,)}, "lacks 'log_std'"),
        (a2c.loss, True, {"mean": (), "log_std": ()}, r"`mean` must be .*\(n_seq, 4, 2\).*got \(10, 4\)"),
        (ppo.loss, False, {"logits": (3, 3)}, r"`logits` must be .*\(n_seq, 4, A\).*got \(10, 4, 3, 3\)"),
        (vtrace.loss, False, {"logits": (3,), "value": (1,)}, r"`value` must be .*\(n_seq, 4\).*squeeze"),
    ],
)
def test_losses_name_the_info_entry_that_is_wrong(loss, box, info, message):
    fragment, actor = random_fragment(box=box), Dense()
    actor.forward = lambda obs, *, fin, **rest: (
        None,
        (),
        {name: torch.zeros(*fin.shape, *trailing) for name, trailing in info.items()},
    )
    with pytest.raises(ValueError, match=message):
        loss(fragment, actor, gamma=GAMMA)
