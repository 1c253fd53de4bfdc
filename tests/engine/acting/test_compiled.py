"""`compile=True`: one kind of step in all engines, what the eager one does up to rounding, or the eager one itself."""

import random
import re
import threading
import warnings
from functools import partial

import gym
import numpy as np
import pytest
import torch
from torch import nn
from tqdm import tqdm

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.acting.compile import inductor
from rlplay.engine.acting.compile.graph import make_graph
from rlplay.engine.acting.compile.step_checks import ReplayedNoise
from rlplay.engine.rollout import same, single, threaded
from rlplay.testing import CountingActor, LaggingLane, LedgerEnv
from tests.engine.acting.test_behaviour import Assigning, InPlace, Remembering, Restless
from tests.engine.collector.test_law import Recurrent, assert_identical, run
from tests.engine.remote.test_remote import assert_lawful

cartpole = partial(gym.make, "CartPole-v1")


def ledgers(n=4, **options):
    return [LedgerEnv(gym.spaces, j, **options) for j in range(n)]


def collected(make_actor, *, n_fragments=3, n_steps=7, envs=ledgers, update=lambda actor: None, **options):
    """Collect some fragments from a fresh start."""
    torch.manual_seed(0)
    actor, fragments = make_actor(), []
    with same.rollout(envs(), actor, n_steps, seed=1, final=True, **options) as feed:
        for _ in range(n_fragments):
            fragments.append(next(feed))
            update(actor)
    return fragments


def assert_alike(some, others):
    """Compare up to rounding."""
    assert nested.structure(some) == nested.structure(others)
    for name, x, y in zip(nested.names(some), nested.leaves(some), nested.leaves(others), strict=True):
        torch.testing.assert_close(
            x, y, rtol=1e-4, atol=1e-4, msg=lambda text, name=name: f"{name}: {text}", equal_nan=True
        )


@pytest.fixture(autouse=True)
def no_monitor(monkeypatch):
    """The compiler has progress bars, and these a thread that stays."""
    monkeypatch.setattr(tqdm, "monitor_interval", 0)


@pytest.fixture
def programs(monkeypatch):
    """List the graphs that are compiled."""
    found, really = [], inductor.compile_graph
    monkeypatch.setattr(inductor, "compile_graph", lambda graph: found.append(graph) or really(graph))
    return found


class Chained(BaseActorModule):
    """No weights, no noise, hardly anything to compile: for tests of what is around it."""

    def forward(self, obs, *, fin, hx=None, **ignored):
        return torch.zeros_like(fin, dtype=torch.int64), (), {"answer": self.answer(obs, fin)}


# ---- the law


@pytest.mark.parametrize("groups", [1, 2])
def test_threaded_yields_the_fragments_of_same_bit_for_bit(groups, programs):
    expected, _ = run(same, lag=1, groups=groups, compile=True)
    assert len(programs) == 2 * groups  # in train and in eval mode; virtual steps are no others
    assert_identical(expected, run(threaded, lag=1, groups=groups, compile=True)[0])


def test_the_law_holds_on_a_device_that_lags():
    expected, _ = run(same, lag=2, compile=True)
    for haste in (0.0, 0.5):
        lane = LaggingLane(haste=haste, actor_on_host=True)  # or the step would be captured
        assert_identical(expected, run(threaded, lag=2, compile=True, device=lane)[0])


@pytest.mark.soak
@pytest.mark.timeout(600)
@pytest.mark.parametrize("lag", [0, 3])
@pytest.mark.parametrize("options", [{"groups": 2}, {"sticky": True}, {"n_steps": 1}, {"groups": 5}], ids=str)
def test_the_law_holds_widely(lag, options):
    expected, _ = run(same, lag=lag, compile=True, **options)
    assert_identical(expected, run(threaded, lag=lag, compile=True, **options)[0])
    for consumer_on_host in (False, True):
        lane = LaggingLane(haste=0.3, actor_on_host=True, consumer_on_host=consumer_on_host)
        assert_identical(expected, run(threaded, lag=lag, compile=True, device=lane, **options)[0])


def test_single_yields_the_fragments_of_same():
    assert_lawful(cartpole, 1, 5, n_steps=11, lag=1, final=True, compile=True)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_multi_yields_the_fragments_of_same():
    assert_lawful(cartpole, 2, 3, n_steps=11, lag=1, final=True, compile=True)


