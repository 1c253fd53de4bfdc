"""A2C and the transitions it is computed from: examples by hand, gradients, and padding."""

from __future__ import annotations

import math

import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import a2c, blank_padding, ppo, returns, transitions, unroll
from tests.support.fragments import Dense, Table, ended, fragment_of, made_sticky, random_fragment


def gradients(fragment, actor, **args):
    actor.zero_grad()
    value, info = a2c.loss(fragment, actor, gamma=0.9, **args)
    value.backward()
    return value.detach(), {name: p.grad.clone() for name, p in actor.named_parameters() if p.grad is not None}, info


# Transitions


def test_transitions_at_time_limits_by_hand():
    # rows of value 1, 2 and 4; transition 1 ends in a state of value 100 that no row shows
    value = torch.tensor([[1.0], [2.0], [4.0]])
    limit = fragment_of([0, 1, 2], [10.0, 20.0], truncated=[0, 1], final=ended([3], [1]))
    x = transitions(limit, value, torch.tensor([100.0]), gamma=0.5)
    assert x.rew.flatten().tolist() == [10.0, 20.0 + 50.0]
    assert x.fin.flatten().tolist() == [False, True]
    assert x.val.flatten().tolist() == [1.0, 2.0]
    assert x.bootstrap.tolist() == [4.0]
    assert returns.returns(x.rew, x.fin, gamma=0.5, bootstrap=x.bootstrap).flatten().tolist() == [45.0, 70.0]


@pytest.mark.parametrize("terminated", [False, True])
def test_termination_outweighs_truncation(terminated):
    both = fragment_of([0, 1], [1.0], terminated=[terminated], truncated=[1], final=ended([3], [0]))
    x = transitions(both, torch.zeros(2, 1), torch.tensor([100.0]), gamma=0.5)
    assert x.rew.item() == (1.0 if terminated else 51.0)
    assert x.fin.item()


def test_without_final_truncation_is_an_end():
    x = transitions(fragment_of([0, 1], [1.0], truncated=[1]), torch.full((2, 1), 7.0), gamma=0.5)
    assert x.rew.item() == 1.0
    assert x.fin.item()


def test_finals_are_assigned_to_the_transitions_that_ended_there():
    fragment = random_fragment(1)
    final = fragment.env.final
    value, last = torch.zeros(10, 4), torch.arange(1.0, 1 + len(final.t))
    x = transitions(fragment, value, last, gamma=0.9)
    cut = fragment.env.truncated & ~fragment.env.terminated
    assert 0 < cut.sum() < len(final.t)
    for k, (t, b) in enumerate(zip(final.t.tolist(), final.b.tolist(), strict=True)):
        more = 0.9 * last[k] if cut[t, b] else 0.0
        torch.testing.assert_close(x.rew[t, b], fragment.state.rew[t + 1, b] + more)
    torch.testing.assert_close(x.rew[~x.fin], fragment.state.rew[1:][~x.fin])


@pytest.mark.parametrize(
    ("obs", "terminated", "valid"),
    [
        ([0, 1, 5, 5, 5], [0, 1, 1, 1], [1, 1, 0, 0]),  # sticky: padding up to the fragment's end
        ([0, 1, 7, 5, 6], [0, 1, 0, 0], [1, 1, 0, 1]),  # NEXT_STEP: the way to the next episode is no transition
        ([7, 1, 2, 3, 4], [0, 0, 0, 0], [0, 1, 1, 1]),  # the same, cut between fragments
        ([0, 1, 2, 3, 7], [0, 0, 0, 1], [1, 1, 1, 1]),
    ],
)
def test_transitions_leave_out_rows_that_are_not_valid(obs, terminated, valid):
    nan = math.nan
    actor = Table()
    value = actor.value.detach()[torch.tensor(obs)][:, None]
    rewards = torch.tensor([1.0, 2.0, 3.0, 4.0], dtype=torch.float64)
    valid = torch.tensor(valid, dtype=torch.bool)
    clean = fragment_of(obs, rewards, terminated, valid=valid, act=[0, 1, 2, 1])
    spoilt = fragment_of(obs, torch.where(valid, rewards, nan), terminated, valid=valid, act=[0, 1, 2, 1])
    spoilt.state.act[1:][~valid] = -100
    x = transitions(spoilt, torch.cat([torch.where(valid[:, None], value[:-1], nan), value[-1:]]), gamma=0.5)
    assert x.rew[~valid].tolist() == x.val[~valid].tolist() == [[0.0]] * int((~valid).sum())
    assert x.fin[~valid].all()

    # the loss is the mean over the columns that are left when the others are taken out
    loss, grads, info = gradients(spoilt, actor, C=0.7)
    expected, expected_grads, _ = gradients(clean, actor, C=0.7)
    torch.testing.assert_close(loss, expected)
    for name, grad in grads.items():
        torch.testing.assert_close(grad, expected_grads[name])
    n = value[torch.cat([valid, torch.tensor([False])])]
    torch.testing.assert_close(info["value"], n.mean())


