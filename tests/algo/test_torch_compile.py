"""Losses under `torch.compile`: one graph for all fragments, no waiting for the device, and the eager results."""

from __future__ import annotations

import copy
from functools import partial

import gym
import pytest
import torch
from torch._dynamo.testing import CompileCounterWithBackend
from torch._inductor import config
from tqdm import tqdm

from rlplay import nested
from rlplay.algo import a2c, dqn, ppo, returns, vtrace
from rlplay.engine.rollout import same, threaded
from rlplay.sampling import bernoulli, categorical, epsilon_greedy, multinomial
from rlplay.zoo.actors import ActorCritic, mlp
from tests.support.assertions import assert_identical
from tests.support.fragments import Dense, made_sticky, random_fragment
from tests.support.policies import Linear
from tests.support.policies import fragment_of as spaced_fragment

GAMMA = 0.9
LOSSES = {
    "a2c": partial(a2c.loss, gamma=GAMMA),
    "ppo": partial(ppo.loss, gamma=GAMMA),
    "vtrace": partial(vtrace.loss, gamma=GAMMA),
    "dqn": partial(dqn.loss, gamma=GAMMA),
}

every = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)

pytestmark = [  # torch warns its own modules, and what it hides pytest shows
    pytest.mark.filterwarnings("ignore::DeprecationWarning:torch.*"),
    pytest.mark.filterwarnings("ignore:The .grad attribute of a Tensor that is not a leaf"),
]


needs_dynamo_that_traces_optree = pytest.mark.skipif(
    tuple(map(int, torch.__version__.split(".")[:2])) < (2, 13), reason="Dynamo of torch 2.11 cannot trace optree"
)


@pytest.fixture(autouse=True)
def compiler(monkeypatch):
    """Begin with nothing compiled; and see to it that the compiler leaves no threads and no processes."""
    torch._dynamo.reset()
    monkeypatch.setattr(tqdm, "monitor_interval", 0)
    with config.patch(compile_threads=1):
        yield


@pytest.fixture
def graphs():
    """Count the graphs, by a backend that differentiates them, and then runs them as they are."""
    return CompileCounterWithBackend("aot_eager")


def without_final(fragment):
    return fragment._replace(env=fragment.env._replace(final=()))


def fragment_with_ends(n, **options):
    """Draw a fragment with `n` ends of episodes."""
    drawn = (random_fragment(seed, T=5, B=3, **options) for seed in range(1000))
    return next(fragment for fragment in drawn if len(fragment.env.final.t) == n)


def assert_same_loss(loss, expected, fragment, actor):
    """Compare the loss, the info, and the gradients."""
    found = []
    for f in (loss, expected):
        actor.zero_grad()
        value, info = f(fragment, actor)
        value.backward()
        found.append((value.detach(), info, {n: p.grad for n, p in actor.named_parameters() if p.grad is not None}))
    torch.testing.assert_close(*found)


@every
def test_a_compiled_loss_has_one_graph_for_all_fragments(loss, graphs):
    actor, compiled = Dense(), torch.compile(loss, backend=graphs, fullgraph=True)
    for fragment in (random_fragment(1), made_sticky(random_fragment(2)), random_fragment(3)):
        assert_same_loss(compiled, loss, without_final(fragment), actor)
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    ("loss", "box"),
    [
        (partial(a2c.loss, C=0.8, normalise=True), True),
        (partial(a2c.loss, n_lookahead=3), False),
        (ppo.loss, True),
        (partial(vtrace.loss, r_bar=None, c_bar=0.5), True),
        (partial(dqn.loss, n_lookahead=3, huber=None), False),
    ],
)
def test_a_compiled_loss_has_one_graph_whatever_its_options(loss, box, graphs):
    actor, loss = Dense(), partial(loss, gamma=GAMMA)
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    assert_same_loss(compiled, loss, random_fragment(1, box=box), actor)
    assert graphs.frame_count == 1


@pytest.mark.parametrize(
    "kind",
    [
        *("multi_discrete", "squashed", "dict"),
        *(pytest.param(kind, marks=pytest.mark.soak) for kind in ("multi_binary", "tuple")),
    ],
)
def test_a_compiled_loss_has_one_graph_for_any_action_space(kind, graphs):
    actor, loss = Linear(kind), LOSSES["ppo"]
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    for seed in (1, 2):
        assert_same_loss(compiled, loss, without_final(spaced_fragment(kind, seed)), actor)
    assert graphs.frame_count == 1


def test_a_compiled_loss_has_few_graphs_for_all_numbers_of_finals(graphs):
    loss, actor = LOSSES["a2c"], Dense()
    compiled = torch.compile(loss, backend=graphs, fullgraph=True)
    for n in (4, 3, 5, 0, 1):
        assert_same_loss(compiled, loss, fragment_with_ends(n), actor)
    assert graphs.frame_count == 4  # the first number, none, one, and any


