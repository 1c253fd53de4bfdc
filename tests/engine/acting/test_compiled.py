"""`compile=True` on the host: compiled steps equal eager ones up to rounding, or the step runs eagerly."""

import re
import threading
import warnings
from functools import partial

import gym
import numpy as np
import pytest
import torch
from torch import nn

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.acting.compile import inductor
from rlplay.engine.acting.compile.draws import Draw, RecordedNoise
from rlplay.engine.acting.compile.graph import make_graph
from rlplay.engine.acting.compile.step_checks import NoGraph
from rlplay.engine.rollout import same, single, threaded
from rlplay.testing import CountingActor, LaggingLane
from tests.support import collecting
from tests.support.actors import (
    AdvancesStateInPlace,
    AnswerActor,
    AssignsBuffer,
    BranchesOnData,
    ChangesBuffers,
    ChangesTensorAttribute,
    Convolves,
    CountsInAttribute,
    DrawsFirstState,
    DrawsFromNumpyRandom,
    DrawsFromPythonRandom,
    KeepsStateFromVirtualSteps,
    RemembersObservation,
    ReportsModes,
    SwapsState,
    TiedWeights,
)
from tests.support.assertions import assert_equal_up_to_rounding, assert_identical
from tests.support.collecting import (
    collected,
    collected_seeded,
    compile_warnings_of,
    ledgers,
    shift_weights,
    switch_mode,
)
from tests.support.training import GruWithBuffer, assert_processes_yield_the_fragments_of_same, run_training

pytestmark = pytest.mark.usefixtures("no_monitor")

cartpole = partial(gym.make, "CartPole-v1")


@pytest.fixture
def programs(monkeypatch):
    """Return a list to which each compiled graph is added."""
    found, really = [], inductor.compile_graph
    monkeypatch.setattr(inductor, "compile_graph", lambda graph: found.append(graph) or really(graph))
    return found


# ---- engines agree


@pytest.mark.parametrize("groups", [pytest.param(1, marks=pytest.mark.soak), 2])
def test_compiled_threaded_yields_the_fragments_of_compiled_same_bit_for_bit(groups, programs):
    expected, _ = run_training(same, lag=1, groups=groups, compile=True)
    assert len(programs) == 2 * groups  # in train and in eval mode; virtual steps are no others
    assert_identical(expected, run_training(threaded, lag=1, groups=groups, compile=True)[0])


@pytest.mark.soak
def test_compiled_fragments_on_the_lagging_device_equal_those_on_the_host():
    expected, _ = run_training(same, lag=2, compile=True)
    for haste in (0.0, 0.5):
        lane = LaggingLane(haste=haste, actor_on_host=True)  # or the step would be captured
        assert_identical(expected, run_training(threaded, lag=2, compile=True, device=lane)[0])


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("options", [{"groups": 2}, {"sticky": True}, {"n_steps": 1}, {"groups": 5}], ids=str)
def test_compiled_engines_agree_for_many_options(lag, options):
    expected, _ = run_training(same, lag=lag, compile=True, **options)
    assert_identical(expected, run_training(threaded, lag=lag, compile=True, **options)[0])
    for consumer_on_host in (False, True):
        lane = LaggingLane(haste=0.3, actor_on_host=True, consumer_on_host=consumer_on_host)
        assert_identical(expected, run_training(threaded, lag=lag, compile=True, device=lane, **options)[0])


def test_compiled_single_yields_the_fragments_of_compiled_same():
    assert_processes_yield_the_fragments_of_same(cartpole, 1, 5, n_steps=11, lag=1, final=True, compile=True)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_compiled_multi_yields_the_fragments_of_compiled_same():
    assert_processes_yield_the_fragments_of_same(cartpole, 2, 3, n_steps=11, lag=1, final=True, compile=True)


