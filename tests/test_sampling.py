"""Sampling: frequencies with either kind of generator, and noise drawn in stock."""

from __future__ import annotations

import pytest
import torch

from rlplay.sampling import Source, categorical, epsilon_greedy, multinomial

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