def test_a_feed_can_be_cut_anywhere():
    whole = collected(Recurrent, n_fragments=1, n_steps=12, envs=lambda: [cartpole() for _ in range(3)], compile=True)
    parts = collected(Recurrent, n_fragments=3, n_steps=4, envs=lambda: [cartpole() for _ in range(3)], compile=True)
    for name in ("logits", "value"):
        cut = torch.cat([part.actor[name][:4] for part in parts])
        assert torch.equal(cut, whole[0].actor[name][:12])
        # what is looked at is done by the very same program
        assert torch.equal(parts[0].actor[name][4], parts[1].actor[name][0])


# ---- what eager steps do


def test_it_follows_the_eager_steps_while_training():
    assert_alike(run(same, lag=1)[0], run(same, lag=1, compile=True)[0])


class Keeping(BaseActorModule):
    """Changes buffers in all the ways there are: in place, by another tensor, crosswise, inside of a layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.tally = {"also": self.seen}
        self.register_buffer("one", torch.tensor(1.0))
        self.register_buffer("other", torch.tensor(2.0))

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        if not virtual:
            self.seen.add_(1)
            self.one, self.other = self.other, self.one
        info = {"norm": self.norm(obs[0])[None], "seen": self.seen.expand(fin.shape), "one": self.one.expand(fin.shape)}
        return fin.long(), (), info


class Tied(BaseActorModule):
    """One weight in two places; work on weights that need be done but once, and views of it."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.log_std = nn.Parameter(torch.zeros(6))
        self.table = torch.arange(6.0)

    def forward(self, obs, *, fin, hx=None, **ignored):
        out = self.second(self.first(obs).relu()) * torch.tensor(0.5) + self.table
        return (
            fin.long(),
            (),
            {"out": out, "std": self.log_std.exp().expand_as(out), "raw": self.log_std.expand_as(out)},
        )


class Swapping(BaseActorModule):
    """Its recurrent state goes round in a circle."""

    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = {"a": obs[..., :2], "b": 1 + obs[..., :2], "n": fin[..., None].long()} if hx is None else hx
        info = {"a": hx["a"], "n": hx["n"]}
        return fin.long(), {"a": hx["b"], "b": hx["a"], "n": hx["n"].add_(1)}, info


class Seeing(BaseActorModule):
    """Convolves, and keeps what it has made at its first step."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 4, 3)
        self.scale = None

    def forward(self, obs, *, fin, hx=None, **ignored):
        if self.scale is None:
            self.scale = torch.full((1,), 0.5)
        return fin.long(), (), {"seen": self.layer(obs[0][:, None] * self.scale).flatten(1)[None]}


def shaken(actor):
    with torch.no_grad():
        for weight in actor.parameters():
            weight.add_(0.1)


SAME = {
    "buffers": Keeping,
    "a buffer assigned": Assigning,
    "tied weights": Tied,
    "hx that goes round": Swapping,
    "hx that is the observation": Remembering,
    "hx in place": InPlace,
    "a reset that draws": Restless,
    "a convolution": Seeing,
}


@pytest.mark.filterwarnings("ignore:the actor.s reset does not honour:RuntimeWarning")
@pytest.mark.parametrize("make_actor", SAME.values(), ids=SAME)
def test_it_does_what_eager_steps_do(make_actor):
    options = {"update": shaken, "groups": 2}
    assert_alike(collected(make_actor, **options), collected(make_actor, compile=True, **options))


@pytest.mark.parametrize(("form", "sampled"), [("dict", False), pytest.param("vector", True, marks=pytest.mark.soak)])
def test_everything_may_be_nested(form, sampled):
    make_actor, envs = partial(CountingActor, "dict", sampled=sampled), partial(ledgers, form=form, action="dict")
    options = {"envs": envs, "groups": 2, "sticky": sampled}
    got = collected(make_actor, compile=True, **options)
    assert got[0].actor["virtual"][-1].all()
    assert not got[0].actor["virtual"][:-1].any()
    if not sampled:  # the noise is in the same order, but goes to others where groups differ in width
        assert_alike(collected(make_actor, **options), got)


def test_autocast_is_in_the_compiled_step():
    with torch.autocast("cpu", dtype=torch.bfloat16):
        eager = collected(Tied)
        got = collected(Tied, compile=True)
    assert got[0].actor["out"].dtype == eager[0].actor["out"].dtype
    for one, other in zip(eager, got, strict=True):
        torch.testing.assert_close(one.actor["out"], other.actor["out"], rtol=0.02, atol=0.1)


@pytest.mark.parametrize("engine", [pytest.param(same, marks=pytest.mark.soak), threaded])
def test_the_conditions_at_the_first_ask_hold_even_if_they_are_others_later(engine):
    actor = Recurrent()
    with engine.rollout([cartpole() for _ in range(4)], actor, 5, seed=0, lag=0, compile=True) as feed:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            first = next(feed)
        actor.eval()
        second = next(feed)
    assert first.actor["logits"].dtype == second.actor["logits"].dtype == torch.bfloat16
    assert_identical(first.actor["logits"][-1], second.actor["logits"][0])
    assert not second.actor["training"].any()


def test_it_is_the_asking_thread_that_compiles(monkeypatch):
    """For the compiler puts torch's global generator back, and so undoes what a learner beside it has drawn."""
    threads, really = [], inductor.compile_graph
    monkeypatch.setattr(
        inductor, "compile_graph", lambda graph: threads.append(threading.current_thread()) or really(graph)
    )
    actor = Recurrent()
    with threaded.rollout([cartpole() for _ in range(5)], actor, 5, lag=2, compile=True) as feed:
        next(feed)
        actor.eval()
        next(feed)
    assert threads[1:] == [threading.current_thread()]


