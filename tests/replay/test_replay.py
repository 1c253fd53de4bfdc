"""Replay buffers against an oracle that keeps every fragment in a list and derives each item from its id."""

from __future__ import annotations

import io
from collections import Counter, deque
from typing import Any, NamedTuple

import gym.spaces
import pytest
import torch

from rlplay import nested
from rlplay.engine.rollout import same
from rlplay.replay import Prioritized, Uniform
from rlplay.replay.batches import gather_transitions
from rlplay.replay.indices import IndexSampler
from rlplay.testing import CountingActor, LedgerEnv, decode
from tests.support.replay import (
    CAPACITY,
    GAMMA,
    SHELVES,
    B,
    T,
    assert_same_numbers,
    both,
    committed,
    draw,
    eligible,
    finals,
    generator,
    kinds,
    make_fragment,
    where,
)


def last_of(fragment, t, b):
    """Find the number of the true last state that a transition led to."""
    final = fragment.env.final
    at = [(int(i), int(j)) for i, j in zip(final.t, final.b, strict=True)] if final else []
    return at.index((t, b)) if (t, b) in at else None


def by_hand(fragment, t, b, n_steps):
    """Work out a transition one step at a time: its state, action, next state, reward and discount."""
    state, env = fragment.state, fragment.env
    first, act, rew, s = nested.map(lambda x: x[t, b], state), state.act[t + 1, b], 0.0, t
    while True:
        rew += GAMMA ** (s - t) * state.rew[s + 1, b].item()
        ended, m = env.terminated[s, b] or env.truncated[s, b], s - t + 1
        if ended or m == n_steps or s + 1 == T or not env.valid[s + 1, b]:
            break
        s += 1
    k, following = last_of(fragment, s, b), nested.map(lambda x: x[s + 1, b], state)
    if k is not None:
        obs = nested.map(lambda x: x[k], env.final.obs)
        following = following._replace(stepno=state.stepno[s, b] + 1, obs=obs, fin=torch.tensor(False))
    over = env.terminated[s, b] or (ended and k is None)
    return first, act, following, torch.tensor(rew), torch.tensor(0.0 if over else GAMMA**m)


@both
@finals
@pytest.mark.parametrize("n_steps", [1, 2, 4, 10])
def test_replayed_transitions_equal_those_by_hand(kind, final, n_steps):
    buffer, fragments = kind(CAPACITY), []
    for seed in range(8):  # the ring of shelves goes round twice
        fragments.append(make_fragment(seed, final, ends=(0.1, 0.9, 0.0, 0.4)[seed % 4]))
        buffer.commit(fragments[-1])
        assert len(buffer) == min(seed + 1, SHELVES) * T * B
        batch = draw(kind, buffer, 90, seed, n_steps=n_steps)
        assert set(batch.ids.tolist()) == set(eligible(fragments))
        assert batch.weight.tolist() == [1.0] * 90
        items = [by_hand(fragments[k], t, b, n_steps) for k, t, b in map(where, batch.ids.tolist())]
        expected = nested.map(lambda *xs: torch.stack(xs)[None], *items)
        assert_same_numbers((batch.state, batch.act, batch.next), expected[:3])
        torch.testing.assert_close((batch.rew, batch.discount), expected[3:])
    assert {x.dtype for x in (batch.rew, batch.discount, batch.weight)} == {torch.float32}


@both
@finals
def test_replayed_sequences_equal_those_by_hand(kind, final):
    buffer, fragments = kind(CAPACITY, sequences=True), []
    for seed in range(8):
        fragments.append(make_fragment(seed, final, ends=(0.1, 0.9, 0.0, 0.4)[seed % 4], valid=0.3))
        buffer.commit(fragments[-1])
        got, ids, weight = draw(kind, buffer, 40, seed)
        assert set(ids.tolist()) == set(eligible(fragments, sequences=True))
        assert weight.tolist() == [1.0] * 40
        columns = [where(item, sequences=True) for item in ids.tolist()]
        parts = [fragments[k] for k, _ in columns]
        picked = [nested.map(lambda x, b=b: x[:, b], strip(part)) for part, (_, b) in zip(parts, columns, strict=True)]
        assert_same_numbers(strip(got), nested.map(lambda *xs: torch.stack(xs, dim=1), *picked))
        if final:
            rows = [(t, n, last_of(parts[n], t, b)) for t in range(T) for n, (_, b) in enumerate(columns)]
            rows = [(t, n, k) for t, n, k in rows if k is not None]
            assert list(zip(got.env.final.t.tolist(), got.env.final.b.tolist(), strict=True)) == [
                row[:2] for row in rows
            ]
            for i, (_, n, k) in enumerate(rows):
                expected = nested.map(lambda x, k=k: x[k], parts[n].env.final[2:])
                assert_same_numbers(nested.map(lambda x, i=i: x[i], got.env.final[2:]), expected)
        else:
            assert got.env.final == ()


