"""Sampling: frequencies with either kind of generator, and noise drawn in stock."""

from __future__ import annotations

import math
import warnings

import gym
import pytest
import torch
from torch.fx.experimental.proxy_tensor import make_fx
from tqdm import tqdm

from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same
from rlplay.sampling import Source, bernoulli, categorical, epsilon_greedy, multinomial
from rlplay.testing import LaggingLane, LedgerEnv

N = 20_000


def draw(how, generator, n=N):
    probs = torch.tensor([[0.5, 0.2, 0.3, 0.0], [0.0, 1.0, 0.0, 0.0]])
    rows = probs.expand(n, 2, 4)
    return probs, how(rows, generator)


HOW = {
    "categorical": lambda probs, generator: categorical(probs.log(), generator=generator),
    "unnormalised": lambda probs, generator: categorical(probs.log() + 7, generator=generator),
    "multinomial": lambda probs, generator: multinomial(3 * probs, generator=generator),
    "low precision": lambda probs, generator: multinomial(probs.bfloat16(), generator=generator),
}


@pytest.mark.parametrize("how", HOW.values(), ids=HOW)
@pytest.mark.parametrize("generator", [lambda: torch.Generator().manual_seed(0), lambda: Source().manual_seed(0)])
def test_samples_have_the_frequencies_of_their_distribution(how, generator):
    probs, drawn = draw(how, generator())
    assert drawn.shape == (N, 2)
    assert drawn.dtype == torch.int64
    for row, column in zip(probs, drawn.T, strict=True):
        got = column.bincount(minlength=4) / N
        assert ((got - row).abs() <= 5 * (row * (1 - row) / N).sqrt() + 1e-2 * row).all()
        assert not got[row == 0].any()


def test_single_samples_from_stocked_noise_have_the_same_frequencies():
    source, logits = Source().manual_seed(0), torch.tensor([[0.7, 0.1, 0.2]]).log()
    got = torch.cat([categorical(logits, generator=source) for _ in range(N)]).bincount() / N
    assert torch.allclose(got, torch.tensor([0.7, 0.1, 0.2]), atol=5 * (0.25 / N) ** 0.5)


def test_a_seed_repeats_the_samples_of_a_shape_whatever_other_shapes_are_drawn():
    def rows(also):
        source, found = Source().manual_seed(3), []
        for _ in range(3000):
            found.append(categorical(torch.zeros(1, 2, 3), generator=source))
            if also:
                source.log_exponential(torch.Size((5,)), torch.float32)
        return torch.stack(found)

    assert torch.equal(rows(False), rows(False))
    stock = 4096 // 6  # until it is drawn anew: then it depends on what has been drawn in between
    assert torch.equal(rows(False)[:stock], rows(True)[:stock])


def test_setting_a_seed_or_a_state_empties_the_stock_of_noise():
    source, shape = Source().manual_seed(1), torch.Size((2,))
    first = source.log_exponential(shape, torch.float32)
    assert not torch.equal(first, source.log_exponential(shape, torch.float32))
    source.manual_seed(1)
    assert torch.equal(first, source.log_exponential(shape, torch.float32))
    source.set_state(torch.Generator().manual_seed(1).get_state())
    assert torch.equal(first, source.log_exponential(shape, torch.float32))


def test_noise_does_not_repeat_and_is_stocked_by_shape_and_dtype():
    source = Source().manual_seed(0)
    seen = torch.stack([source.log_exponential(torch.Size((64,)), torch.float32) for _ in range(500)])
    assert len(seen.unique()) > 0.99 * seen.numel()
    assert source.log_exponential(torch.Size((64,)), torch.float64).dtype == torch.float64
    assert source.log_exponential(torch.Size((100, 100)), torch.float32).shape == (100, 100)  # more than a stock