def test_transitions_carry_no_gradients():
    fragment = fragment_of([0, 1, 2], [1.0, 2.0], truncated=[0, 1], final=ended([3], [1]))
    value, last = torch.zeros(3, 1, requires_grad=True), torch.zeros(1, requires_grad=True)
    assert not any(x.requires_grad for x in transitions(fragment, value, last, gamma=0.9))


def test_transitions_refuse_values_of_a_wrong_shape():
    fragment = fragment_of([0, 1, 2], [1.0, 2.0], truncated=[0, 1], final=ended([3], [1]))
    value, last = torch.zeros(3, 1), torch.zeros(1)
    with pytest.raises(ValueError, match=r"`value` must be \(1\+T, B\) = \(3, 1\).*got \(2, 1\)"):
        transitions(fragment, value[1:], last, gamma=0.9)
    with pytest.raises(ValueError, match=r"`final_value` must be \(K,\) = \(1,\).*got \(1, 1\).*squeeze"):
        transitions(fragment, value, last[:, None], gamma=0.9)
    with pytest.raises(ValueError, match=r"The fragment has `final`, but `final_value` was not given: it is needed"):
        transitions(fragment, value, gamma=0.9)
    with pytest.raises(ValueError, match=r"has no `final`, but `final_value` was given: it is needed"):
        transitions(fragment_of([0, 1, 2], [1.0, 2.0]), value, last, gamma=0.9)


def test_blank_padding_keeps_the_rows_that_losses_use():
    fragment = random_fragment(2, recurrent=True)
    ended = fragment.state.fin[-1]
    assert 0 < ended.sum() < len(ended)
    shown = blank_padding(fragment).state
    assert (shown.obs[-1] == fragment.state.obs[-1]).all(dim=-1).equal(~ended)
    shown.obs[-1] = fragment.state.obs[-1]
    assert all(map(torch.equal, nested.leaves(shown), nested.leaves(fragment.state)))
    fragment.state.fin[-1] = False

    # a recurrent state is carried over from a row that begins no transition, unless it is reset next
    for fin, hx, blank in ((0, fragment.hx, False), (0, (), True), (1, fragment.hx, True)):
        x = fragment._replace(hx=hx, state=nested.map(torch.clone, fragment.state))
        x.env.valid.fill_(True)[3, 1] = False
        x.state.fin[4, 1] = bool(fin)
        shown = blank_padding(x).state
        assert torch.equal(shown.obs[3, 1], x.state.obs[0, 0] if blank else x.state.obs[3, 1])
        shown.obs[3, 1] = x.state.obs[3, 1]
        assert torch.equal(shown.obs, x.state.obs)
    x.env.valid[-1, 2] = False
    x.state.fin[-1, 2], x.state.act[-1, 2], x.state.act[1, 0] = True, 1, 2
    assert blank_padding(x).state.act[-1, 2] == 2
    images = fragment_of(torch.ones(3, 1, dtype=torch.uint8), torch.ones(2, 1), valid=[1, 0])
    assert blank_padding(images).state.obs is images.state.obs
    for valid, expected in (([0, 1], [2, 2, 4]), ([1, 0], [1, 1, 1]), ([0, 0], [0, 0, 0])):
        coarse = fragment_of(torch.tensor([[1.0], [2.0], [4.0]]).to(torch.float8_e4m3fn), torch.ones(2, 1), valid=valid)
        assert blank_padding(coarse).state.obs.float().flatten().tolist() == expected


# The loss


def test_a2c_loss_of_one_transition_by_hand():
    actor = Table()
    loss, info = a2c.loss(
        fragment_of([2, 5], [3.0], act=[1]), actor, gamma=0.5, value_weight=0.25, entropy_weight=0.125
    )
    advantage = 3.0 + 0.5 * 5.0 - 2.0
    log_p = actor.logits.detach()[2].log_softmax(0)
    entropy = -(log_p.exp() * log_p).sum()
    assert info["policy_loss"].item() == pytest.approx(-log_p[1].item() * advantage)
    assert info["value_loss"].item() == pytest.approx(advantage**2)
    assert info["entropy"].item() == pytest.approx(entropy.item())
    assert info["advantage"].item() == pytest.approx(advantage)
    assert info["value"].item() == 2.0
    assert loss.item() == pytest.approx(-log_p[1].item() * advantage + 0.25 * advantage**2 - 0.125 * entropy.item())


