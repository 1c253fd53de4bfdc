"""PPO's options beyond the paper: clipped values, early stopping, advantages normalised by minibatch."""

from __future__ import annotations

import math

import pytest
import torch

from rlplay import nested
from rlplay.algo import ppo, unroll
from tests.support.fragments import Dense, made_sticky, random_fragment

GAMMA = 0.9


@pytest.mark.parametrize("recurrent", [False, True])
@pytest.mark.parametrize("value_clip", [0.05, 0.5, 100.0])
def test_the_clipped_value_error_equals_a_transcription(recurrent, value_clip):
    fragment, actor = random_fragment(2, recurrent=recurrent), Dense(recurrent)
    then, now = fragment.actor["value"][:-1], unroll(fragment, actor).info["value"][:-1]
    plain, info = ppo.loss(fragment, actor, gamma=GAMMA, C=0.8)
    final = fragment.env.final
    lasts = {(int(t), int(b)): x for t, b, x in zip(final.t, final.b, final.actor["value"], strict=True)}
    target = torch.zeros_like(then)
    for b in range(then.shape[1]):
        later = 0.0
        for t in reversed(range(len(then))):
            over = bool(fragment.state.fin[t + 1, b])
            ahead = fragment.actor["value"][t + 1, b]
            if over:
                ahead = 0.0 if fragment.env.terminated[t, b] else lasts[t, b]
            error = fragment.state.rew[t + 1, b] + GAMMA * ahead - then[t, b]
            later = error + (0.0 if over else GAMMA * 0.8 * later)
            target[t, b] = later + then[t, b]
    clipped = torch.minimum(torch.maximum(now, then - value_clip), then + value_clip)
    expected = torch.maximum((now - target) ** 2, (clipped - target) ** 2).mean()

    loss, got = ppo.loss(fragment, actor, gamma=GAMMA, C=0.8, value_clip=value_clip)
    torch.testing.assert_close(got["value_loss"], expected.detach(), rtol=1e-9, atol=1e-9)
    rest = plain - 0.5 * info["value_loss"]
    torch.testing.assert_close(loss, rest.detach() + 0.5 * expected, rtol=1e-9, atol=1e-9)
    found = torch.autograd.grad(loss, actor.head.weight, retain_graph=True)[0][3]  # of the value alone
    torch.testing.assert_close(found, torch.autograd.grad(0.5 * expected, actor.head.weight)[0][3])


@pytest.mark.parametrize("sticky", [False, True])
def test_advantages_are_normalised_over_each_minibatch(sticky):
    fragment, actor = random_fragment(3, B=16), Dense()
    fragment = made_sticky(fragment) if sticky else fragment
    whole, _ = ppo.loss(fragment, actor, gamma=GAMMA)
    torch.testing.assert_close(ppo.loss(fragment, actor, gamma=GAMMA, normalise="minibatch")[0], whole)

    options = {"gamma": GAMMA, "n_epochs": 1, "n_minibatches": 3, "entropy_weight": 0.0, "value_weight": 0.0}
    parts = list(
        ppo.losses(fragment, actor, normalise="minibatch", generator=torch.Generator().manual_seed(0), **options)
    )
    raw = list(ppo.losses(fragment, actor, normalise=False, generator=torch.Generator().manual_seed(0), **options))
    order = torch.randperm(144, generator=torch.Generator().manual_seed(0))
    T, act = 9, fragment.state.act[1:]
    log_p, log_mu = (
        torch.distributions.Categorical(logits=info["logits"][:T]).log_prob(act)
        for info in (unroll(fragment, actor).info, fragment.actor)
    )
    ratio = (log_p - log_mu).exp().flatten()
    advantage = advantages(fragment).flatten()
    for (loss, _), (unnormalised, _), chosen in zip(parts, raw, order.tensor_split(3), strict=True):
        chosen = chosen[fragment.env.valid.flatten()[chosen]]
        a, w = advantage[chosen], ratio[chosen]
        for value, scaled in ((unnormalised, a), (loss, (a - a.mean()) / a.std(correction=0))):
            expected = -torch.minimum(w * scaled, w.clamp(0.8, 1.2) * scaled).mean()
            torch.testing.assert_close(value, expected, rtol=1e-6, atol=1e-9)


def advantages(fragment):
    """Return the advantages of GAE with lambda 0.95, of the values in the fragment."""
    value, final = fragment.actor["value"], fragment.env.final
    lasts = {(int(t), int(b)): x for t, b, x in zip(final.t, final.b, final.actor["value"], strict=True)}
    found = torch.zeros_like(value[:-1])
    for b in range(found.shape[1]):
        later = 0.0
        for t in reversed(range(len(found))):
            over = bool(fragment.state.fin[t + 1, b])
            ahead = value[t + 1, b]
            if over and fragment.env.valid[t, b]:
                ahead = 0.0 if fragment.env.terminated[t, b] else lasts[t, b]
            error = fragment.state.rew[t + 1, b] + GAMMA * ahead - value[t, b]
            later = error + (0.0 if over else GAMMA * 0.95 * later)
            found[t, b] = later
    return found


def test_the_iterator_ends_at_the_first_minibatch_with_a_large_kl():
    fragment, actor = random_fragment(7), Dense()
    info = nested.map(torch.Tensor.detach, unroll(fragment, actor).info)
    fragment = fragment._replace(actor=info)
    seen = []
    for _, info in ppo.losses(fragment, actor, gamma=GAMMA, n_epochs=50, n_minibatches=1, max_kl=0.05):
        seen.append(info["kl"].item())
        with torch.no_grad():
            actor.head.weight[0] += 0.1
    assert 1 < len(seen) < 50
    assert seen[0] == pytest.approx(0, abs=1e-12)
    assert max(seen) <= 0.05
    assert ppo.loss(fragment, actor, gamma=GAMMA)[1]["kl"] > 0.05


@pytest.mark.parametrize(
    ("args", "message"),
    [
        ({"value_clip": 0.0}, "`value_clip` must be a number > 0, or None"),
        ({"max_kl": -1.0}, "`max_kl` must be a number > 0, or None"),
        ({"max_kl": math.nan}, "`max_kl` must be a number > 0, or None"),
        ({"normalise": "batch"}, "`normalise` must be True .* got 'batch'"),
    ],
)
def test_options_out_of_range_are_named_at_the_call(args, message):
    with pytest.raises(ValueError, match=message):
        ppo.losses(random_fragment(), Dense(), gamma=GAMMA, **args)


def test_padding_changes_no_bit_with_all_options():
    fragment, actor, results = made_sticky(random_fragment(8)), Dense(), []
    unused = ~fragment.env.valid
    for garbage in (0.0, math.nan):
        spoilt = nested.map(torch.clone, fragment)
        spoilt.state.obs[:-1][unused] = garbage
        spoilt.state.rew[1:][unused] = garbage
        for said in spoilt.actor.values():
            said[:-1][unused] = garbage
        generator = torch.Generator().manual_seed(0)
        options = {"value_clip": 0.1, "normalise": "minibatch", "max_kl": 9.0, "generator": generator}
        losses = list(ppo.losses(spoilt, actor, gamma=GAMMA, **options))
        assert len(losses) == 16
        results.append([loss for loss, _ in losses])
    assert all(map(torch.equal, *results))