def test_epsilon_greedy_explores_with_probability_epsilon():
    q = torch.tensor([0.0, 2.0, 1.0]).expand(N, 3)
    got = epsilon_greedy(q, 0.3, generator=torch.Generator().manual_seed(0)).bincount() / N
    assert torch.allclose(got, torch.tensor([0.1, 0.8, 0.1]), atol=0.02)
    assert (epsilon_greedy(q, 0.0) == 1).all()


@pytest.mark.usefixtures("bfloat16_by_default")
def test_epsilon_greedy_is_exact_whatever_the_default_dtype():
    """Random numbers of 8 bits would be below 0.001 four times too often."""
    q = torch.tensor([0.0, 2.0]).expand(100_000, 2)
    random = epsilon_greedy(q, 0.001, generator=torch.Generator().manual_seed(0)) == 0
    assert 20 < random.sum() < 80


# no action is drawn from NaN

NAN, INF = float("nan"), float("inf")
SAMPLERS = {
    "categorical": categorical,
    "multinomial": lambda x, **how: multinomial(x.exp(), **how),
    "epsilon_greedy": lambda x, **how: epsilon_greedy(x, 0.0, **how),
    "epsilon_greedy, always random": lambda x, **how: epsilon_greedy(x, 1.0, **how),
}
samplers = pytest.mark.parametrize("sample", SAMPLERS.values(), ids=SAMPLERS)
GENERATORS = {"global": lambda: None, "own": torch.Generator, "in stock": Source}
generators = pytest.mark.parametrize("make_generator", GENERATORS.values(), ids=GENERATORS)


@samplers
@generators
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
def test_a_row_with_nan_gives_minus_one_and_others_are_drawn(sample, make_generator, dtype):
    rows = [[NAN, 0, 0], [0, NAN, 0], [0, 0, NAN], [NAN] * 3, [-INF, NAN, 0], [INF, NAN, 0], [0, 1, 2], [0, -INF, 3]]
    x = torch.tensor(rows, dtype=dtype).expand(1, 5, 8, 3)
    drawn = sample(x, generator=make_generator())
    assert drawn.shape == (1, 5, 8)
    assert drawn.dtype == torch.int64
    assert (drawn[..., :6] == -1).all()
    assert ((drawn[..., 6:] >= 0) & (drawn[..., 6:] < 3)).all()


@samplers
@generators
def test_infinities_of_both_signs_are_not_taken_for_nan(sample, make_generator):
    x = torch.tensor([[INF, -INF, 0.0], [-INF, 0.0, -INF], [-INF, -INF, 1.0]]).expand(4, 3, 3)
    assert (sample(x, generator=make_generator()) >= 0).all()


@samplers
def test_a_nan_in_one_row_does_not_change_what_is_drawn_in_the_others(sample):
    x = torch.randn(50, 4, generator=torch.Generator().manual_seed(1))
    for make in (torch.Generator, Source):
        clean = sample(x, generator=make().manual_seed(0))
        spoilt = sample(x.index_fill(0, torch.arange(0, 50, 7), NAN), generator=make().manual_seed(0))
        assert (spoilt[::7] == -1).all()
        others = torch.arange(50) % 7 != 0
        assert torch.equal(spoilt[others], clean[others])


@generators
def test_greedy_ties_give_the_first_action_as_argmax_does(make_generator):
    q = torch.randint(3, (500, 6), generator=torch.Generator().manual_seed(0)).float()
    assert torch.equal(epsilon_greedy(q, 0.0, generator=make_generator()), q.argmax(-1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 8, 2), (40, 200)])
def test_noise_in_stock_gives_the_same_actions_by_numpy_and_by_torch(shape, dtype):
    logits = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[..., 0] = -INF
    for _ in range(3):
        drawn, noise = categorical(logits, generator=Source().manual_seed(2)), Source().manual_seed(2)
        scores = logits - noise.log_exponential(logits.shape, torch.promote_types(dtype, torch.float32))
        assert torch.equal(drawn, scores.argmax(-1))
        logits = logits.transpose(0, -1).contiguous().transpose(0, -1)  # not contiguous any more