@pytest.mark.parametrize(("how", "value"), [("truncated", 6.0), ("terminated", 0.0)])
def test_a2c_bootstraps_at_time_limits_by_hand(how, value):
    fragment = fragment_of([2, 5], [3.0], **{how: [1]}, final=ended([6], [0]))
    _, info = a2c.loss(fragment, Table(), gamma=0.5)
    assert info["advantage"].item() == pytest.approx(3.0 + 0.5 * value - 2.0)
    if how == "truncated":
        _, info = a2c.loss(fragment_of([2, 5], [3.0], truncated=[1]), Table(), gamma=0.5)
        assert info["advantage"].item() == pytest.approx(3.0 - 2.0)


@pytest.mark.parametrize("C", [0.0, 0.6, 1.0])
@pytest.mark.parametrize("recurrent", [False, True])
def test_a2c_loss_equals_a_transcription(C, recurrent):
    fragment, actor, gamma = random_fragment(3, recurrent=recurrent), Dense(recurrent), 0.9
    info, _, final = unroll(fragment, actor)
    log_p, v = info["logits"].log_softmax(-1), info["value"]
    ended = zip(fragment.env.final.t.tolist(), fragment.env.final.b.tolist(), strict=True)
    last = dict(zip(ended, final["value"], strict=True))
    policy = value = entropy = 0.0
    T, B = fragment.env.valid.shape
    for b in range(B):
        later = 0.0
        for t in reversed(range(T)):
            over = bool(fragment.state.fin[t + 1, b])
            ahead = v[t + 1, b]
            if over:
                ahead, later = (0.0 if fragment.env.terminated[t, b] else last[t, b]), 0.0
            later = (fragment.state.rew[t + 1, b] + gamma * ahead - v[t, b]).detach() + gamma * C * later
            policy = policy - log_p[t, b, fragment.state.act[t + 1, b]] * later
            value = value + (later + v[t, b].detach() - v[t, b]) ** 2
            entropy = entropy - (log_p[t, b].exp() * log_p[t, b]).sum()
    expected = (policy + 0.5 * value - 0.01 * entropy) / (T * B)
    expected_grads = torch.autograd.grad(expected, list(actor.parameters()), allow_unused=True)

    loss, grads, _ = gradients(fragment, actor, C=C)
    torch.testing.assert_close(loss, expected.detach())
    for (name, _), grad in zip(actor.named_parameters(), expected_grads, strict=True):
        if grad is not None:
            torch.testing.assert_close(grads[name], grad)


def test_a2c_gradients_reach_only_logits_and_values_of_transitions():
    actor = Table()
    fragment = fragment_of([0, 1, 2, 3], [1.0, 2.0, 3.0], truncated=[0, 1, 0], act=[0, 1, 2], final=ended([4], [1]))
    _, grads, _ = gradients(fragment, actor)
    assert (grads["value"][:3] != 0).all()
    assert (grads["value"][3:] == 0).all()  # neither the look-ahead row nor the last state is learnt from
    assert (grads["logits"][3:] == 0).all()
    _, grads, _ = gradients(fragment, actor, value_weight=0.0)
    assert (grads["value"] == 0).all()  # the critic gets none through the advantages
    _, info = a2c.loss(fragment, actor, gamma=0.9)
    assert not any(x.requires_grad for x in info.values())
    assert all(x.shape == () for x in info.values())


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("normalise", [False, True])
@pytest.mark.parametrize("garbage", [math.nan, math.inf, 1e30])
def test_padding_changes_neither_a2c_loss_nor_gradients(recurrent, normalise, garbage):
    fragment, actor = random_fragment(4, recurrent=recurrent), Dense(recurrent)
    fragment = made_sticky(fragment)
    valid = fragment.env.valid
    assert 0 < (~valid).sum() < valid.numel()

    expected = gradients(fragment, actor, normalise=normalise)
    spoilt = nested.map(torch.clone, fragment)
    unused = ~valid
    spoilt.state.obs[:-1][unused] = garbage
    spoilt.state.obs[-1][unused[-1]] = garbage
    spoilt.state.rew[1:][unused] = garbage
    spoilt.state.act[1:][unused] = 10**12
    got = gradients(spoilt, actor, normalise=normalise)
    for x, y in zip(nested.leaves(got), nested.leaves(expected), strict=True):
        assert torch.equal(x, y)
        assert x.isfinite().all()

    # the mean is over the valid transitions alone
    if not normalise:
        info = unroll(fragment, actor).info
        torch.testing.assert_close(got[2]["value"], info["value"][:-1][valid].mean().detach())


