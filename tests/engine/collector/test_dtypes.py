"""Observations, infos and recurrent states of every dtype pass through the whole library unchanged, bit for bit."""

from __future__ import annotations

from functools import partial

import numpy as np
import pytest
import torch
from gym.spaces import Box, Dict, Discrete

from rlplay import dtypes, nested, sampling
from rlplay.algo import a2c, dqn, ppo, unroll, vtrace
from rlplay.algo.transitions import blank_padding
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import episodic, multi, same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.replay import Prioritized, Uniform
from rlplay.testing import LaggingLane

DTYPES = ["uint16", "uint32", "uint64", "uint8", "bool", "int8", "int16", "int64", "float16", "float64"]
each_dtype = pytest.mark.parametrize("dtype", DTYPES)
RARE = ["uint16", "uint32", "uint64", "bool", "float16"]
each_rare = pytest.mark.parametrize("dtype", RARE)


def values(dtype, k):
    """Return large numbers of a dtype that depend on the integer ``k``."""
    if dtype == "bool":
        return np.array([[k % 2, k % 3 == 0], [k % 5 == 0, True]], bool)
    if np.dtype(dtype).kind == "f":
        return np.array([[k, k + 0.5], [-k, 0.0]], dtype)
    top = np.iinfo(dtype).max
    return np.array([[top - k % 100, k % 100], [top, top // 2 + k % 50]], dtype)


class Counts:
    """Observes ``values(dtype, k)`` in a dict, where ``k`` counts steps and resets; an episode has three steps."""

    action_space = Discrete(3)

    def __init__(self, dtype, start=0):
        low, high = (0, 1) if dtype == "bool" else (-np.inf, np.inf)
        if np.dtype(dtype).kind in "iu":
            low, high = np.iinfo(dtype).min, np.iinfo(dtype).max
        box = Box(low, high, (2, 2), np.dtype(dtype).type)
        self.observation_space = Dict({"seen": box, "k": Box(0, 2**40, (), np.int64)})
        self.dtype, self.k, self.t = dtype, start, 0

    def obs(self):
        self.k += 1
        return {"seen": values(self.dtype, self.k), "k": np.int64(self.k)}

    def reset(self, *, seed=None, options=None):
        self.t = 0
        return self.obs(), {}

    def step(self, action):
        self.t += 1
        return self.obs(), 1.0, False, self.t == 3, {"value": values(self.dtype, self.k)}


class Echoes(BaseActorModule):
    """Its info and its recurrent state hold the observation in its own dtype."""

    def __init__(self, recurrent=False):
        super().__init__()
        self.scale = torch.nn.Parameter(torch.ones(3))
        self.recurrent = recurrent

    def forward(self, obs, *, fin, hx=None, **ignored):
        seen = obs["seen"]
        k = obs["k"].float()
        logits = k[..., None] / 1e4 * self.scale
        act = sampling.categorical(logits, generator=self.generator)
        info = {"seen": seen.clone(), "logits": logits, "value": logits.sum(-1), "q": logits}
        if not self.recurrent:
            return act, (), info
        if hx is None:
            hx = {"seen": seen[:1].clone(), "n": torch.zeros(1, *fin.shape[1:], device=k.device)}
        info["before"] = hx["seen"].expand_as(seen).clone()
        return act, {"seen": seen[-1:].clone(), "n": hx["n"] + 1}, info


def is_right(dtype, seen, k):
    expected = np.stack([values(dtype, int(one)) for one in k.flatten()]).reshape(*k.shape, 2, 2)
    assert seen.dtype == torch.from_numpy(np.empty(0, dtype)).dtype
    return np.array_equal(seen.cpu().numpy(), expected)


def check(dtype, fragment):
    state, final = fragment.state, fragment.env.final
    assert is_right(dtype, state.obs["seen"], state.obs["k"])
    assert is_right(dtype, fragment.actor["seen"], state.obs["k"])
    if final != ():
        assert len(final.t)
        assert is_right(dtype, final.obs["seen"], final.obs["k"])
        assert is_right(dtype, final.actor["seen"], final.obs["k"])


def collected(dtype, n=3, engine=same, recurrent=False, **options):
    envs = [Counts(dtype, 1000 * j) for j in range(2)]
    with engine.rollout(envs, Echoes(recurrent), 7, seed=0, **options) as feed:
        return [next(feed) for _ in range(n)]


OPTIONS = {
    "plain": {},
    "final": {"final": True},
    "sticky": {"final": True, "sticky": True},
    "recurrent": {"final": True, "recurrent": True},
    "groups": {"final": True, "groups": 2, "recurrent": True},
    "threaded": {"final": True, "engine": threaded, "recurrent": True},
    "another device": {"final": True, "engine": threaded, "recurrent": True, "device": "lagging"},
}


@each_dtype
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS)
def test_fragments_hold_every_dtype(dtype, options):
    if options.get("device"):
        options = {**options, "device": LaggingLane()}
    info = {"value": values(dtype, 0)}
    fragments = collected(dtype, info=info, **options)
    if options.get("device"):
        options["device"].synchronize()
    for fragment in fragments:
        check(dtype, fragment)
        valid = fragment.env.valid
        told, k = fragment.env.info["value"][valid], fragment.state.obs["k"][1:]
        last = fragment.state.fin[1:]  # there the info belongs to the last observation, one before the first
        assert is_right(dtype, told, (k - last.long())[valid])


@pytest.mark.parametrize(
    "rollout",
    [single.rollout, pytest.param(partial(multi.rollout, n_actors=2, n_per_actor=1), marks=pytest.mark.soak)],
)
def test_fragments_of_processes_hold_the_rare_dtypes(rollout):
    for dtype in ("uint16", "uint64"):
        arguments = {"n_envs": 2} if rollout is single.rollout else {}
        with rollout(partial(Counts, dtype), Echoes(True), n_steps=7, seed=0, final=True, **arguments) as feed:
            for _ in range(2):
                check(dtype, next(feed))


@each_dtype
@pytest.mark.parametrize("kind", [Uniform, Prioritized])
@pytest.mark.parametrize("final", [False, True])
@pytest.mark.parametrize("sequences", [False, True])
def test_replay_buffers_hold_every_dtype(dtype, kind, final, sequences):
    buffer = kind(60, sequences=sequences)  # four fragments
    for fragment in collected(dtype, 6, final=final, recurrent=sequences):
        buffer.commit(fragment)
    copy = kind(60, sequences=sequences)
    copy.load_state_dict(buffer.state_dict())
    how = {"beta": 0.5} if kind is Prioritized else {}
    for one in (buffer, copy):
        if sequences:
            sampled = one.sample_sequences(20, **how).fragment
            check(dtype, sampled)
            going_on = ~sampled.state.fin[0]
            assert is_right(dtype, sampled.hx["seen"][0][going_on], sampled.state.obs["k"][0][going_on] - 1)
            continue
        batch = one.sample(40, gamma=0.9, n_steps=2, **how)
        for state in (batch.state, batch.next):
            assert is_right(dtype, state.obs["seen"], state.obs["k"])
        if kind is Prioritized:
            one.update(batch.ids, torch.rand(40))


@each_rare
def test_whole_episodes_and_evaluations_hold_the_rare_dtypes(dtype):
    with episodic.rollout([Counts(dtype, 1000 * j) for j in range(2)], Echoes(), batch_size=3, seed=0) as feed:
        for episode in next(feed):
            check(dtype, episode)
    _, info = evaluate([Counts(dtype)], Echoes(True))
    assert np.array_equal(info["seen"][:, 0], np.stack([values(dtype, k) for k in range(1, 5)]))


@each_rare
@pytest.mark.parametrize("options", [{}, {"sticky": True}, {"recurrent": True}, {"recurrent": True, "sticky": True}])
def test_losses_take_the_rare_dtypes(dtype, options):
    actor = Echoes(options.get("recurrent", False))
    (fragment,) = collected(dtype, 1, final=True, **options)
    unrolled = unroll(fragment, actor)
    assert is_right(dtype, unrolled.info["seen"], fragment.state.obs["k"])
    assert is_right(dtype, unrolled.final["seen"], fragment.env.final.obs["k"])
    losses = [
        a2c.loss(fragment, actor, gamma=0.9)[0],
        vtrace.loss(fragment, actor, gamma=0.9)[0],
        dqn.loss(fragment, actor, gamma=0.9, target=actor)[0],
        *(loss for loss, _ in ppo.losses(fragment, actor, gamma=0.9, n_epochs=2, n_minibatches=2)),
    ]
    assert all(loss.isfinite() for loss in losses)


def test_a_sampled_batch_of_unsigned_integers_can_be_learnt_from():
    buffer = Prioritized(60)
    for fragment in collected("uint32", final=True):
        buffer.commit(fragment)
    batch = buffer.sample(16, gamma=0.9, n_steps=3, beta=0.4)
    actor = Echoes()
    loss, info = dqn.replayed(batch, actor, target=actor)
    loss.backward()
    buffer.update(batch.ids.numpy(), info["td_error"].abs().numpy())


def test_a_recurrent_state_of_unsigned_integers_is_reset_to_zero_where_an_episode_begins():
    (fragment,) = collected("uint16", 1, recurrent=True)
    before, begun = fragment.actor["before"], fragment.state.fin
    assert (before.to(torch.int64)[begun] == 0).all()
    assert (before.to(torch.int64)[~begun][:, 1, 0] == 65535).all()


class ActsInUint16(BaseActorModule):
    def forward(self, obs, *, fin, hx=None, **ignored):
        mean = torch.zeros(*fin.shape, 2)
        return torch.full((*fin.shape, 2), 40000).to(torch.uint16), (), {"mean": mean}


class TakesUint16(Counts):
    action_space = Box(0, 65535, (2,), np.uint16)

    def step(self, action):
        assert action.dtype == np.uint16
        assert (action == 40000).all()
        return super().step(action)


def test_actions_of_unsigned_integers_pass_too():
    with same.rollout([TakesUint16("uint8")], ActsInUint16(), 7, final=True, sticky=True) as feed:
        fragment = next(feed)
    assert (fragment.state.act[1:].to(torch.int64)[fragment.env.valid] == 40000).all()
    blanked = blank_padding(fragment).state.act.to(torch.int64)
    assert (blanked[1:][fragment.env.valid] == 40000).all()
    assert (blanked[-1] == 40000).all()  # as in the first valid transition
    buffer = Uniform(40)
    buffer.commit(fragment)
    assert (buffer.sample(5, gamma=0.9).act.to(torch.int64) == 40000).all()


@pytest.mark.parametrize("dtype", [torch.uint16, torch.uint32, torch.uint64, torch.float8_e4m3fn, torch.float8_e5m2])
def test_moving_keeps_the_bits_of_dtypes_without_operations(dtype):
    bits = torch.arange(64, dtype=torch.uint8)
    x = bits.view(dtype).view(-1, 2)
    at = torch.tensor([3, 0, 1])
    moved = dtypes.move(lambda x, y: torch.cat([x[at], y]).masked_fill(torch.tensor([True, False]), 0), x, x)
    assert moved.dtype == dtype
    numbers = x.view(torch.uint8).view(len(x), 2, -1)
    expected = torch.cat([numbers[at], numbers])
    expected[:, 0] = 0
    assert torch.equal(moved.view(torch.uint8).view(len(moved), 2, -1), expected)
    assert nested.leaves(dtypes.as_movable(torch.ones(2)))[0].dtype == torch.float32


# priorities and ids


def prioritized(**options):
    buffer = Prioritized(60, **options)
    for fragment in collected("int64"):
        buffer.commit(fragment)
    return buffer


IDS = {
    "int64": np.int64,
    "int32": np.int32,
    "uint64": np.uint64,
    "uint16": np.uint16,
    "torch int32": lambda ids: torch.tensor(ids, dtype=torch.int32),
    "torch uint16": lambda ids: torch.tensor(ids, dtype=torch.uint16),
    "list": list,
}


@pytest.mark.parametrize("make", IDS.values(), ids=IDS)
@pytest.mark.parametrize("as_priorities", [torch.tensor, np.float32, np.float64, list])
def test_ids_of_any_integer_dtype_set_the_priorities_that_int64_ids_do(make, as_priorities):
    ids, priorities = [3, 5, 8], [2.5, 0.125, 4.0]
    one, other = prioritized(), prioritized()
    one.update(torch.tensor(ids), torch.tensor(priorities))
    other.update(make(ids), as_priorities(priorities))
    draw = {"gamma": 0.9, "beta": 0.5}
    expected, got = (x.sample(9, generator=torch.Generator().manual_seed(1), **draw) for x in (one, other))
    assert torch.equal(expected.ids, got.ids)
    assert torch.equal(expected.weight, got.weight)


WRONG = {
    "float ids": (torch.tensor([3.0]), torch.tensor([1.0]), TypeError, r"`ids` must be integers.*float32"),
    "half ids": (torch.tensor([3.0]).half(), torch.tensor([1.0]), TypeError, r"`ids` must be integers.*float16"),
    "numpy float ids": (np.array([3.0]), np.array([1.0]), TypeError, r"`ids` must be integers.*float64"),
    "bool ids": (torch.tensor([True]), torch.tensor([1.0]), TypeError, r"`ids` must be integers.*bool"),
    "bool priorities": (torch.tensor([3]), torch.tensor([True]), TypeError, r"`priorities` must be numbers"),
    "words": (np.array([3]), np.array(["1"]), TypeError, r"`priorities` must be numbers"),
    "shapes": (np.array([3, 4]), np.array([1.0]), ValueError, r"must both be \(N,\)"),
    "nan": (np.array([3]), np.array([np.nan]), ValueError, "finite and not negative"),
    "negative": (np.array([3]), np.array([-1]), ValueError, "finite and not negative"),
}


@pytest.mark.parametrize(("ids", "priorities", "kind", "message"), WRONG.values(), ids=WRONG)
def test_ids_and_priorities_that_are_none_are_refused(ids, priorities, kind, message):
    with pytest.raises(kind, match=message):
        prioritized().update(ids, priorities)


@pytest.mark.parametrize("large", [1e308, 1.7e308, torch.finfo(torch.float64).max / 20])
def test_priorities_whose_sum_overflows_are_refused_and_the_buffer_stays_as_it_was(large):
    torch.manual_seed(0)
    buffer = prioritized(alpha=1.0)
    with pytest.raises(ValueError, match=r"so that the sum over the buffer is finite"):
        buffer.update(torch.arange(2), torch.tensor([large, large], dtype=torch.float64))
    assert len(buffer.sample(40, gamma=0.9, beta=0.5).ids.unique()) > 30


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("alpha", [1.0, 0.6])
def test_priorities_as_large_as_accepted_are_drawn_alike(dtype, alpha):
    buffer = prioritized(alpha=alpha)
    largest = torch.finfo(dtype).max if dtype == torch.float32 or alpha < 1 else 1e306
    buffer.update(torch.arange(42), torch.full((42,), largest, dtype=dtype))
    batch = buffer.sample(40, gamma=0.9, beta=1.0)
    assert len(batch.ids.unique()) > 30
    assert (batch.weight == 1).all()