def test_compiled_fragments_do_not_depend_on_where_they_are_cut():
    whole = collected(
        GruWithBuffer, n_fragments=1, n_steps=12, envs=lambda: [cartpole() for _ in range(3)], compile=True
    )
    parts = collected(
        GruWithBuffer, n_fragments=3, n_steps=4, envs=lambda: [cartpole() for _ in range(3)], compile=True
    )
    for name in ("logits", "value"):
        cut = torch.cat([part.actor[name][:4] for part in parts])
        assert torch.equal(cut, whole[0].actor[name][:12])
        # what is looked at is done by the very same program
        assert torch.equal(parts[0].actor[name][4], parts[1].actor[name][0])


# ---- compiled steps equal eager ones


def test_compiled_steps_follow_the_eager_ones_while_training():
    assert_equal_up_to_rounding(run_training(same, lag=1)[0], run_training(same, lag=1, compile=True)[0])


ACTORS = {
    "buffers": ChangesBuffers,
    "a buffer assigned": AssignsBuffer,
    "tied weights": TiedWeights,
    "hx that goes round": SwapsState,
    "hx that is the observation": RemembersObservation,
    "hx in place": AdvancesStateInPlace,
    "no hx in virtual steps": KeepsStateFromVirtualSteps,
    "a reset that draws": DrawsFirstState,
    "a convolution": Convolves,
}


@pytest.mark.filterwarnings("ignore:the actor.s reset does not honour:RuntimeWarning")
@pytest.mark.parametrize("make_actor", ACTORS.values(), ids=ACTORS)
def test_compiled_steps_equal_eager_ones_up_to_rounding(make_actor):
    options = {"update": shift_weights, "groups": 2}
    assert_equal_up_to_rounding(collected(make_actor, **options), collected(make_actor, compile=True, **options))


@pytest.mark.parametrize(("form", "sampled"), [("dict", False), pytest.param("vector", True, marks=pytest.mark.soak)])
def test_compiled_steps_take_nested_observations_actions_and_states(form, sampled):
    make_actor, envs = partial(CountingActor, "dict", sampled=sampled), partial(ledgers, form=form, action="dict")
    options = {"envs": envs, "groups": 2, "sticky": sampled}
    got = collected(make_actor, compile=True, **options)
    assert got[0].actor["virtual"][-1].all()
    assert not got[0].actor["virtual"][:-1].any()
    if not sampled:  # the noise is in the same order, but goes to others where groups differ in width
        assert_equal_up_to_rounding(collected(make_actor, **options), got)


def test_autocast_is_in_the_compiled_step():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = collected(TiedWeights)
        got = collected(TiedWeights, compile=True)
    assert got[0].actor["out"].dtype == eager[0].actor["out"].dtype
    for one, other in zip(eager, got, strict=True):
        torch.testing.assert_close(one.actor["out"], other.actor["out"], rtol=0.02, atol=0.1)


@pytest.mark.parametrize("engine", [pytest.param(same, marks=pytest.mark.soak), threaded])
def test_autocast_at_the_first_next_holds_in_compiled_steps_of_later_modes(engine):
    actor = GruWithBuffer()
    with engine.rollout([cartpole() for _ in range(4)], actor, 5, seed=0, lag=0, compile=True) as feed:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            first = next(feed)
        actor.eval()
        second = next(feed)
    assert first.actor["logits"].dtype == second.actor["logits"].dtype == torch.bfloat16
    assert_identical(first.actor["logits"][-1], second.actor["logits"][0])
    assert not second.actor["training"].any()


def test_the_thread_that_calls_next_compiles(monkeypatch):
    """For the compiler puts torch's global generator back, and so undoes what a learner beside it has drawn."""
    threads, really = [], inductor.compile_graph
    monkeypatch.setattr(
        inductor, "compile_graph", lambda graph: threads.append(threading.current_thread()) or really(graph)
    )
    actor = GruWithBuffer()
    with threaded.rollout([cartpole() for _ in range(5)], actor, 5, lag=2, compile=True) as feed:
        next(feed)
        actor.eval()
        next(feed)
    assert threads[1:] == [threading.current_thread()]