def strip(fragment):
    return fragment._replace(env=fragment.env._replace(final=()))


class Weighed:
    """A prioritized buffer in an interesting state, with what the paper's formulas say about it."""

    def __init__(self, sequences, alpha=0.7):
        self.buffer = Prioritized(CAPACITY, alpha=alpha, epsilon=0.01, sequences=sequences)
        self.fragments, self.p, largest, gen = [], {}, 1.0, generator(3)
        for seed in range(5):
            self.fragments += [make_fragment(seed, valid=0.6)]
            self.buffer.commit(self.fragments[-1])
            ids = eligible(self.fragments, sequences)
            self.p = {i: self.p.get(i, largest) for i in ids}
            told = [i for i in range(ids[-1] + 20) if torch.rand((), generator=gen) < 0.5]  # any, held or not
            delta = torch.rand(len(told), generator=gen) * 3
            self.buffer.update(torch.tensor(told), delta)
            new = {i: (d + 0.01) ** alpha for i, d in zip(told, delta.tolist(), strict=True) if i in self.p}
            self.p |= new
            largest = max(largest, *new.values())

    @property
    def shares(self):
        return {i: p / sum(self.p.values()) for i, p in self.p.items()}


@kinds
@pytest.mark.parametrize("alpha", [0.0, 0.7, 1.0])
def test_each_item_is_drawn_as_often_as_its_share(sequences, alpha):
    # an interval of length n P of n segments of length 1 holds fewer than n P + 2 and more than n P - 2 of their points
    weighed, n = Weighed(sequences, alpha), 20_000
    count = Counter(draw(Prioritized, weighed.buffer, n).ids.tolist())
    assert all(abs(count[i] - n * share) < 2 for i, share in weighed.shares.items())
    assert set(count) == set(weighed.p)


def test_uniform_draws_each_valid_item_as_often():
    buffer, n = Uniform(CAPACITY), 20_000
    ids = eligible(committed(buffer, 7, valid=0.5))
    count = Counter(draw(Uniform, buffer, n).ids.tolist())
    assert all(abs(count[i] - n / len(ids)) < 2 for i in ids)
    assert set(count) == set(ids)