def test_a2c_normalises_advantages():
    # equal policies: the loss is the mean advantage times log 3, and the mean is brought to zero
    actor = Table()
    nn.init.zeros_(actor.logits)
    fragment = fragment_of([0, 1, 2, 3], [1.0, 5.0, -3.0])
    _, plain = a2c.loss(fragment, actor, gamma=0.9)
    _, info = a2c.loss(fragment, actor, gamma=0.9, normalise=True)
    assert abs(plain["policy_loss"]) > 0.1
    assert abs(info["policy_loss"]) < 1e-12
    torch.testing.assert_close(info["value_loss"], plain["value_loss"])

    # twice the rewards and values: the same loss
    actor, policy_loss = Table(), []
    for scale in (1.0, 2.0):
        with torch.no_grad():
            actor.value.mul_(scale)
        fragment = fragment_of([0, 1, 2, 3], [scale, scale * 5.0, scale * -3.0], act=[0, 1, 2])
        policy_loss.append(a2c.loss(fragment, actor, gamma=0.9, normalise=True)[1]["policy_loss"])
    torch.testing.assert_close(*policy_loss)


def test_a2c_handles_forbidden_actions():
    actor = Table()
    with torch.no_grad():
        actor.logits[:, 2] = -math.inf
    loss, grads, info = gradients(fragment_of([0, 1, 2], [1.0, 2.0], act=[0, 1]), actor)
    assert loss.isfinite()
    assert all(x.isfinite().all() for x in grads.values())
    p = actor.logits.detach()[:2, :2].softmax(-1)
    torch.testing.assert_close(info["entropy"], -(p * p.log()).sum(-1).mean())


def test_a2c_never_waits_for_the_device():
    fragment = nested.map(lambda x: x.to("meta"), random_fragment(5))  # where there is nothing to be read
    loss, info = a2c.loss(fragment, Dense().to("meta"), gamma=0.9, normalise=True)
    loss.backward()
    assert loss.device.type == "meta"
    assert len(info) == 5


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_a2c_computes_half_precision_in_float32(dtype):
    fragment = nested.map(lambda x: x.to(dtype) if x.dtype == torch.float64 else x, random_fragment(6))
    loss, info = a2c.loss(fragment, Dense().to(dtype), gamma=0.9)
    assert {x.dtype for x in (loss, *info.values())} == {torch.float32}
    loss.backward()


@pytest.mark.parametrize(
    ("info", "error", "message"),
    [
        ((), TypeError, "must be a mapping from names.*'logits'; got tuple"),
        ({"logits": torch.zeros(2, 1, 3)}, ValueError, r"lacks 'value'; it has \['logits'\]"),
        ({"logits": torch.zeros(2, 1), "value": torch.zeros(2, 1)}, ValueError, "`logits` must be"),
        ({"logits": torch.zeros(2, 1, 3), "value": torch.zeros(2, 1, 1)}, ValueError, "`value` must be.*squeeze"),
    ],
)
def test_a2c_names_the_info_entry_that_is_wrong(info, error, message):
    actor = Table()
    actor.forward = lambda obs, **rest: (None, (), info)
    with pytest.raises(error, match=message):
        a2c.loss(fragment_of([0, 1], [1.0]), actor, gamma=0.9)


@pytest.mark.parametrize(
    ("act", "error", "message"),
    [
        (torch.zeros(2, 1, 2, dtype=torch.int64), ValueError, r"`logits` must be .*\(n_seq, 1, 2\)"),
        (
            torch.zeros(2, 1, 2, dtype=torch.int64),
            ValueError,
            r"several discrete actions: a tuple of logits, one for each",
        ),
        ({"a": torch.zeros(2, 1)}, ValueError, r"lacks 'a'; it has \['logits', 'q', 'value'\]"),
        ((torch.zeros(2, 1),), ValueError, r"must be a tuple with an element for each part, in the entry 'policy'"),
    ],
)
def test_a2c_names_what_the_info_lacks_for_the_actions(act, error, message):
    fragment = fragment_of([0, 1], [1.0])
    with pytest.raises(error, match=message):
        a2c.loss(fragment._replace(state=fragment.state._replace(act=act)), Table(), gamma=0.9)


def test_the_lambda_of_gae_has_two_names():
    fragment, actor = random_fragment(0), Dense()
    rew, fin, val = fragment.state.rew[1:], fragment.state.fin[1:], torch.zeros_like(fragment.state.rew[1:])
    for by_name in (
        lambda **names: returns.gae(rew, fin, val, gamma=0.9, **names),
        lambda **names: a2c.loss(fragment, actor, gamma=0.9, **names)[0],
        lambda **names: ppo.loss(fragment, actor, gamma=0.9, **names)[0],
        lambda **names: next(
            ppo.losses(fragment, actor, gamma=0.9, generator=torch.Generator().manual_seed(0), **names)
        )[0],
    ):
        torch.testing.assert_close(by_name(C=0.7), by_name(gae_lambda=0.7), rtol=0, atol=0, equal_nan=True)
        with pytest.raises(TypeError, match="give lambda once, as `C` or as `gae_lambda`"):
            by_name(C=0.7, gae_lambda=0.7)
    with pytest.raises(TypeError, match="give lambda once"):
        returns.gae(rew, fin, val, gamma=0.9)
