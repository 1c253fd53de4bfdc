"""Unrolling a fragment gives the infos that the actor gave row by row, with gradients."""

from __future__ import annotations

import copy
import pickle
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import unroll
from rlplay.engine import BaseActorModule, Final, Fragment, Outcome, State

A, F, H = 3, 4, 5


class Feedforward(BaseActorModule):
    """Its info depends on all its inputs; it keeps a record of how it was called."""

    def __init__(self):
        super().__init__()
        self.calls = []
        self.body = nn.Linear(F + A + 3, H)
        self.head = nn.Linear(H, A + 1)

    def features(self, obs, act, rew, fin, stepno, virtual):
        self.calls.append((tuple(fin.shape), virtual))
        last = nn.functional.one_hot(act["a"], A).to(obs["x"])
        return self.body(torch.cat([obs["x"], last, torch.stack([rew, fin, stepno * 0.1], -1).to(obs["x"])], -1)).tanh()

    def forward(self, obs, *, act, rew, fin, stepno, hx=None, virtual=False):
        out = self.head(self.features(obs, act, rew, fin, stepno, virtual))
        return {"a": out[..., :A].argmax(-1)}, (), {"logits": out[..., :A], "heads": (out[..., A],)}


class Recurrent(Feedforward):
    """Has an LSTM, whose recurrent state it forgets to advance in a virtual step."""

    def __init__(self):
        super().__init__()
        self.core = nn.LSTM(H, H)

    def forward(self, obs, *, act, rew, fin, stepno, hx=None, virtual=False):
        z, later = self.core(self.features(obs, act, rew, fin, stepno, virtual), hx)
        out = self.head(z)
        info = {"logits": out[..., :A], "heads": (out[..., A],)}
        return {"a": out[..., :A].argmax(-1)}, hx if virtual else later, info


class Learnt(Recurrent):
    """Resets to a learnt state, in a way that does not honour a mask."""

    def __init__(self):
        super().__init__()
        self.first = nn.Parameter(torch.randn(2, H))

    def reset(self, hx, at):
        assert isinstance(at, int)
        hx = tuple(x.clone() for x in hx)
        for x, first in zip(hx, self.first, strict=True):
            x[:, at] = first
        return hx


def react_to_last(actor, state, hx, b):
    """Show the actor one last state of environment ``b``: return its info, without the dimensions of one."""
    row, column = nested.map(lambda x: x[None, None], state), nested.map(lambda x: x[:, b : b + 1], hx)
    _, _, info = actor.step(*row, hx=column, virtual=True)
    return nested.map(lambda x: x[0, 0], info)


def collect(actor, T=12, B=3, seed=0, ends=0.25, final=True, sticky=False):
    """Step the actor one row at a time, with random observations, and note what a collector would."""
    gen = torch.Generator().manual_seed(seed)

    def draw(*shape):
        return torch.randn(*shape, dtype=torch.float64, generator=gen)

    def toss():
        return torch.rand(B, generator=gen) < ends

    hx = start = tuple(draw(1, B, H) for _ in "hc") if isinstance(actor, Recurrent) else ()
    row = State(torch.arange(B), {"x": draw(B, F)}, {"a": torch.zeros(B, dtype=torch.int64)}, torch.zeros(B), toss())
    rows, infos, outcomes, lasts, over = [], [], [], [], torch.zeros(B, dtype=torch.bool)
    for t in range(T + 1):
        for b in row.fin.nonzero().flatten().tolist():
            hx = actor.reset(hx, b)
        act, later, info = actor.step(*nested.map(lambda x: x[None], row), hx=hx, virtual=t == T)
        rows.append(row)
        infos.append(info)
        if t == T:
            break
        new = State(row.stepno + 1, {"x": draw(B, F)}, nested.map(lambda x: x[0], act), draw(B).float(), toss())
        if sticky:
            padding = row._replace(rew=torch.zeros(B), fin=over)
            new = nested.map(lambda x, y, at=over: torch.where(at.view(-1, *(1,) * (x.ndim - 1)), x, y), padding, new)
        for b in (new.fin & ~over).nonzero().flatten().tolist():
            last = nested.map(lambda x, b=b: x[b], new)._replace(obs={"x": draw(F)}, fin=torch.tensor(False))
            lasts.append((t, b, last.obs["x"], react_to_last(actor, last, later, b)))
        outcomes.append((new.fin, torch.zeros_like(new.fin), ~over))
        over = over | (new.fin & sticky)
        row, hx = new._replace(stepno=torch.where(new.fin, 0, new.stepno)), later

    terminated, truncated, valid = (torch.stack(x) for x in zip(*outcomes, strict=True))
    t, b, obs, reactions = zip(*lasts, strict=True) if lasts else ((),) * 4
    obs = {"x": torch.stack(obs) if lasts else draw(0, F)}
    reactions = nested.map(lambda *xs: torch.stack(xs), *reactions) if lasts else ()
    ended = Final(torch.tensor(t, dtype=torch.int64), torch.tensor(b, dtype=torch.int64), obs, reactions)
    fragment = Fragment(
        state=nested.map(lambda *xs: torch.stack(xs), *rows),
        actor=nested.map(lambda *xs: torch.cat(xs), *infos),
        env=Outcome(terminated, truncated, valid, {}, ended if final else ()),
        hx=start,
    )
    actor.calls.clear()
    return nested.map(torch.Tensor.detach, fragment), nested.map(torch.Tensor.detach, hx)