@pytest.mark.soak
@both
def test_single_samples_are_independent(kind):
    weighed = Weighed(sequences=True)
    buffer, share = weighed.buffer, weighed.shares
    if kind is Uniform:
        buffer = Uniform(CAPACITY, sequences=True)
        ids = eligible(committed(buffer, 7), sequences=True)
        share = dict.fromkeys(ids, 1 / len(ids))
    gen, n, how = generator(1), 2000, {"beta": 0.0} if kind is Prioritized else {}
    drawn = [buffer.sample_sequences(1, generator=gen, **how).ids.item() for _ in range(n)]
    pairs = Counter(zip(drawn[::2], drawn[1::2], strict=True))

    def statistic(count, shares, n):
        return sum((count[i] - n * p) ** 2 / (n * p) for i, p in shares.items())

    def bound(
        df,
    ):  # exceeded with probability 1e-4: the cube root of chi-squared / df is nearly normal (Wilson-Hilferty)
        return df * (1 - 2 / (9 * df) + 3.72 * (2 / (9 * df)) ** 0.5) ** 3

    assert statistic(Counter(drawn), share, n) < bound(len(share) - 1)
    joint = {(i, j): p * q for i, p in share.items() for j, q in share.items()}
    assert min(joint.values()) * n / 2 > 1  # enough for the approximation
    assert statistic(pairs, joint, n // 2) < bound(len(joint) - 1)


@kinds
@pytest.mark.parametrize("beta", [0.0, 0.4, 1.0])
def test_importance_weights_are_those_of_the_paper(sequences, beta):
    weighed = Weighed(sequences)
    sample = draw(Prioritized, weighed.buffer, 16, beta=beta)
    raw = [(len(weighed.p) * weighed.shares[i]) ** -beta for i in sample.ids.tolist()]
    assert sample.weight.tolist() == pytest.approx([w / max(raw) for w in raw], rel=1e-5)


def test_of_repeated_ids_the_largest_priority_holds():
    buffer = Prioritized(CAPACITY, alpha=1.0, epsilon=0.5)
    buffer.commit(make_fragment(0, valid=1.0))
    buffer.update(torch.arange(T * B), torch.zeros(T * B))
    buffer.update(torch.tensor([4, 4, 4]), torch.tensor([1.0, 6.5, 2.0]))
    count = Counter(draw(Prioritized, buffer, 1400).ids.tolist())  # the sum is 14, times a half: one unit is 50 draws
    assert abs(count[4] - 7 / 14 * 1400) < 2


def test_priorities_of_invalid_or_unknown_items_are_ignored():
    sampler = IndexSampler(2, 3, torch.device("cpu"))
    sampler.append(torch.tensor([True, True, False]))
    before = sampler.state_dict()
    bad = torch.tensor([float("nan"), float("inf"), -1.0, 5.0, 5.0, 5.0, 5.0], dtype=torch.float64)
    sampler.update(torch.tensor([0, 0, 1, 2, 3, 99, -6]), bad)
    assert_same_numbers(sampler.state_dict()["tree"], before["tree"])
    assert sampler.state_dict()["largest"] == 1
    sampler.update(torch.empty(0, dtype=torch.int64), torch.empty(0, dtype=torch.float64))


@both
@kinds
def test_the_buffer_shares_no_memory_with_its_user(kind, sequences):
    def fill(tree):
        for leaf in nested.leaves(tree):
            leaf.fill_(1)

    buffer, twin = kind(CAPACITY, sequences=sequences), kind(CAPACITY, sequences=sequences)
    kept = committed(twin, 4)
    for fragment in nested.map(torch.clone, kept):
        buffer.commit(fragment)
        fill(fragment)
    expected = draw(kind, twin, 50)
    fill(draw(kind, buffer, 50))
    assert_same_numbers(draw(kind, buffer, 50), expected)


def test_the_buffer_stores_no_gradients():
    buffer, fragment = Prioritized(CAPACITY, sequences=True), make_fragment(0)
    leaves = [x for x in nested.leaves(fragment) if x.is_floating_point()]
    for leaf in leaves:
        leaf.requires_grad_()
    buffer.commit(fragment)
    sample = draw(Prioritized, buffer, 4)
    buffer.update(sample.ids, torch.ones(4, requires_grad=True) * 2)
    sample = draw(Prioritized, buffer, 4)
    assert not any(x.requires_grad for x in nested.leaves(sample))


@both
@kinds
@pytest.mark.parametrize("restored", [False, True])
def test_a_buffer_that_is_filled_in_inference_mode_can_be_used_outside_of_it(kind, sequences, restored):
    buffer = kind(CAPACITY, sequences=sequences)
    with torch.inference_mode():
        committed(buffer, 2)  # fragments that are made in inference mode, too
        if restored:
            state, buffer = buffer.state_dict(), kind(CAPACITY, sequences=sequences)
            buffer.load_state_dict(state)
        sample = draw(kind, buffer, 4)
        if kind is Prioritized:
            buffer.update(sample.ids, torch.ones(len(sample.ids)))
    for seed in range(20, 30):
        buffer.commit(make_fragment(seed, True, ends=0.5))
    sample = draw(kind, buffer, 4)
    if kind is Prioritized:
        buffer.update(sample.ids, torch.ones(len(sample.ids)))
    assert not any(x.is_inference() for x in nested.leaves(draw(kind, buffer, 4)))


@both
@kinds
@finals
@pytest.mark.parametrize("n", [0, 2, 7])
def test_a_saved_buffer_can_be_loaded_and_goes_on_alike(kind, sequences, final, n):
    buffer, again = kind(CAPACITY, sequences=sequences), kind(CAPACITY, sequences=sequences)
    committed(again, 2, final=not final)  # which is all forgotten
    committed(buffer, n, final=final)
    if kind is Prioritized and n:
        buffer.update(torch.arange(200), torch.rand(200, generator=generator()) * 4)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert len(again) == len(buffer)
    for seed in range(20, 25):  # what comes next is the same, too
        if n or seed > 20:
            assert_same_numbers(draw(kind, again, 30, seed), draw(kind, buffer, 30, seed))
        for each in (buffer, again):
            each.commit(make_fragment(seed, final, ends=0.5))


@both
def test_loading_a_buffer_copies_the_state(kind):
    buffer, again = kind(CAPACITY, sequences=True), kind(CAPACITY, sequences=True)
    committed(buffer, 2)
    expected = draw(kind, buffer, 30)
    again.load_state_dict(buffer.state_dict())
    for leaf in nested.leaves(buffer.state_dict()):
        if isinstance(leaf, torch.Tensor):
            leaf.zero_()
    assert_same_numbers(draw(kind, again, 30), expected)


class Sight(NamedTuple):
    image: Any
    pair: Any


def test_named_tuples_are_saved_and_loaded():
    buffer, again, fragment = Uniform(CAPACITY), Uniform(CAPACITY), make_fragment(0, final=False)
    buffer.commit(changed(fragment, obs=Sight(**fragment.state.obs)))
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    with torch.serialization.safe_globals([Sight]):
        again.load_state_dict(torch.load(file, weights_only=True))
    assert_same_numbers(draw(Uniform, again, 9), draw(Uniform, buffer, 9))


@kinds
@pytest.mark.parametrize("nothing", [{}, ()])
def test_observations_without_tensors_are_stored(nothing, sequences):
    buffer, again = Uniform(CAPACITY, sequences=sequences), Uniform(CAPACITY, sequences=sequences)
    for seed in range(5):
        fragment = changed(make_fragment(seed, ends=0.5, valid=1.0)._replace(actor=()), obs=nothing)
        final = fragment.env.final._replace(obs=nothing, actor=())
        buffer.commit(fragment._replace(env=fragment.env._replace(final=final)))
    again.load_state_dict(buffer.state_dict())
    drawn = draw(Uniform, buffer, 40)
    assert_same_numbers(drawn, draw(Uniform, again, 40))
    if sequences:
        assert len(drawn.fragment.env.final.t) == drawn.fragment.state.fin[1:].sum() > 0
    else:
        assert (drawn.next.stepno == drawn.state.stepno + 1).any()  # true last states; all other states are random


def test_last_observations_take_less_than_twice_the_memory_they_need():
    buffer = Uniform(3 * 5)
    for seed in range(9):
        buffer.commit(make_fragment(seed, ends=2.0, valid=1.0, n_steps=1, n_envs=5))  # 5 of them; 15 are held, 20 never
    assert len(buffer.state_dict()["parts"][0]["lasts"]["rows"][0]["image"]) == 16


class Unread(deque):
    """May be appended to and looked at from both ends, but not gone through."""

    def __iter__(self):
        raise AssertionError("the fragments held are counted anew")


def test_a_commit_does_not_go_through_all_fragments_held():
    buffer = Uniform(CAPACITY)
    committed(buffer, 2)
    ring = buffer._store_and_sampler[0].finals
    ring._n_rows_of = Unread(ring._n_rows_of, ring._n_rows_of.maxlen)
    for seed in range(2 * ring._n_rows_of.maxlen):
        buffer.commit(make_fragment(seed))


def test_transitions_keep_only_what_they_need():
    saved = full(Uniform).state_dict()["parts"][0]
    columns, (_, reactions) = saved["columns"], saved["lasts"]["rows"]
    assert (columns["actor"], columns["hx"], columns["env"]["info"], reactions) == ((), (), {}, ())


@both
@finals
def test_the_buffer_never_waits_for_the_device(kind, final):
    buffer = kind(CAPACITY)
    for seed in range(5):
        buffer.commit(
            nested.map(lambda x: x.to("meta"), make_fragment(seed, final, ends=0.2 * seed))
        )  # nothing can be read there
        batch = buffer.sample(8, gamma=GAMMA, n_steps=3, **({"beta": 0.5} if kind is Prioritized else {}))
        if kind is Prioritized:
            buffer.update(batch.ids, batch.rew[0].abs())
    assert {x.device.type for x in nested.leaves(batch)} == {"meta"}
    again = kind(CAPACITY)
    again.load_state_dict(buffer.state_dict())
    assert len(again) == len(buffer)


def test_the_buffer_lives_on_the_given_device():
    buffer = Uniform(CAPACITY, device="meta")
    committed(buffer, 2)
    assert {x.device.type for x in nested.leaves(buffer.sample(3, gamma=GAMMA))} == {"meta"}
    buffer.load_state_dict(full(Uniform).state_dict())
    assert {x.device.type for x in nested.leaves(buffer.sample(3, gamma=GAMMA))} == {"meta"}


@pytest.mark.parametrize("sticky", [False, True])
@finals
@pytest.mark.parametrize("n_steps", [1, 3])
def test_real_transitions_name_their_origin(sticky, final, n_steps):
    envs, actor = [LedgerEnv(gym.spaces, j, form="dict") for j in range(4)], CountingActor()
    buffer, gen = Uniform(6 * 10 * 4), generator()
    with same.rollout(envs, actor, n_steps=10, sticky=sticky, final=final, seed=0) as feed:
        for _, fragment in zip(range(9), feed, strict=False):
            buffer.commit(fragment)
    batch = buffer.sample(500, gamma=0.5, n_steps=n_steps, generator=gen)
    _, _, info = actor.step(*batch.state, hx=None, virtual=True)
    assert info["stepno"].shape == (1, 500)
    assert not batch.next.fin[batch.discount > 0].any()
    ended = 0
    for i in range(500):
        begin, end = (state.obs["vector"][0, i].tolist() for state in (batch.state, batch.next))
        env, episode, step = (int(x) for x in begin[:3])
        length, (terminated, _) = envs[env].length(episode), envs[env].end(episode)
        arrived, discount = decode(batch.next.rew[0, i].item()), batch.discount[0, i].item()
        m = arrived.step - step
        assert (arrived.env, arrived.episode) == (env, episode)
        assert 1 <= m <= n_steps
        code = batch.next.rew[0, i].item() - m
        assert batch.rew[0, i].item() == sum(0.5**k * (code + k + 1) for k in range(m))
        over = arrived.step == length
        ended += over
        assert batch.state.stepno[0, i] == step
        assert discount == (0.0 if over and (terminated or not final) else 0.5**m)
        if not over or final:
            assert end[:3] == [env, episode, step + m]
            assert batch.next.stepno[0, i] == step + m
            assert not batch.next.fin[0, i]
            assert batch.next.obs["inner"]["step"][0, i] == step + m
        if m == 1 and (not over or final):
            assert batch.act[0, i] == batch.next.act[0, i]
            assert end[3] == batch.act[0, i] * 4 + 1  # the ledger's digest of the action
    assert 0 < ended < 500


def changed(fragment, **leaves):
    return fragment._replace(state=fragment.state._replace(**leaves))


FIRST = make_fragment(0)
UNLIKE = {
    "T": (
        make_fragment(1, n_steps=T + 1),
        r"fragment.state.stepno` must be torch.int64 \(6, 3\), got torch.int64 \(7, 3\)",
    ),
    "B": (make_fragment(1, n_envs=B + 1), r"same T, B, shapes and dtypes.*\(6, 3\), got torch.int64 \(6, 4\)"),
    "dtype": (changed(FIRST, rew=FIRST.state.rew.double()), "fragment.state.rew` must be torch.float32"),
    "structure": (changed(FIRST, obs=FIRST.state.rew), "one structure: `fragment` must be"),
    "no final": (make_fragment(1, final=False), r"has no `env.final`, the first one had it"),
    "final": (
        FIRST._replace(env=FIRST.env._replace(final=FIRST.env.final._replace(obs=FIRST.env.final.obs["image"]))),
        "one structure",
    ),
    "K": (
        FIRST._replace(env=FIRST.env._replace(final=FIRST.env.final._replace(t=torch.zeros(99, dtype=torch.int64)))),
        "same first dimension",
    ),
    "ends outside": (
        FIRST._replace(env=FIRST.env._replace(final=FIRST.env.final._replace(t=FIRST.env.final.t + T))),
        r"`fragment.env.final` must be of the fragment's T x B = 5 x 3 transitions, got t = \d, b = \d. If you cut",
    ),
}


@both
@pytest.mark.parametrize("what", UNLIKE)
def test_an_unlike_fragment_is_refused_and_changes_nothing(kind, what):
    buffer, twin = kind(CAPACITY), kind(CAPACITY)
    committed(buffer, 5), committed(twin, 5)
    fragment, message = UNLIKE[what]
    with pytest.raises(ValueError, match=message):
        buffer.commit(fragment)
    for each in (buffer, twin):
        each.commit(make_fragment(9))
    assert_same_numbers(draw(kind, buffer, 50), draw(kind, twin, 50))


@pytest.mark.parametrize(
    ("fragment", "message"),
    [
        (
            make_fragment(0, n_steps=20),
            r"`capacity=49` steps has no room for a fragment of T x B = 20 x 3 steps: at least 60",
        ),
        (changed(FIRST, act=FIRST.state.act[1:]), r"`fragment.state.act` must have \(6, 3\) from dimension 0"),
        (FIRST._replace(hx=FIRST.hx[0][:, :2]), r"`fragment.hx` must have \(3,\) from dimension 1"),
        (FIRST._replace(env=FIRST.env._replace(final=FIRST.env.final._replace(obs=FIRST.state.rew[0]))), "structure"),
    ],
)
def test_an_ill_fitting_first_fragment_is_refused_and_forgotten(fragment, message):
    buffer = Uniform(CAPACITY, sequences=True)
    with pytest.raises(ValueError, match=message):
        buffer.commit(fragment)
    assert len(buffer) == 0
    buffer.commit(FIRST)
    assert len(buffer) == T * B


def full(kind=Prioritized, **how):
    buffer = kind(CAPACITY, **how)
    buffer.commit(FIRST)
    return buffer


@pytest.mark.parametrize(
    ("error", "message", "call"),
    [
        (ValueError, "`capacity` must be at least 1, got 0", lambda: Uniform(0)),
        (TypeError, "`capacity` must be a whole number, got 1.5", lambda: Uniform(1.5)),
        (ValueError, r"`alpha` must be in \[0, 1\], got 2", lambda: Prioritized(9, alpha=2)),
        (ValueError, "`epsilon` must be a positive number, got 0", lambda: Prioritized(9, epsilon=0)),
        (ValueError, "`n` must be at least 1, got 0", lambda: full(Uniform).sample(0, gamma=1)),
        (ValueError, "`n_steps` must be at least 1", lambda: full(Uniform).sample(1, gamma=1, n_steps=0)),
        (ValueError, r"`gamma` must be in \[0, 1\], got 1.5", lambda: full(Uniform).sample(1, gamma=1.5)),
        (ValueError, r"`beta` must be in \[0, 1\], got -1", lambda: full().sample(1, gamma=1, beta=-1)),
        (TypeError, "`beta` must be a number", lambda: full().sample(1, gamma=1, beta=torch.ones(()))),
        (RuntimeError, "the buffer is empty", lambda: Uniform(9).sample(1, gamma=1)),
        (RuntimeError, "the buffer is empty", lambda: Prioritized(9).update(torch.arange(1), torch.ones(1))),
        (RuntimeError, "call `sample_sequences`", lambda: full(Uniform, sequences=True).sample(1, gamma=1)),
        (RuntimeError, "call `sample`", lambda: full(Uniform).sample_sequences(1)),
        (ValueError, r"must both be \(N,\), got \(2,\) and \(1, 2\)",
            lambda: full().update(torch.arange(2), torch.ones(1, 2))),
        (ValueError, "finite and not negative, got -1.0", lambda: full().update(torch.arange(1), -torch.ones(1))),
        (ValueError, "finite and not negative, got nan",
            lambda: full().update(torch.arange(1), torch.tensor([float("nan")]))),
        (ValueError, "of the one that is loaded, .*'alpha': 0.5",
            lambda: full().load_state_dict(full(alpha=0.5).state_dict())),
        (ValueError, "made with the arguments.*'epsilon': 0.5",
            lambda: full().load_state_dict(full(epsilon=0.5).state_dict())),
        (ValueError, "made with the arguments", lambda: full(Uniform).load_state_dict(full().state_dict())),
    ],
)  # fmt: skip
def test_wrong_arguments_of_buffers_are_refused(error, message, call):
    with pytest.raises(error, match=message):
        call()


@kinds
def test_a_buffer_without_valid_items_refuses_to_sample(sequences):
    buffer = Uniform(CAPACITY, sequences=sequences)
    buffer.commit(make_fragment(0, valid=0.0))
    assert len(buffer) == T * B
    with pytest.raises(RuntimeError, match="no transition that the buffer holds is valid"):
        draw(Uniform, buffer, 3)
    assert list(buffer.epoch_of_sequences(3) if sequences else buffer.epoch(3, gamma=GAMMA)) == []


def test_on_a_device_a_sample_without_valid_items_has_no_weight_and_reads_no_row_outside_of_the_buffer():
    """On the host it is refused."""
    buffer = Uniform(CAPACITY)
    buffer.commit(make_fragment(0, valid=0.0))
    store, _ = buffer._contents()
    ids = torch.tensor([0, B - 1, 0])
    batch = gather_transitions(store, ids, torch.zeros(3), n_steps=3, gamma=GAMMA)
    assert (batch.weight == 0).all()
    assert torch.equal(batch.state.stepno[0], make_fragment(0, valid=0.0).state.stepno[0, [0, B - 1, 0]])
