"""The law of the engines: exact policy lag, equal fragments bit for bit, and fragments that do not change."""

import sys
from itertools import islice

import gym
import pytest
import torch

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.testing import CountingActor, LaggingLane, LedgerEnv
from tests.support import vectors
from tests.support.assertions import assert_identical
from tests.support.training import N_FRAGMENTS, GruWithBuffer, run_training


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_threaded_yields_the_fragments_of_same_bit_for_bit(lag, groups):
    expected, versions = run_training(same, lag=lag, groups=groups)
    got, others = run_training(threaded, lag=lag, groups=groups)
    assert versions == others == [max(0, k - lag) for k in range(N_FRAGMENTS)]
    assert_identical(expected, got)


class TellsWhereInputsLie(BaseActorModule):
    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        where = [x.data_ptr() % 64 for x in (stepno, obs, act, rew, fin)]
        return torch.zeros_like(act), (), torch.tensor(where).expand(*fin.shape, -1)


@pytest.mark.parametrize(
    ("engine", "part", "options"),
    [
        (threaded, slice(4), {"workers": 2, "worker": "thread", "groups": 2}),
        (same, slice(2, 4), {"shard": (1, 2)}),
    ],
)
def test_inputs_are_aligned_alike_however_environments_are_stepped(engine, part, options):
    """Kernels of matrix products may round otherwise where their inputs are not aligned to the same bytes."""

    def told(rollout, n, **options):
        with rollout([LedgerEnv(gym.spaces, j) for j in range(n)], TellsWhereInputsLie(), 3, seed=0, **options) as feed:
            return next(feed).actor

    whole = told(same.rollout, 4, groups=2)
    assert_identical(whole[:, part], told(engine.rollout, part.stop - (part.start or 0), **options))


@pytest.mark.parametrize("sticky", [False, True])
def test_threaded_equals_same_for_sticky_and_for_short_fragments(sticky):
    for n_steps in (1, 2):
        expected, _ = run_training(same, lag=1, sticky=sticky, n_steps=n_steps)
        got, _ = run_training(threaded, lag=1, sticky=sticky, n_steps=n_steps)
        assert_identical(expected, got)


def test_training_and_lag_change_the_fragments():
    """Else bit-identity would show nothing."""
    trained, _ = run_training(same, lag=1)
    frozen, _ = run_training(same, lag=1, update=lambda *_: None)
    assert not torch.equal(trained[-1].actor["logits"], frozen[-1].actor["logits"])
    later, _ = run_training(same, lag=2)
    assert not torch.equal(trained[-1].actor["logits"], later[-1].actor["logits"])


@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize("lag", [0, 1, 2, 3])
def test_a_fragment_is_collected_with_the_weights_of_the_ask_that_lag_says(engine, lag):
    """The buffer counts the asks: every row of fragment k shows the number of its snapshot."""

    def count(actor, dice, launch):
        actor.temperature.add_(1)

    fragments, versions = run_training(engine, lag=lag, update=count)
    for k, fragment in enumerate(fragments):
        assert versions[k] == max(0, k - lag)
        assert (fragment.actor["temperature"] == 1 + max(0, k - lag)).all()


@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize("lag", [0, 1])
def test_weights_that_change_during_a_fragment_do_not_reach_it(engine, lag):
    actor = GruWithBuffer()

    class Meddles(gym.Wrapper):
        def step(self, action):
            with torch.no_grad():
                actor.temperature.add_(1)
            return super().step(action)

    with engine.rollout([Meddles(gym.make("CartPole-v1"))], actor, 5, lag=lag) as feed:
        for fragment in islice(feed, 4):
            assert len(fragment.actor["temperature"].unique()) == 1
    assert actor.temperature > 20


def test_the_switch_interval_of_threads_changes_no_fragment():
    expected, _ = run_training(same, lag=1)
    before = sys.getswitchinterval()
    try:
        for interval in (1e-6, 1e-3, 1.0):
            sys.setswitchinterval(interval)
            assert_identical(expected, run_training(threaded, lag=1)[0])
    finally:
        sys.setswitchinterval(before)


@pytest.mark.usefixtures("no_stock")
@pytest.mark.parametrize("engine", [same, threaded])
@pytest.mark.parametrize("haste", [0.0, 0.5, 1.0])
@pytest.mark.parametrize(("actor_on_host", "consumer_on_host"), [(False, False), (True, False), (False, True)])
def test_fragments_on_the_lagging_device_equal_those_on_the_host(engine, haste, actor_on_host, consumer_on_host):
    for lag in (0, 2):
        expected, _ = run_training(same, lag=lag, groups=2)
        lane = LaggingLane(haste=haste, actor_on_host=actor_on_host, consumer_on_host=consumer_on_host)
        got, _ = run_training(engine, lag=lag, groups=2, device=lane)
        assert_identical(expected, got)