def make(kind):
    torch.manual_seed(1)
    return kind().double()


def assert_close(got, expected):
    assert nested.structure(got) == nested.structure(expected)
    for x, y in zip(nested.leaves(got), nested.leaves(expected), strict=True):
        torch.testing.assert_close(x, y, rtol=0, atol=1e-12)


@pytest.mark.parametrize("kind", [Feedforward, Recurrent, Learnt])
@pytest.mark.parametrize("sticky", [False, True])
@pytest.mark.parametrize("ends", [0.0, 0.25, 1.0])
@pytest.mark.parametrize("T", [1, 12])
def test_unrolling_repeats_the_recorded_reactions(kind, sticky, ends, T):
    actor = make(kind)
    for seed in range(3):
        fragment, hx = collect(actor, T, seed=seed, ends=ends, sticky=sticky)
        assert (len(fragment.env.final.t) > 0) == (ends > 0) or T == 1
        info, last, final = unroll(fragment, actor)
        assert_close(info, fragment.actor)
        assert_close(last, hx)
        if len(fragment.env.final.t):
            assert_close(final, fragment.env.final.actor)


def test_an_episode_may_begin_with_a_row_that_is_no_transition():
    # in the NEXT_STEP mode of vector environments the recurrent state is carried over from such a row
    actor = make(Recurrent)
    fragment, hx = collect(actor, ends=0.4)
    for valid in (~fragment.state.fin[:-1], torch.zeros_like(fragment.env.valid)):
        info, last, _ = unroll(fragment._replace(env=fragment.env._replace(valid=valid)), actor)
        assert_close(info, fragment.actor)
        assert_close(last, hx)


@pytest.mark.parametrize("kind", [Feedforward, Recurrent])
def test_gradients_of_unrolling_are_those_of_stepping_row_by_row(kind):
    actor = make(kind)
    fragment, _ = collect(actor)
    unrolled = unroll(fragment, actor)
    objective = sum(x.square().sum() for x in nested.leaves((unrolled.info, unrolled.final)))
    got = torch.autograd.grad(objective, list(actor.parameters()))

    state, final, hx, objective = fragment.state, fragment.env.final, fragment.hx, 0.0
    for t in range(len(state.fin)):
        hx = actor.reset(hx, state.fin[t])
        _, later, info = actor.step(*nested.map(lambda x, t=t: x[t : t + 1], state), hx=hx, virtual=False)
        objective = objective + sum(x.square().sum() for x in nested.leaves(info))
        for k, b in [(k, int(final.b[k])) for k in range(len(final.t)) if final.t[k] == t]:
            last = State(
                state.stepno[t, b] + 1,
                {"x": final.obs["x"][k]},
                {"a": state.act["a"][t + 1, b]},
                state.rew[t + 1, b],
                torch.tensor(False),
            )
            info = react_to_last(actor, last, later, b)
            objective = objective + sum(x.square().sum() for x in nested.leaves(info))
        hx = later
    for x, y in zip(got, torch.autograd.grad(objective, list(actor.parameters())), strict=True):
        torch.testing.assert_close(x, y)


def test_a_learnt_first_state_gets_gradients():
    actor = make(Learnt)
    fragment, _ = collect(actor)
    unroll(fragment, actor).info["logits"].sum().backward()
    assert actor.first.grad.abs().min() > 0


def test_unrolling_calls_an_actor_without_state_once():
    actor = make(Feedforward)
    fragment, _ = collect(actor)
    unroll(fragment, actor)
    assert actor.calls == [((13, 3), True), ((1, len(fragment.env.final.t)), True)]


def test_unrolling_calls_a_recurrent_actor_once_per_run():
    actor = make(Recurrent)
    fragment, _ = collect(actor, ends=0.0)
    for t in (0, 4, 5, 12):
        fragment.state.fin[t, 1] = True
    unroll(fragment, actor)
    assert actor.calls == [((4, 3), False), ((1, 3), False), ((7, 3), False), ((1, 3), True)]