def test_making_a_feed_takes_nothing_from_the_global_generator():
    state = torch.get_rng_state()
    warned(lambda: same.rollout(ledgers(), Global(), 3, seed=0, compile=True).close())
    assert torch.equal(state, torch.get_rng_state())


def test_weights_are_followed_and_worked_out_anew():
    def zeroed(actor):
        with torch.no_grad():
            for weight in actor.parameters():
                weight.zero_()

    first, second, _ = collected(Recurrent, envs=lambda: [cartpole()], update=zeroed, compile=True)
    assert first.actor["logits"].abs().sum() > 0
    assert second.actor["logits"].abs().sum() == 0


def test_modes_that_are_mixed_are_compiled_when_they_are_met(programs):
    class Mixed(Chained):
        def __init__(self):
            super().__init__()
            self.part = nn.Identity()

        def answer(self, obs, fin):
            return torch.full_like(obs, 2 * self.training + self.part.training)

    def turned(actor):
        actor.part.eval()

    with warnings.catch_warnings():
        warnings.simplefilter("error")
        got = collected(Mixed, update=turned, compile=True)
    assert [int(fragment.actor["answer"].unique()) for fragment in got] == [3, 2, 2]
    assert len(programs) == 2


# ---- graphs


def traced(step, *inputs, parameters=()):
    step(*inputs)
    return make_graph(step, inputs, len(inputs) - 1, parameters, [], ReplayedNoise())


@pytest.mark.parametrize(("n", "copied"), [(64, True), (512, False)])
def test_small_weights_are_laid_out_anew_and_large_ones_are_left_where_they_are(n, copied):
    weight = torch.rand(n, n)
    found = traced(lambda x, out: out.copy_(x @ weight.t()), torch.rand(8, n), torch.rand(8, n), parameters=[weight])
    assert set(found.operands) == {("derived" if copied else "parameter", 0), ("input", 0), ("input", 1)}


def test_what_depends_on_parameters_alone_is_worked_out_once_and_views_of_it_are_made_where_they_are_used():
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


# ---- falling back


class Branching(Chained):
    def answer(self, obs, fin):
        return obs * 2 if obs.sum() > 0 else obs


class Numpy(Chained):
    def answer(self, obs, fin):
        return torch.from_numpy(obs.numpy() * 2)


class Counting(Chained):
    n = 0

    def answer(self, obs, fin):
        self.n += 1
        return obs * self.n


class Listing(Chained):
    def __init__(self):
        super().__init__()
        self.seen = {"steps": []}

    def answer(self, obs, fin):
        self.seen["steps"].append(1)
        return obs * len(self.seen["steps"])


class Tensors(Chained):
    def __init__(self):
        super().__init__()
        self.table = torch.zeros(6)

    def answer(self, obs, fin):
        return obs + self.table.add_(1)


class Overlapping(Chained):
    def __init__(self):
        super().__init__()
        self.register_buffer("whole", torch.zeros(6))
        self.register_buffer("part", self.whole[:1])

    def answer(self, obs, fin):
        self.part.add_(1)
        return obs + self.whole


class Global(Chained):
    def answer(self, obs, fin):
        return torch.rand_like(obs) * 0


class Dropout(Chained):
    def __init__(self):
        super().__init__()
        self.layer = nn.Dropout(0.5)

    def answer(self, obs, fin):
        return self.layer(obs)