@pytest.mark.parametrize("n_steps", [1, 2, 3])
def test_transitions_that_are_carried_out_are_counted_in_a_ring_of_rows(n_steps):
    envs = vectors.vector_of("NEXT_STEP", vectors.ledgers("NEXT_STEP"))
    vectors.collected(same, envs, CountingActor(), n_steps, 36 // n_steps, device=LaggingLane(haste=1.0))
    envs.close()


def test_the_seed_decides_the_fragments_and_without_one_the_global_generator_does():
    def first(**options):
        envs = [gym.make("CartPole-v1") for _ in range(3)]
        with same.rollout(envs, actor, 20, **options) as feed:
            return next(feed)

    actor = GruWithBuffer()
    assert_identical(first(seed=5), first(seed=5))
    assert not torch.equal(first(seed=5).state.obs, first(seed=6).state.obs)
    torch.manual_seed(0)
    one = first()
    other = first()
    torch.manual_seed(0)
    assert_identical(one, first())
    assert not torch.equal(one.state.obs, other.state.obs)


@pytest.mark.parametrize("engine", [same, threaded])
def test_autocast_at_the_first_ask_holds_in_the_collector(engine):
    actor = GruWithBuffer()
    envs = [gym.make("CartPole-v1") for _ in range(3)]
    with engine.rollout(envs, actor, 5, seed=0, lag=1) as feed:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            first = next(feed)
        second = next(feed)
    assert first.actor["logits"].dtype == second.actor["logits"].dtype == torch.bfloat16
    assert_identical(first.actor["logits"][-1], second.actor["logits"][0])


@pytest.mark.parametrize("engine", [same, threaded])
def test_fragments_can_be_differentiated_through_even_if_asked_for_in_inference_mode(engine):
    actor = GruWithBuffer()
    with engine.rollout([gym.make("CartPole-v1")], actor, 5, seed=0) as feed:
        with torch.inference_mode():
            fragment = next(feed)
        actor(fragment.state.obs, hx=fragment.hx)[2]["value"].sum().backward()
    assert actor.head.weight.grad.abs().sum() > 0


def test_weights_that_are_zeroed_give_zeros_in_the_next_fragment():
    actor = GruWithBuffer()
    with threaded.rollout([gym.make("CartPole-v1")], actor, 5, lag=0) as feed:
        assert next(feed).actor["logits"].abs().sum() > 0
        with torch.no_grad():
            for weight in actor.parameters():
                weight.zero_()
        assert next(feed).actor["logits"].abs().sum() == 0


class Keeps(BaseActorModule):
    """An actor whose steps hand something on, in one of several ways, to the next step: that of another group."""

    def __init__(self, how):
        super().__init__()
        self.how, self.track, self.held = how, False, [torch.zeros(()), lambda: None]
        self.head = torch.nn.Linear(4, 2)
        self.weight = torch.nn.Parameter(torch.zeros(()))
        self.register_buffer("total", torch.zeros(()))

    @torch.no_grad()
    def forward(self, obs, *, hx=None, virtual, **ignored):
        added = obs.sum() / 9
        kept = self.weight if self.how == "a parameter" else self.held[0] if self.how == "a list" else self.total
        if not virtual:
            if self.how == "its data":
                kept.data.add_(added)
            elif self.how in ("a parameter", "a list") or (self.how == "later" and self.track):
                kept.add_(added)
        logits = self.head(obs) + torch.stack([kept.detach(), -kept.detach()])
        act = sampling.categorical(logits, generator=self.generator)
        hx = torch.zeros(1, obs.shape[1], 1) if self.how == "its reset" else ()
        return act, hx, {"kept": kept.detach().expand(act.shape).clone()}

    def reset(self, hx, at):
        if self.how == "its reset":
            with torch.no_grad():
                self.total.add_(at.sum() if isinstance(at, torch.Tensor) else 1)
        return super().reset(hx, at)


@pytest.mark.usefixtures("no_stock")
@pytest.mark.parametrize("how", ["a parameter", "its data", "a list", "later", "its reset"])
def test_groups_whose_steps_hand_something_on_keep_their_order_on_a_device(how):
    def collect(device):
        torch.manual_seed(1)
        actor, options = Keeps(how), {} if device is None else {"device": device}
        launch = (lambda work: work()) if device is None else device.launch
        envs, copies = [gym.make("CartPole-v1") for _ in range(4)], []
        with same.rollout(envs, actor, 9, seed=3, lag=0, groups=2, **options) as feed:
            for _ in range(4):
                fragment = next(feed)
                launch(lambda kept=fragment: copies.append(nested.map(torch.clone, kept)))
                actor.track = True
        if device is not None:
            device.synchronize()
        return copies

    expected = collect(None)
    for haste, seed in [(0.0, 0), *((0.5, k) for k in range(6)), (1.0, 0)]:
        assert_identical(expected, collect(LaggingLane(haste=haste, seed=seed)))


@pytest.mark.parametrize("engine", [same, threaded])
def test_an_actor_on_the_host_has_no_streams_for_turns(engine):
    lane = LaggingLane(actor_on_host=True)
    run_training(engine, lag=1, groups=2, device=lane)
    assert not lane.turns
