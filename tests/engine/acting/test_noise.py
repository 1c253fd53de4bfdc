"""Noise that is drawn ahead on a device: captured steps read it by index, eager ones take the same."""

from functools import partial

import gym
import pytest
import torch
from torch import nn

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.acting import noise as module
from rlplay.engine.acting.noise import BlockNoise, NoiseBlock
from rlplay.engine.rollout import same, threaded
from rlplay.testing import LaggingLane
from tests.support.assertions import assert_identical
from tests.support.collecting import REAL_GRAPHS, VIRTUAL_GRAPHS, collected, ledgers, switch_mode

FORM = torch.Size((1, 3, 5)), torch.float32


def source(seed=0):
    noise = BlockNoise("cpu")
    noise.manual_seed(seed)
    return noise


def take(noise, n):
    return torch.stack([noise.log_exponential(*FORM) for _ in range(n)])


# ---- the generator itself


@pytest.mark.parametrize("rows", [2, 3, 7, 100])
def test_rows_taken_by_index_are_those_taken_one_by_one(rows, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", rows * 15)
    eager, captured, found = source(), source(), []
    for count in (1, 2, 1, 1, 2, 2, 1, 2, 2):
        captured.prepare({FORM: count})
        with captured.by_index() as taken:
            found += [captured.log_exponential(*FORM) for _ in range(count)]
        assert taken == {FORM: count}
        captured.block(FORM).index.add_(count)
        captured.advance(taken)
        found.append(captured.log_exponential(*FORM))  # an eager step in between
    assert torch.equal(torch.stack(found), take(eager, len(found)))
    assert len(torch.stack(found).unique()) == 15 * len(found)


def test_blocks_stay_where_they_are(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 30)
    noise = source()
    take(noise, 1)
    block = noise.block(FORM)
    before = block.numbers.data_ptr(), block.index.data_ptr()
    take(noise, 9)
    assert noise.block(FORM) is block
    assert before == (block.numbers.data_ptr(), block.index.data_ptr())


def test_other_draws_and_other_forms_do_not_change_the_noise():
    plain, mixed = source(), source()
    expected, found = take(plain, 4), []
    other = torch.Size((1, 3, 2)), torch.float32
    for _ in range(4):
        torch.rand(3, generator=mixed)
        mixed.log_exponential(*other)
        found.append(mixed.log_exponential(*FORM))
    assert torch.equal(expected, torch.stack(found))
    assert not torch.isin(mixed.block(other).numbers[:4], expected).any()


def test_the_seed_alone_decides():
    noise = source(3)
    first = take(noise, 2)
    assert torch.equal(first, take(source(3), 2))
    assert not torch.equal(first, take(source(4), 2))
    noise.manual_seed(3)
    assert torch.equal(first, take(noise, 2))
    noise.seed()
    assert not torch.equal(first, take(noise, 2))


def test_a_generator_whose_state_was_set_draws_as_any_other():
    noise, plain = source(), torch.Generator().manual_seed(5)
    take(noise, 2)
    noise.set_state(plain.get_state())
    expected = [sampling.log_exponential(torch.empty(FORM[0]), plain) for _ in range(3)]
    assert torch.equal(take(noise, 3), torch.stack(expected))


def test_noise_that_is_too_wide_for_a_block_is_drawn_at_each_step(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 29)
    noise, plain = source(), torch.Generator().manual_seed(0)
    expected = [sampling.log_exponential(torch.empty(FORM[0]), plain) for _ in range(3)]
    assert torch.equal(take(noise, 3), torch.stack(expected))


def test_noise_follows_the_exponential_distribution():
    drawn = -source().log_exponential(torch.Size((100_000,)), torch.float64)  # Gumbel
    assert drawn.mean().item() == pytest.approx(0.5772, abs=0.02)
    assert drawn.var().item() == pytest.approx(torch.pi**2 / 6, rel=0.03)


def test_a_captured_step_may_neither_seed_nor_take_more_than_a_block(monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 30)
    noise = source()
    with pytest.raises(RuntimeError, match="it draws more than 30 numbers"), noise.by_index():
        take(noise, 3)
    for act in (noise.seed, partial(noise.manual_seed, 1), partial(noise.set_state, noise.get_state())):
        with pytest.raises(RuntimeError, match=r"it seeds `self.generator`, or sets its state"), noise.by_index():
            act()
    take(noise, 1)


# ---- in steps


class Samples(BaseActorModule):
    """Samples once, in train mode alone."""

    def __init__(self):
        super().__init__()
        self.head = nn.Linear(6, 5)

    def forward(self, obs, *, hx=None, **ignored):
        logits = self.head(obs).tanh()  # the observations are large; the noise has to matter
        act = sampling.categorical(logits, generator=self.generator) if self.training else logits.argmax(-1)
        return act, hx, {"logits": logits, **self.more(logits)}

    def more(self, logits):
        return {}


class SamplesOften(Samples):
    """Takes noise of several forms, of one several times, and draws otherwise as well."""

    def more(self, logits):
        before = torch.rand(logits.shape[:2], generator=self.generator)
        few = [sampling.categorical(logits[..., :2], generator=self.generator) for _ in range(1 + 2 * self.training)]
        double = sampling.multinomial(logits.double().softmax(-1), generator=self.generator)
        after = torch.randn(logits.shape[:2], generator=self.generator)
        return {"before": before, "few": torch.stack(few, -1).sum(-1), "double": double, "after": after}


class SeedsItself(Samples):
    def more(self, logits):
        self.generator.manual_seed(1)
        return {}


@pytest.fixture
def generators(monkeypatch):
    """List the generators that captures on the lagging device were told of."""
    told, capture = [], LaggingLane.capture

    def noting(lane, work, given, key=0):
        told.append(list(given))
        return capture(lane, work, given, key)

    monkeypatch.setattr(LaggingLane, "capture", noting)
    return told


@pytest.mark.parametrize("rows", [2, 50])
@pytest.mark.parametrize("options", [{}, {"groups": 2}, {"groups": 3, "haste": 0.5}, {"haste": 1.0}], ids=str)
@pytest.mark.parametrize("make_actor", [Samples, SamplesOften])
def test_captured_steps_take_the_noise_of_eager_ones(make_actor, options, rows, monkeypatch, generators):
    """Blocks are so small that fragments end inside of them."""
    haste, groups = options.get("haste", 0.0), options.get("groups", 1)
    monkeypatch.setattr(module, "BLOCK", rows * 5 * 4)
    options = {"envs": ledgers, "update": switch_mode, "n_fragments": 5, "groups": groups}
    eager = collected(make_actor, device=LaggingLane(), **options)
    got = collected(make_actor, compile=True, device=LaggingLane(haste=haste), **options)
    assert_identical(eager, got)
    assert len(generators) == 2 * (REAL_GRAPHS + VIRTUAL_GRAPHS) * groups
    assert all(bool(told) == (make_actor is SamplesOften) for told in generators)


class SamplesInInferenceMode(Samples):
    @torch.inference_mode()
    def forward(self, obs, **inputs):
        return super().forward(obs, **inputs)


def test_a_step_in_inference_mode_is_captured(generators):
    eager, got = (
        collected(SamplesInInferenceMode, compile=compile, device=LaggingLane(), n_fragments=2)
        for compile in (False, True)
    )
    assert_identical(eager, got)
    assert generators


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("rows", [3, 1000])
def test_where_fragments_end_changes_no_action(compile, rows, monkeypatch):
    def actions(n_steps):
        torch.manual_seed(0)
        lane = LaggingLane(consumer_on_host=True)
        with threaded.rollout(ledgers(), Samples(), n_steps, seed=0, device=lane, compile=compile) as feed:
            return torch.cat([next(feed).state.act[1:].clone() for _ in range(60 // n_steps)])

    monkeypatch.setattr(module, "BLOCK", rows * 5 * len(ledgers()))
    expected = actions(60)
    for n_steps in (1, 4, 20):
        assert torch.equal(expected, actions(n_steps))


def skips_refills(monkeypatch):
    monkeypatch.setattr(NoiseBlock, "prepare", lambda self, count: None)


def forgets_what_is_taken(monkeypatch):
    monkeypatch.setattr(NoiseBlock, "advance", lambda self, count: None)


@pytest.mark.parametrize("take_out", [skips_refills, forgets_what_is_taken])
def test_noise_goes_wrong_without_one_of_its_precautions(take_out, monkeypatch):
    monkeypatch.setattr(module, "BLOCK", 4 * 5 * 4)
    expected = collected(Samples, device=LaggingLane())
    assert_identical(expected, collected(Samples, device=LaggingLane(), compile=True))
    take_out(monkeypatch)
    try:
        got = collected(Samples, device=LaggingLane(), compile=True)
    except Exception:  # an index beyond the rows is noticed
        return
    with pytest.raises(AssertionError):
        assert_identical(expected, got)


def test_a_step_that_seeds_its_generator_runs_eagerly():
    envs = [gym.make("CartPole-v1")]

    class Seeds(SeedsItself):
        def __init__(self):
            super().__init__()
            self.head = nn.Linear(4, 2)

    with (
        pytest.warns(RuntimeWarning, match="runs eagerly, since .* it seeds `self.generator`, or sets its state"),
        same.rollout(envs, Seeds(), 5, device=LaggingLane(), compile=True) as feed,
    ):
        next(feed)