def test_making_a_feed_takes_nothing_from_the_global_generator():
    actor = DrawsBy("rand_like")
    state = torch.get_rng_state()
    same.rollout(ledgers(), actor, 3, seed=0, compile=True).close()
    assert torch.equal(state, torch.get_rng_state())


def test_folded_weights_are_computed_again_for_each_snapshot():
    def zeroed(actor):
        with torch.no_grad():
            for weight in actor.parameters():
                weight.zero_()

    first, second, _ = collected(GruWithBuffer, envs=lambda: [cartpole()], update=zeroed, compile=True)
    assert first.actor["logits"].abs().sum() > 0
    assert second.actor["logits"].abs().sum() == 0


def test_mixed_modes_are_compiled_when_a_snapshot_has_them(programs):
    def switch_part(actor):
        actor.part.eval()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = collected(ReportsModes, update=switch_part, compile=True)
    assert [int(fragment.actor["answer"].unique()) for fragment in got] == [3, 2, 2]
    assert len(programs) == 2


# ---- graphs


def traced(step, *inputs, parameters=()):
    step(*inputs)
    return make_graph(step, inputs, len(inputs) - 1, parameters, [], RecordedNoise())


@pytest.mark.parametrize(("n", "copied"), [(64, True), (512, False)])
def test_small_weights_are_copied_to_another_layout_and_large_ones_are_not(n, copied):
    weight = torch.rand(n, n)
    found = traced(lambda x, out: out.copy_(x @ weight.t()), torch.rand(8, n), torch.rand(8, n), parameters=[weight])
    assert set(found.operands) == {("derived" if copied else "parameter", 0), ("input", 0), ("input", 1)}


def test_expressions_of_parameters_alone_are_folded_and_their_views_are_not():
    weight, log_std = torch.rand(3, 3), torch.rand(3)

    def step(x, out):
        out.copy_(x / (weight.abs().sum() + log_std.exp()).expand_as(x) * weight[0])

    found = traced(step, torch.rand(8, 3), torch.rand(8, 3), parameters=[weight, log_std])
    assert found.operands == [("derived", 0), ("input", 0), ("input", 1), ("parameter", 0)]
    (derived,) = found.derive(weight, log_std)
    assert torch.equal(derived, weight.abs().sum() + log_std.exp())


def test_graphs_over_equal_constants_are_equal():
    def key(constant):
        return traced(lambda x, out: out.copy_(x * torch.tensor(constant)), torch.rand(3), torch.rand(3)).key

    assert key(0.5) == key(0.5) != key(0.25)


def test_attention_without_dropout_draws_nothing_and_is_part_of_a_graph():
    def step(x, out):
        out.copy_(torch.nn.functional.scaled_dot_product_attention(x, x, x))

    found = traced(step, torch.rand(1, 2, 4, 8), torch.rand(1, 2, 4, 8))
    assert "scaled_dot_product" in found.graph.code


# ---- random numbers


