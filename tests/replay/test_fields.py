"""Fields of the user's own, infos in transitions, and passes over all that a buffer holds."""

from __future__ import annotations

import io

import pytest
import torch

from rlplay import nested
from rlplay.replay import Prioritized, Uniform
from tests.support.replay import (
    CAPACITY,
    GAMMA,
    SHELVES,
    B,
    T,
    assert_same_numbers,
    draw,
    eligible,
    generator,
    make_fragment,
    where,
)

both = pytest.mark.parametrize("kind", [Uniform, Prioritized])


def own(seed):
    """Make fields of which every number is another."""
    return {
        "bonus": torch.randn(T, B, generator=generator(seed)),
        "seen": {"image": torch.randint(256, (T, B, 2), generator=generator(seed)).byte()},
    }


def committed(buffer, n=5):
    fragments = [make_fragment(seed) for seed in range(n)]
    for seed, fragment in enumerate(fragments):
        buffer.commit(fragment, own(seed))
    return fragments


def at(pick, ids):
    """Gather what `pick` tells of each item."""
    return nested.map(lambda *xs: torch.stack(xs)[None], *[pick(*where(item)) for item in ids.tolist()])


@both
@pytest.mark.parametrize("keep", [(), "actor", "info", ["info", "actor"]])
@pytest.mark.parametrize("n_steps", [1, 3])
def test_transitions_have_the_fields_and_the_infos_that_are_kept(kind, keep, n_steps):
    buffer = kind(CAPACITY, keep=keep)
    fragments = committed(buffer)
    batch = draw(kind, buffer, 50, n_steps=n_steps)
    expected = at(lambda k, t, b: nested.map(lambda x: x[t, b], own(k)), batch.ids)
    if "info" in keep:
        expected |= at(lambda k, t, b: nested.map(lambda x: x[t, b], fragments[k].env.info), batch.ids)
    assert_same_numbers(batch.info, expected)
    said = at(lambda k, t, b: nested.map(lambda x: x[t, b], fragments[k].actor), batch.ids)
    assert_same_numbers(batch.actor, said if "actor" in keep else ())


@both
def test_sequences_have_the_fields_beside_the_infos(kind):
    buffer = kind(CAPACITY, sequences=True)
    fragments = committed(buffer)
    columns, ids, _ = draw(kind, buffer, 20)
    for j, item in enumerate(ids.tolist()):
        k, b = where(item, sequences=True)
        got = nested.map(lambda x, j=j: x[:, j], columns.env.info)
        assert_same_numbers(got, nested.map(lambda x, b=b: x[:, b], own(k) | fragments[k].env.info))


def test_a_commit_without_the_fields_of_the_first_is_refused():
    buffer = Uniform(CAPACITY)
    buffer.commit(make_fragment(0), own(0))
    for fields in ({}, {"bonus": own(0)["bonus"]}, own(0) | {"more": own(0)["bonus"]}):
        with pytest.raises(ValueError, match="one structure"):
            buffer.commit(make_fragment(1), fields)
    with pytest.raises(ValueError, match=r"`fragment.env.info\['bonus'\]` must be torch.float32 \(5, 3\), got"):
        buffer.commit(make_fragment(1), own(0) | {"bonus": torch.zeros(T, B, dtype=torch.float64)})
    assert len(buffer) == T * B


def test_fields_of_a_wrong_shape_or_name_are_refused():
    with pytest.raises(ValueError, match=r"`fragment.env.info\['x'\]` must have \(5, 3\) from dimension 0 on"):
        Uniform(CAPACITY).commit(make_fragment(0), {"x": torch.zeros(T + 1, B)})
    with pytest.raises(ValueError, match=r"has entries \['code'\] already"):
        Uniform(CAPACITY, keep="info").commit(make_fragment(0), {"code": torch.zeros(T, B)})
    Uniform(CAPACITY).commit(make_fragment(0), {"code": torch.zeros(T, B)})  # the info is not kept
    with pytest.raises(ValueError, match="`keep` must be 'actor', 'info' or both, got 'hx'"):
        Uniform(CAPACITY, keep="hx")