@needs_dynamo_that_traces_optree
@pytest.mark.parametrize(
    "loss", [LOSSES["ppo"], pytest.param(LOSSES["vtrace"], marks=pytest.mark.soak)], ids=["ppo", "vtrace"]
)
def test_recurrent_actors_run_eagerly_inside_a_compiled_loss(loss, graphs):
    actor, seen = Dense(recurrent=True), []
    actor.register_forward_pre_hook(lambda *_: seen.append(torch.compiler.is_compiling()))
    compiled, counts = torch.compile(loss, backend=graphs), []
    for n in (3, 4, 5, 6):
        assert_same_loss(compiled, loss, fragment_with_ends(n, recurrent=True), actor)
        counts.append(graphs.frame_count)
    assert not any(seen)
    assert 1 <= counts[1] == counts[3]


@needs_dynamo_that_traces_optree
@pytest.mark.parametrize(("recurrent", "fused"), [pytest.param(False, False, marks=pytest.mark.soak), (True, True)])
def test_compiled_minibatches_follow_the_weights(recurrent, fused, graphs):
    """Each loss is of the weights that the one before has led to, and minibatches are drawn as they are eagerly."""

    def learn(actor, optim, generator, fragment):
        for loss, _ in ppo.losses(fragment, actor, gamma=GAMMA, n_epochs=2, n_minibatches=2, generator=generator):
            optim.zero_grad()
            loss.backward()
            optim.step()

    found, n_graphs = [], []
    for f in (learn, torch.compile(learn, backend=graphs)):
        actor, generator = Dense(recurrent), torch.Generator() if fused else None
        optim = torch.optim.Adam(actor.parameters(), fused=fused)
        torch.manual_seed(0)
        (generator or torch.default_generator).manual_seed(0)
        for seed in range(3):
            f(actor, optim, generator, without_final(random_fragment(seed, recurrent=recurrent)))
            n_graphs.append(graphs.frame_count)
        found.append([*actor.parameters()])
    torch.testing.assert_close(*found)
    assert 0 == n_graphs[2] < n_graphs[3] == n_graphs[5]


def test_compiled_returns_equal_eager_ones(graphs):
    rew, val, omega = torch.randn(3, 7, 2)
    fin, end = torch.rand(7, 2) < 0.3, torch.randn(2)
    rew[fin] = torch.inf  # nothing beyond an end comes back over it, and what is not finite shows

    def all_of_them():
        how = {"gamma": GAMMA, "bootstrap": end}
        yield returns.returns(rew, fin, omega=omega, r_bar=1.0, **how)
        yield returns.gae(rew, fin, val, C=0.5, **how)
        yield returns.multistep(rew, fin, val, n_lookahead=2, **how)
        yield returns.deltas(rew, fin, val, **how)
        yield returns.vtrace(rew, fin, val, omega, r_bar=None, c_bar=1.0, **how)

    compiled = torch.compile(lambda: list(all_of_them()), backend=graphs, fullgraph=True)
    torch.testing.assert_close(compiled(), list(all_of_them()), equal_nan=True)
    assert graphs.frame_count == 1


def test_the_draws_of_an_actor_do_not_split_the_graph_of_a_loss():
    x = torch.randn(5, 3)
    for draw in (categorical, multinomial, bernoulli, partial(epsilon_greedy, epsilon=0.5)):
        found = []
        for function in (draw, torch.compile(draw, backend="eager", fullgraph=True)):
            torch.manual_seed(0)
            found.append(function(x))
        assert torch.equal(*found)


@pytest.mark.soak
def test_a_compiled_learner_with_a_fused_optimizer_trains():
    """The whole of it, with torch's own backend: from both engines the same, and what it does eagerly."""
    torch.manual_seed(0)
    initial = ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1))
    eager = partial(a2c.loss, gamma=0.99, C=0.95)
    compiled = torch.compile(eager, fullgraph=True)

    def run(engine):
        actor, fragments = copy.deepcopy(initial), []
        optim = torch.optim.Adam(actor.parameters(), lr=0.01, fused=True)
        with engine.rollout([gym.make("CartPole-v1") for _ in range(4)], actor, 16, lag=1, seed=0) as feed:
            for _, fragment in zip(range(4), feed):  # noqa: B905
                assert_same_loss(compiled, eager, fragment, actor)
                optim.zero_grad()
                compiled(fragment, actor)[0].backward()
                optim.step()
                fragments.append(fragment)
        return fragments, nested.map(torch.detach, dict(actor.named_parameters()))

    assert_identical(run(threaded), run(same))  # in this order: it is compiled while a thread collects