@pytest.mark.parametrize("final", [False, True])
def test_padding_does_not_interrupt_a_run_of_the_recurrent_core(final):
    actor = make(Recurrent)
    fragment, _ = collect(actor, sticky=True, final=final)
    fragment.state.fin[0] = False
    unroll(fragment, actor)
    padding = int((~fragment.env.valid).sum())
    ends = set((fragment.state.fin[1:] & fragment.env.valid).nonzero()[:, 0].tolist()) - {11}
    runs, *rest = actor.calls[: 1 + len(ends) * final], *actor.calls[1 + len(ends) * final :]
    assert len(ends) > 1
    assert sum(rows for (rows, _), _ in runs) == 12
    assert rest == [((1, 3), True), ((1, padding), True)] + [((1, 3), True)] * final


def test_unrolling_a_fragment_without_finals():
    actor = make(Recurrent)
    fragment, _ = collect(actor, final=False)
    assert unroll(fragment, actor).final == ()


def test_finals_that_were_not_asked_for_are_told_where_they_are_used():
    actor = make(Recurrent)
    fragment, _ = collect(actor, final=False)
    final = unroll(fragment, actor).final
    remedy = r"this fragment has no `final`: collect it with `rollout\(\.\.\., final=True\)`, or leave"
    with pytest.raises(TypeError, match=remedy):
        final["value"]
    for place in (0, -1, 1):
        with pytest.raises(IndexError, match=remedy):
            final[place]
    for ask in (lambda: final.value, lambda: final.squeeze(-1)):
        with pytest.raises(AttributeError, match=remedy):
            ask()


def test_finals_that_were_not_asked_for_are_an_empty_tuple():
    actor = make(Recurrent)
    fragment, _ = collect(actor, final=False)
    final = unroll(fragment, actor).final
    assert isinstance(final, tuple)
    assert (len(final), bool(final), list(final), repr(final), hash(final)) == (0, False, [], "()", hash(()))
    assert (final[:1], final + (1,), final or None) == ((), (1,), None)  # noqa: RUF005
    assert nested.leaves(final) == [] == torch.utils._pytree.tree_leaves(final)
    for same in (nested.map(torch.clone, final), pickle.loads(pickle.dumps(final)), copy.deepcopy(final)):
        assert same == ()
        assert type(same) is type(final)


@pytest.mark.parametrize("kind", [Feedforward, Recurrent])
def test_unrolling_a_fragment_in_which_no_episode_ended(kind):
    actor = make(kind)
    fragment, _ = collect(actor, ends=0.0)
    final = unroll(fragment, actor).final
    assert final["logits"].shape == (0, A)
    assert final["heads"][0].shape == (0,)
    assert all(b > 0 for (_, b), _ in actor.calls)  # the actor was not asked about a batch of none


@pytest.mark.parametrize("kind", [Feedforward, Recurrent])
def test_unrolling_changes_neither_the_fragment_nor_the_mode_of_the_actor(kind):
    actor = make(kind).eval()
    fragment, _ = collect(actor)
    kept = nested.map(torch.clone, fragment)
    unroll(fragment, actor)
    assert not actor.training
    for x, y in zip(nested.leaves(fragment), nested.leaves(kept), strict=True):
        assert torch.equal(x, y)


def test_unrolling_an_actor_without_state_never_waits_for_the_device():
    actor = make(Feedforward)
    fragment, _ = collect(actor)
    fragment = nested.map(lambda x: x.to("meta"), fragment)  # where there is nothing to be read
    assert unroll(fragment, actor.to("meta")).final["logits"].device.type == "meta"


def test_unrolling_a_recurrent_actor_waits_once_for_the_device(monkeypatch):
    actor = make(Recurrent)
    fragment, _ = collect(actor)
    waits, cpu = [], torch.Tensor.cpu
    monkeypatch.setattr(torch.Tensor, "cpu", lambda self: waits.append(self) or cpu(self))
    unroll(fragment, actor)
    assert len(waits) == 1


def test_unrolling_names_an_info_that_is_wrong():
    actor = make(Feedforward)
    fragment, _ = collect(actor)
    actor.forward = lambda obs, **rest: (None, (), SimpleNamespace(shape=(3,)))
    with pytest.raises(ValueError, match=r"\(n_seq, B\) = \(13, 3\).*Feedforward gave"):
        unroll(fragment, actor)


def test_unrolling_a_recurrent_actor_over_a_fragment_without_recurrent_state_is_refused():
    fragment, _ = collect(make(Feedforward))
    actor = make(Feedforward)
    actor.forward = lambda obs, **rest: (None, (torch.zeros(1, 3, H),), obs["x"])
    with pytest.raises(ValueError, match=r"has a recurrent state, but `fragment.hx` is \(\)"):
        unroll(fragment, actor)