class Halting(Chained):
    """Stops half-way in train mode, with its buffer in another's place."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def answer(self, obs, fin):
        self.count = self.count + 1
        return obs + self.count if self.training and obs.sum() > 0 else obs - self.count


class Own(Chained):
    def answer(self, obs, fin):
        return torch.rand(obs.shape, generator=self.generator)


class Outside(Chained):
    def answer(self, obs, fin):
        return obs * np.random.rand()  # noqa: NPY002


class Dice(Chained):
    def answer(self, obs, fin):
        return obs * 2 if random.random() < 0.5 else obs


class Fickle(Chained):
    """Draws more where it is traced than where it is tried."""

    def answer(self, obs, fin):
        wide = type(obs) is not torch.Tensor
        return sampling.categorical(obs.repeat(1, 1, 1 + wide), generator=self.generator)


BACK = {
    "control flow": (Branching, "tracing it failed"),
    "numpy": (Numpy, "tracing it failed"),
    "an attribute": (Counting, "changes `n`, which is not a buffer"),
    "inside of an attribute": (Listing, "changes `seen`"),
    "a tensor": (Tensors, "changes `table`"),
    "memory that is shared": (Overlapping, "shares its memory"),
    "torch's generator": (Global, "random numbers by `aten.rand"),
    "its own generator": (Own, "`self.generator` otherwise than"),
    "numpy's generator": (Outside, "draws from `numpy.random`"),
    "Python's generator": (Dice, "draws from `random`"),
    "other noise": (Fickle, "does not draw alike"),
}


def warned(call):
    """Return what a call returns, and its warnings about compiling."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        answer = call()
    return answer, [w for w in caught if "compile=" in str(w.message)]


def seeded(make_actor, **options):
    random.seed(0)
    np.random.seed(0)  # noqa: NPY002
    return collected(make_actor, groups=2, **options)


@pytest.mark.parametrize(("make_actor", "why"), BACK.values(), ids=BACK)
def test_what_cannot_be_compiled_runs_eagerly_with_one_warning_that_says_why(make_actor, why, programs):
    got, (warning,) = warned(lambda: seeded(make_actor, compile=True))
    assert warning.category is RuntimeWarning
    assert warning.filename == __file__
    assert re.search(f"runs eagerly, since .*{why}", str(warning.message))
    assert_identical(seeded(make_actor), got)
    assert not programs


def turned(actor):
    actor.train(not actor.training)


def test_what_is_tried_in_one_mode_does_not_spoil_the_other(programs):
    got, (warning,) = warned(lambda: collected(Halting, update=turned, compile=True))
    assert "runs eagerly in train mode, since tracing it failed" in str(warning.message)
    assert_alike(collected(Halting, update=turned), got)
    assert len(programs) == 1


def test_modes_that_cannot_be_compiled_run_eagerly_beside_others_that_can(programs):
    got, (warning,) = warned(lambda: collected(Dropout, update=turned, compile=True))
    assert "runs eagerly in train mode, since it draws random numbers" in str(warning.message)
    dropped = [(fragment.actor["answer"] != fragment.state.obs).any().item() for fragment in got]
    assert dropped == [True, False, True]
    assert len(programs) == 1


def test_without_a_compiler_it_runs_eagerly(monkeypatch):
    def broken(graph):
        raise OSError("no compiler\nat all")

    monkeypatch.setattr(inductor, "compile_graph", broken)
    got, (warning,) = warned(lambda: collected(Tied, compile=True))
    assert str(warning.message).endswith("since compiling it failed with OSError: no compiler.")
    assert_identical(collected(Tied), got)


def test_a_compiler_that_fails_later_fails_for_those_modes_alone(monkeypatch):
    def spoilt(actor):
        monkeypatch.setattr(inductor, "compile_graph", broken)
        turned(actor)

    def broken(graph):
        raise OSError

    got, (warning,) = warned(lambda: collected(Recurrent, envs=lambda: [cartpole()], update=spoilt, compile=True))
    assert "in eval mode, since compiling it failed with OSError" in str(warning.message)
    assert [fragment.actor["training"].all().item() for fragment in got] == [True, False, True]


def test_processes_say_why_too():
    feed, (warning,) = warned(lambda: single.rollout(cartpole, Branching(), 3, 2, compile=True))
    feed.close()
    assert "since tracing it failed with" in str(warning.message)
    assert warning.filename == __file__