def drawn_from(mean, generator):
    """Return the ways to draw, by name; `mean` has shape (n_seq, B, 3)."""
    own = {"generator": generator}
    std, probs = mean.exp() + 0.1, mean.softmax(-1)
    return {
        "categorical": lambda: sampling.categorical(mean, **own),
        "multinomial of rlplay": lambda: sampling.multinomial(probs, **own),
        "epsilon_greedy": lambda: sampling.epsilon_greedy(mean, 0.5, **own),
        "multinomial": lambda: torch.multinomial(probs.flatten(0, 1), 1, **own),
        "multinomial, with replacement": lambda: torch.multinomial(probs.flatten(0, 1), 1, True, **own),
        "Categorical": lambda: torch.distributions.Categorical(logits=mean, validate_args=False).sample(),
        "exponential_": lambda: (mean - torch.empty_like(mean).exponential_(2.0, **own).log()).argmax(-1),
        "randn": lambda: mean + std * torch.randn(mean.shape, **own),
        "randn_like": lambda: mean + std * torch.randn_like(mean),
        "normal_": lambda: torch.empty_like(mean).normal_(0.5, 2.0, **own) + mean,
        "normal, both": lambda: torch.normal(mean, std, **own),
        "normal, mean": lambda: torch.normal(mean, 2.0, **own),
        "normal, std": lambda: torch.normal(0.5, std, **own),
        "normal, transposed": lambda: torch.normal(mean.mT, std.mT, **own),
        "normal, mean transposed": lambda: torch.normal(mean.mT, 2.0, **own),
        "normal_, transposed": lambda: torch.zeros_like(mean.mT).normal_(**own) + mean.mT,
        "normal, neither": lambda: torch.normal(0.5, 2.0, mean.shape, **own) + mean,
        "Normal": lambda: torch.distributions.Normal(mean, std, validate_args=False).sample(),
        "Normal, rsample": lambda: torch.distributions.Normal(mean, std, validate_args=False).rsample(),
        "Uniform": lambda: torch.distributions.Uniform(mean, mean + std, validate_args=False).sample(),
        "rand": lambda: torch.rand(mean.shape, **own) < probs,
        "rand, float64": lambda: torch.rand(mean.shape, dtype=torch.float64, **own) + mean,
        "rand_like": lambda: torch.rand_like(mean) + mean,
        "uniform_": lambda: torch.zeros_like(mean).uniform_(-1.0, 2.0, **own) + mean,
        "uniform_, transposed": lambda: torch.zeros_like(mean.mT).uniform_(**own) + mean.mT,
        "bernoulli_": lambda: torch.empty_like(mean).bernoulli_(0.3, **own) * mean,
        "randint": lambda: torch.randint(5, mean.shape, **own) + mean,
        "randint, from 2": lambda: torch.randint(2, 5, mean.shape, **own) + mean,
        "randint_like": lambda: torch.randint_like(mean, 5) + mean,
        "random_": lambda: torch.empty(mean.shape, dtype=torch.int64).random_(0, 7, **own) + mean,
        "dropout": lambda: nn.functional.dropout(mean, 0.5),
        "several": lambda: torch.rand(mean.shape, **own) * torch.randn_like(mean) + sampling.categorical(mean).sum(),
    }


WAYS_TO_DRAW = list(drawn_from(torch.zeros(1, 1, 3), None))


class DrawsBy(AnswerActor):
    def __init__(self, way):
        super().__init__()
        self.way, self.layer = way, nn.Linear(6, 3)

    def answer(self, obs, fin):
        mean = self.layer(obs.sin())
        return drawn_from(mean, self.generator)[self.way]().reshape(*fin.shape, -1)


@pytest.mark.parametrize("way", WAYS_TO_DRAW)
def test_compiled_steps_draw_the_numbers_of_eager_ones(way, programs):
    make_actor = partial(DrawsBy, way)
    got, caught = compile_warnings_of(lambda: collected_seeded(make_actor, compile=True))
    assert not caught
    assert programs
    assert_equal_up_to_rounding(collected_seeded(make_actor), got)


class DrawsOneByProbs(BaseActorModule):
    """Takes an action by `torch.multinomial`; weights of the third step are wrong."""

    def __init__(self, wrong):
        super().__init__()
        self.wrong = wrong

    def forward(self, obs, *, stepno, fin, hx=None, **ignored):
        probs = torch.where((stepno == 2)[..., None], self.wrong, torch.ones(*fin.shape, 5))
        return torch.multinomial(probs[0], 1, generator=self.generator).view(fin.shape), (), ()


@pytest.mark.parametrize("wrong", [float("nan"), float("inf"), -1.0, 0.0])
def test_compiled_multinomial_of_wrong_weights_gives_no_action(wrong):
    with pytest.raises(ValueError, match="is outside of its action space: got -1"):
        collected(partial(DrawsOneByProbs, wrong), compile=True)


# ---- steps that run eagerly