def test_action_values_may_be_integers():
    assert epsilon_greedy(torch.tensor([[1, 3, 2]]), 0.0, generator=Source()).tolist() == [1]


def test_negative_weights_give_minus_one():
    assert multinomial(torch.tensor([[1.0, -1.0], [1.0, 0.0]])).tolist() == [-1, 0]


@pytest.mark.parametrize("sample", [categorical, SAMPLERS["multinomial"]])
def test_samplers_give_minus_one_where_they_have_been_traced(sample):
    x = torch.tensor([[0.0, NAN], [NAN, 0.0], [0.0, -50.0]])
    traced = make_fx(lambda x: sample(x, generator=None))(torch.zeros(3, 2))
    assert traced(x)[:2].tolist() == [-1, -1]
    assert traced(x)[2] >= 0


def test_noise_in_stock_can_be_used_inside_vmap():
    source, x = Source().manual_seed(0), torch.tensor([[0.0, NAN], [NAN, 0.0], [0.0, -50.0]])
    categorical(x[0], generator=source)
    drawn = torch.vmap(lambda row: categorical(row, generator=source))(x)
    assert drawn.tolist() == [-1, -1, 0]


class Diverges(BaseActorModule):
    """Its logits of one environment become NaN where the observed number of steps is 2."""

    def __init__(self, how):
        super().__init__()
        self.how = how

    def forward(self, obs, *, stepno, fin, hx=None, **ignored):
        here = (stepno == 2) & (torch.arange(fin.shape[1], device=fin.device) == 1)
        logits = torch.zeros(*fin.shape, 3, device=fin.device).masked_fill(here[..., None], NAN)
        drawn = SAMPLERS[self.how](logits, generator=self.generator)
        return drawn.clamp(min=0), (), {"drawn": drawn, "here": here}


OPTIONS = {"eager": {}, "compiled": {"compile": True}, "captured": {"compile": True, "device": "lagging"}}


@pytest.mark.parametrize("how", ["categorical", "multinomial", "epsilon_greedy"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_compiled_and_captured_steps_give_minus_one_too(how, options, monkeypatch):
    monkeypatch.setattr(tqdm, "monitor_interval", 0)  # the compiler's progress bars have a thread that does not end
    if how == "epsilon_greedy" and options.get("compile") and not options.get("device"):
        pytest.skip("a step that draws otherwise than from noise in stock is not compiled on the host")
    if options.get("device"):
        options = {**options, "device": LaggingLane()}
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the step must not become eager
        with same.rollout(
            [LedgerEnv(gym.spaces, j, lengths=[5]) for j in range(3)], Diverges(how), 9, **options
        ) as feed:
            fragment = next(feed)
            next(feed)
            drawn, here = fragment.actor["drawn"].clone(), fragment.actor["here"].clone()
    assert here.any()
    assert torch.equal(drawn == -1, here)


def test_bits_have_the_probabilities_of_their_log_odds():
    logits = torch.tensor([-math.inf, -1.0, 0.0, 2.0, math.inf, math.nan])
    drawn = bernoulli(logits.expand(100_000, 6), generator=torch.Generator().manual_seed(0))
    assert drawn.dtype == torch.int64
    mean = drawn.double().mean(0)
    assert (mean[0], mean[4], mean[5]) == (0, 1, -1)
    expected = torch.tensor([-1.0, 0.0, 2.0]).sigmoid().double()
    torch.testing.assert_close(mean[1:4], expected, rtol=0, atol=5 * 0.5 / 100_000**0.5)
    assert set(drawn[:, 1:4].unique().tolist()) == {0, 1}


def test_bits_repeat_with_their_generator():
    logits = torch.randn(50, 3)
    first, second = (bernoulli(logits, generator=torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)
    assert not torch.equal(first, bernoulli(logits, generator=torch.Generator().manual_seed(2)))