def test_fields_are_saved_and_loaded():
    buffer, again = (Uniform(CAPACITY, keep="actor") for _ in range(2))
    committed(buffer)
    file = io.BytesIO()
    torch.save(buffer.state_dict(), file)
    file.seek(0)
    again.load_state_dict(torch.load(file, weights_only=True))
    assert_same_numbers(draw(Uniform, again, 30), draw(Uniform, buffer, 30))
    with pytest.raises(ValueError, match="must be made with the arguments"):
        Uniform(CAPACITY).load_state_dict(buffer.state_dict())


# Passes


@both
@pytest.mark.parametrize("n", [1, 7, 1000])
@pytest.mark.parametrize("n_fragments", [1, 5])
def test_a_pass_has_every_valid_transition_once_in_random_order(kind, n, n_fragments):
    buffer = kind(CAPACITY)
    fragments = committed(buffer, n_fragments)
    if kind is Prioritized:
        batch = draw(kind, buffer, 30)
        buffer.update(batch.ids, torch.linspace(0, 9, 30))
    batches = list(buffer.epoch(n, gamma=GAMMA, n_steps=2, generator=generator(3)))
    ids = torch.cat([batch.ids for batch in batches])
    expected = eligible(fragments)
    assert sorted(ids.tolist()) == expected
    assert ids.tolist() != expected
    assert [len(batch.ids) for batch in batches] == [len(x) for x in torch.arange(len(expected)).split(n)]
    assert all((batch.weight == 1).all() for batch in batches)
    for batch in batches[:2]:
        rew = at(lambda k, t, b: fragments[k].state.rew[t, b], batch.ids)
        assert_same_numbers(batch.state.rew, rew)
    others = torch.cat([batch.ids for batch in buffer.epoch(n, gamma=GAMMA, generator=generator(4))])
    assert n_fragments == 1 or ids.tolist() != others.tolist()


@both
def test_a_pass_over_sequences_has_every_column_once(kind):
    buffer = kind(CAPACITY, sequences=True)
    fragments = committed(buffer)
    found = [columns.ids for columns in buffer.epoch_of_sequences(2, generator=generator(0))]
    assert sorted(torch.cat(found).tolist()) == eligible(fragments, sequences=True)
    assert len(eligible(fragments)) > SHELVES


@pytest.mark.usefixtures("bfloat16_by_default")
def test_weights_of_a_pass_are_float32_whatever_the_default_dtype():
    buffer = Uniform(CAPACITY)
    committed(buffer)
    assert {batch.weight.dtype for batch in buffer.epoch(7, gamma=GAMMA)} == {torch.float32}


def test_a_commit_ends_a_pass():
    buffer = Uniform(CAPACITY)
    committed(buffer)
    batches = buffer.epoch(4, gamma=GAMMA)
    next(batches)
    buffer.commit(make_fragment(9), own(9))
    with pytest.raises(RuntimeError, match="changed since this pass over it began"):
        next(batches)


def test_passes_over_the_wrong_kind_or_nothing_are_refused_at_the_call():
    with pytest.raises(RuntimeError, match="nothing to sample"):
        Uniform(CAPACITY).epoch(4, gamma=GAMMA)
    with pytest.raises(RuntimeError, match="buffer of sequences"):
        Uniform(CAPACITY, sequences=True).epoch(4, gamma=GAMMA)
    with pytest.raises(RuntimeError, match="buffer of transitions"):
        Uniform(CAPACITY).epoch_of_sequences(4)
    buffer = Uniform(CAPACITY)
    committed(buffer)
    for wrong in ({"n": 0}, {"n_steps": 0}, {"gamma": 2.0}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            buffer.epoch(**{"n": 4, "gamma": GAMMA} | wrong)


@pytest.mark.parametrize("kind", [Uniform, Prioritized])
def test_a_state_of_a_version_without_keep_is_loaded(kind):
    state = kind(10).state_dict()
    del state["made_with"]["keep"]
    kind(10).load_state_dict(state)
    with pytest.raises(ValueError, match="must be made with the arguments"):
        kind(10, keep="info").load_state_dict(state)


@pytest.mark.parametrize("fields", [[torch.zeros(T, B)], {"x": 1.0}, {"x": torch.zeros(T, B).numpy()}])
def test_fields_that_are_no_tensors_by_name_are_refused(fields):
    buffer = Uniform(CAPACITY)
    with pytest.raises(TypeError, match="`fields` must be a mapping from names to"):
        buffer.commit(make_fragment(0), fields)
    assert len(buffer) == 0