class UsesNumpy(AnswerActor):
    def answer(self, obs, fin):
        return torch.from_numpy(obs.numpy() * 2)


class AppendsToList(AnswerActor):
    def __init__(self):
        super().__init__()
        self.seen = {"steps": []}

    def answer(self, obs, fin):
        self.seen["steps"].append(1)
        return obs * len(self.seen["steps"])


class OverlappingBuffers(AnswerActor):
    def __init__(self):
        super().__init__()
        self.register_buffer("whole", torch.zeros(6))
        self.register_buffer("part", self.whole[:1])

    def answer(self, obs, fin):
        self.part.add_(1)
        return obs + self.whole


class DropsOut(AnswerActor):
    def __init__(self):
        super().__init__()

    def answer(self, obs, fin):
        return torch.bernoulli(torch.full_like(obs, 0.5)) * obs if self.training else obs


class AddsInTrainMode(AnswerActor):
    def answer(self, obs, fin):
        if self.training and not hasattr(self, "seen"):
            self.register_buffer("seen", obs.clone())
        return obs / 3


class BranchesInTrainMode(AnswerActor):
    """Stops half-way in train mode, with its buffer in another's place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def answer(self, obs, fin):
        self.count = self.count + 1
        return obs + self.count if self.training and obs.sum() > 0 else obs - self.count


class DrawsMoreWhenTraced(AnswerActor):
    """Draws more where it is traced than where it is tried."""

    def answer(self, obs, fin):
        wide = type(obs) is not torch.Tensor
        return sampling.categorical(obs.repeat(1, 1, 1 + wide), generator=self.generator)


class DrawsFromThirdGenerator(AnswerActor):
    def __init__(self):
        super().__init__()
        self.third = [torch.Generator().manual_seed(0)]

    def answer(self, obs, fin):
        return torch.rand(obs.shape, generator=self.third[0])


class SeedsOwnGenerator(AnswerActor):
    def answer(self, obs, fin):
        self.generator.manual_seed(3)
        return torch.rand(obs.shape, generator=self.generator)


class SeedsTorch(AnswerActor):
    def answer(self, obs, fin):
        torch.manual_seed(5)
        return torch.rand(obs.shape)


class SeedsTorchForAWhile(AnswerActor):
    def answer(self, obs, fin):
        with torch.random.fork_rng([]):
            torch.manual_seed(5)
            return torch.rand(obs.shape)


class SetsTorchBack(AnswerActor):
    def answer(self, obs, fin):
        with torch.random.fork_rng([]):
            return torch.rand(obs.shape)


class KeepsWhatItDrew(AnswerActor):
    def answer(self, obs, fin):
        name = f"kept_{self.training}"
        if not hasattr(self, name):
            setattr(self, name, torch.randn(obs.shape[-1]))
        return obs + getattr(self, name)


class DrawsIntoPart(AnswerActor):
    def answer(self, obs, fin):
        both = torch.stack([obs, obs], -1)
        both[..., 0].normal_(generator=self.generator)
        return both.flatten(-2)


class DrawsOut(AnswerActor):
    def answer(self, obs, fin):
        out = torch.zeros_like(obs)
        torch.normal(obs, 1.0, generator=self.generator, out=out)
        return out


class DrawsBernoulli(AnswerActor):
    def answer(self, obs, fin):
        return torch.bernoulli(obs.sigmoid(), generator=self.generator)


class DrawsTwoSamples(AnswerActor):
    def answer(self, obs, fin):
        return torch.multinomial(obs[0].abs() + 1, 2, generator=self.generator).expand(1, -1, -1)


class ReadsItsBuffer(AnswerActor):
    """Makes a Python number of a buffer."""

    def __init__(self):
        super().__init__()
        self.register_buffer("scale", torch.tensor(2.0))

    def answer(self, obs, fin):
        return obs * self.scale.item()


class ListsItsBuffer(ReadsItsBuffer):
    def answer(self, obs, fin):
        return obs * self.scale.tolist()


class BuffersAsArray(ReadsItsBuffer):
    def answer(self, obs, fin):
        return obs * float(self.scale.numpy())


class BuffersAsArrayByNumpy(ReadsItsBuffer):
    def answer(self, obs, fin):
        return obs * float(np.asarray(self.scale))


class BranchesOnItsBuffer(ReadsItsBuffer):
    def answer(self, obs, fin):
        return obs if self.scale else -obs


class SelectsByItsBuffer(ReadsItsBuffer):
    def __init__(self):
        super().__init__()
        self.register_buffer("mask", torch.tensor([True, False, True]))

    def answer(self, obs, fin):
        return obs + len(self.mask.nonzero())


class KeepsAView(ReadsItsBuffer):
    def __init__(self):
        super().__init__()
        self.views = [self.scale.view(1)]

    def answer(self, obs, fin):
        return obs * self.views[0]


class ReadsAView(KeepsAView):
    def answer(self, obs, fin):
        return obs * self.views[0].item()


class ListsAView(KeepsAView):
    def answer(self, obs, fin):
        return obs * self.scale.detach().tolist()


class KeepsANumber(AnswerActor):
    """Makes a Python number of a tensor that no snapshot brings."""

    def __init__(self):
        super().__init__()
        self.scales = [torch.tensor(2.0)]

    def answer(self, obs, fin):
        return obs * self.scales[0].item()


def test_a_number_of_a_tensor_that_is_no_weight_is_compiled_into_the_step(programs):
    assert_equal_up_to_rounding(collected(KeepsANumber), collected(KeepsANumber, compile=True))
    assert len(programs) == 1


NOT_COMPILED = {
    "the value of a buffer": (ReadsItsBuffer, "it needs the value of a parameter or buffer"),
    "a list of a buffer": (ListsItsBuffer, "it reads a parameter or buffer by `tolist`"),
    "an array of a buffer": (BuffersAsArray, "it reads a parameter or buffer by `numpy`"),
    "an array of a buffer, by NumPy": (BuffersAsArrayByNumpy, "it reads a parameter or buffer by `__array__`"),
    "control flow over a buffer": (BranchesOnItsBuffer, "it needs the value of a parameter or buffer"),
    "a number of elements": (SelectsByItsBuffer, "it needs the value of a parameter or buffer"),
    "a view that it keeps": (KeepsAView, "it uses a view of a parameter or buffer that it keeps"),
    "the value of a view": (ReadsAView, "it needs the value of a parameter or buffer"),
    "a list of a view": (ListsAView, "it reads a parameter or buffer by `tolist`"),
    "control flow": (BranchesOnData, "tracing it failed"),
    "numpy": (UsesNumpy, "tracing it failed"),
    "an attribute": (CountsInAttribute, "changes `n`, which is not a buffer"),
    "inside of an attribute": (AppendsToList, "changes `seen`"),
    "a tensor": (ChangesTensorAttribute, "changes `table`"),
    "memory that is shared": (OverlappingBuffers, "shares its memory"),
    "a third generator": (DrawsFromThirdGenerator, "from a generator that is not its own"),
    "its own generator, seeded": (SeedsOwnGenerator, "`self.generator` otherwise than"),
    "torch's generator, seeded": (SeedsTorch, "seeds torch's global generator"),
    "torch's generator, seeded for a while": (SeedsTorchForAWhile, "seeds torch's global generator"),
    "torch's generator, set back": (SetsTorchBack, "or sets its state"),
    "a first draw that is kept": (KeepsWhatItDrew, "does not draw alike"),
    "a part of a tensor": (DrawsIntoPart, "into a part of a tensor"),
    "a result elsewhere": (DrawsOut, "random numbers by `aten.normal"),
    "Bernoulli": (DrawsBernoulli, "random numbers by `aten.bernoulli"),
    "two samples": (DrawsTwoSamples, "of more than one sample"),
    "numpy's generator": (DrawsFromNumpyRandom, "draws from `numpy.random`"),
    "Python's generator": (DrawsFromPythonRandom, "draws from `random`"),
    "other noise": (DrawsMoreWhenTraced, "does not draw alike"),
}


@pytest.mark.parametrize(("make_actor", "why"), NOT_COMPILED.values(), ids=NOT_COMPILED)
def test_a_step_that_cannot_be_compiled_runs_eagerly_with_one_warning_that_says_why(make_actor, why, programs):
    got, (warning,) = compile_warnings_of(lambda: collected_seeded(make_actor, compile=True))
    assert warning.category is RuntimeWarning
    assert warning.filename == collecting.__file__
    assert re.search(f"runs eagerly, since .*{why}", str(warning.message))
    assert_identical(collected_seeded(make_actor), got)
    assert not programs


def test_a_failed_trial_in_one_mode_does_not_change_buffers_in_the_other(programs):
    got, (warning,) = compile_warnings_of(lambda: collected(BranchesInTrainMode, update=switch_mode, compile=True))
    assert "runs eagerly in train mode, since tracing it failed" in str(warning.message)
    assert_equal_up_to_rounding(collected(BranchesInTrainMode, update=switch_mode), got)
    assert len(programs) == 1


def test_a_buffer_that_one_mode_adds_leaves_the_other_compiled(programs):
    """`switch_mode` begins in train mode, in which the buffer is added."""
    got, (warning,) = compile_warnings_of(lambda: collected(AddsInTrainMode, update=switch_mode, compile=True))
    assert "runs eagerly in train mode, since it adds or fills a buffer" in str(warning.message)
    assert_equal_up_to_rounding(collected(AddsInTrainMode, update=switch_mode), got)
    assert len(programs) == 1


def test_modes_that_cannot_be_compiled_run_eagerly_beside_others_that_can(programs):
    got, (warning,) = compile_warnings_of(lambda: collected(DropsOut, update=switch_mode, compile=True))
    assert "runs eagerly in train mode, since it draws random numbers" in str(warning.message)
    dropped = [(fragment.actor["answer"] != fragment.state.obs).any().item() for fragment in got]
    assert dropped == [True, False, True]
    assert len(programs) == 1


def test_without_a_compiler_the_step_runs_eagerly(monkeypatch):
    def broken(graph):
        raise OSError("no compiler\nat all")

    monkeypatch.setattr(inductor, "compile_graph", broken)
    got, (warning,) = compile_warnings_of(lambda: collected(TiedWeights, compile=True))
    assert str(warning.message).endswith("since compiling it failed with OSError: no compiler.")
    assert_identical(collected(TiedWeights), got)


def test_a_compiler_that_fails_later_fails_for_those_modes_alone(monkeypatch):
    def spoilt(actor):
        monkeypatch.setattr(inductor, "compile_graph", broken)
        switch_mode(actor)

    def broken(graph):
        raise OSError

    got, (warning,) = compile_warnings_of(
        lambda: collected(GruWithBuffer, envs=lambda: [cartpole()], update=spoilt, compile=True)
    )
    assert "in eval mode, since compiling it failed with OSError" in str(warning.message)
    assert [fragment.actor["training"].all().item() for fragment in got] == [True, False, True]


def test_a_collector_process_says_why_its_step_runs_eagerly():
    feed, (warning,) = compile_warnings_of(lambda: single.rollout(cartpole, BranchesOnData(), 3, 2, compile=True))
    feed.close()
    assert "since tracing it failed with" in str(warning.message)
    assert warning.filename == __file__


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_setting_the_global_state_back_is_noticed_whatever_the_default_device(device):
    with torch.device(device):
        noise, before = RecordedNoise(), torch.get_rng_state()
        noise.draw(Draw("uniform_", torch.Size((2,)), torch.float32, (1,), from_global=True))
        noise.check_global_state()
        torch.set_rng_state(before)
        with pytest.raises(NoGraph, match="sets its state"):
            noise.check_global_state()
