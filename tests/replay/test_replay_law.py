"""The replay law: a fragment holds all inputs of the actor, and where fragments are cut changes nothing."""

from __future__ import annotations

from functools import partial

import gym.spaces
import pytest
import torch
from torch import nn

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule, Final
from rlplay.engine.rollout import same, threaded
from rlplay.testing import LedgerEnv
from tests.support.assertions import assert_identical

N_ACTIONS, N_ENVS, T = 5, 5, 10
ENGINES = {"same": same, "threaded": threaded}

engines = pytest.mark.parametrize("engine", ENGINES)
groupings = pytest.mark.parametrize("groups", [1, 2])
stickiness = pytest.mark.parametrize("sticky", [False, True], ids=["", "sticky"])


class RecurrentActorCritic(BaseActorModule):
    """An actor as in the delivered: one core, two heads; it samples. Its info depends on all that it is given."""

    def __init__(self, cell="LSTM", *, learnt=False):
        super().__init__()
        self.core = getattr(nn, cell)(6 + N_ACTIONS + 2, 16)
        self.policy, self.value = nn.Linear(16, N_ACTIONS), nn.Linear(16, 1)
        self.first = nn.Parameter(torch.randn(16)) if learnt else None

    def reset(self, hx, at):
        if self.first is None:
            return super().reset(hx, at)

        def begun(x):
            x = x.clone()
            x[:, at] = self.first.detach()
            return x

        return nested.map(begun, hx)

    def forward(self, obs, *, act, rew, fin, stepno, hx=None, virtual=False):
        # what ended the previous episode is not for the actor
        last = nn.functional.one_hot(act, N_ACTIONS) * ~fin[..., None]
        beside = torch.stack([rew.sin() * ~fin, stepno / 10], -1)
        out, hx = self.core(torch.cat([obs.sin(), last, beside], -1), hx)
        logits = self.policy(out).log_softmax(-1)
        info = {"logits": logits, "value": self.value(out)[..., 0]}
        return sampling.categorical(logits, generator=self.generator), hx, info


class ResetsByIntegersOnly(RecurrentActorCritic):
    """Does not know of masks: the engine resets its state by one index after another."""

    def reset(self, hx, at):
        hx = nested.map(torch.clone, hx)
        for x in nested.leaves(hx):
            x[:, at].zero_()
        return hx


@pytest.fixture(autouse=True)
def seeded():
    torch.manual_seed(0)


ACTORS = {
    "LSTM": RecurrentActorCritic,
    "GRU": partial(RecurrentActorCritic, "GRU"),
    "learnt": partial(RecurrentActorCritic, learnt=True),
    "one by one": ResetsByIntegersOnly,
}
# as it says, once, that it is not honoured: see the class above
unmasked = pytest.mark.filterwarnings("ignore:the actor.s reset does not honour a bool mask:RuntimeWarning")
actors = pytest.mark.parametrize("kind", [pytest.param(kind, marks=unmasked) for kind in ACTORS])


def envs():
    return [LedgerEnv(gym.spaces, j, lengths=[4, 1, 13, 1, 1, 3, 6]) for j in range(N_ENVS)]


def fragments(engine, actor, n, n_steps=T, *, seed=3, **how):
    with ENGINES[engine].rollout(envs(), actor, n_steps, seed=seed, **how) as feed:
        return [next(feed) for _ in range(n)]


def widths(groups):
    """Which columns were inferred together: contiguous parts, equal up to one."""
    return {1: [slice(0, 5)], 2: [slice(0, 3), slice(3, 5)]}[groups]


@torch.no_grad()
def replay(actor, fragment, columns):
    """React row by row, from ``hx``; return the infos, the states after each row, and the last one."""
    state = nested.map(lambda x: x[:, columns], fragment.state)
    hx = nested.map(lambda x: x[:, columns], fragment.hx)
    infos, after = [], []
    for t in range(len(state.fin)):
        row = nested.map(lambda x, t=t: x[t : t + 1], state)
        for b in row.fin[0].nonzero().flatten().tolist():
            hx = actor.reset(hx, b)
        reset = hx
        _, hx, info = actor.step(*row, hx=hx, virtual=False)
        infos.append(info)
        after.append(hx)
    return nested.map(lambda *rows: torch.cat(rows), *infos), after, reset


@actors
@stickiness
@groupings
@engines
def test_replaying_a_fragment_gives_the_recorded_reactions(engine, groups, sticky, kind):
    actor = ACTORS[kind]()
    got = fragments(engine, actor, 4, groups=groups, sticky=sticky)
    assert any(fragment.state.fin[0].any() and not fragment.state.fin[0].all() for fragment in got)
    assert not any(fragment.state.fin[1:].all() for fragment in got)
    for k, fragment in enumerate(got):
        for columns in widths(groups):
            infos, _, row_t = replay(actor, fragment, columns)
            assert_identical(infos, nested.map(lambda x, c=columns: x[:, c], fragment.actor), f"fragments[{k}].actor")
            if k + 1 < len(got):  # row T advances nothing: there the next one begins
                assert_identical(nested.map(lambda x, c=columns: x[:, c], got[k + 1].hx), row_t, "hx")


@actors
@stickiness
@groupings
@engines
def test_infos_of_finals_come_from_the_recurrent_state_of_that_step(engine, groups, sticky, kind):
    actor, n_ends = ACTORS[kind](), 0
    for fragment in fragments(engine, actor, 4, groups=groups, sticky=sticky, final=True):
        state, final = fragment.state, fragment.env.final
        assert isinstance(final, Final)
        for columns in widths(groups):
            _, after, _ = replay(actor, fragment, columns)
            for i, (t, b) in enumerate(zip(final.t.tolist(), final.b.tolist(), strict=True)):
                if not columns.start <= b < columns.stop:
                    continue
                obs = state.obs[t + 1 : t + 2, columns].clone()
                obs[0, b - columns.start] = final.obs[i]
                stepno = state.stepno[t : t + 1, columns] + 1
                act, rew = state.act[t + 1 : t + 2, columns], state.rew[t + 1 : t + 2, columns]
                fin = torch.zeros_like(stepno, dtype=torch.bool)
                with torch.no_grad():
                    _, _, info = actor.step(stepno, obs, act, rew, fin, hx=after[t], virtual=True)
                seen = nested.map(lambda x, b=b - columns.start: x[0, b], info)
                assert_identical(nested.map(lambda x, i=i: x[i], final.actor), seen, f"final.actor[{i}]")
                n_ends += 1
    assert n_ends >= 8


@stickiness
@engines
def test_a_fragment_is_collected_with_the_weights_of_one_snapshot(engine, sticky):
    actor, copies = RecurrentActorCritic(), []
    with ENGINES[engine].rollout(envs(), actor, T, seed=3, sticky=sticky, lag=1) as feed:
        got = []
        for _ in range(4):
            copies.append({name: weight.clone() for name, weight in actor.state_dict().items()})
            got.append(next(feed))
            with torch.no_grad():
                for weight in actor.parameters():
                    weight.add_(0.1 * torch.randn_like(weight))
    for k, fragment in enumerate(got):
        actor.load_state_dict(copies[max(0, k - 1)])
        infos, _, _ = replay(actor, fragment, slice(0, N_ENVS))
        assert_identical(infos, fragment.actor, f"fragments[{k}].actor")


@pytest.mark.parametrize("final", [False, True], ids=["", "final"])
@pytest.mark.parametrize("n_steps", [1, 4, 10])
@groupings
@engines
def test_where_fragments_are_cut_changes_nothing(engine, groups, n_steps, final):
    actor = RecurrentActorCritic()
    whole = fragments("same", actor, 2, 20, groups=groups)
    parts = fragments(engine, actor, 40 // n_steps, n_steps, groups=groups, final=final)
    for what in ("state", "actor"):
        cut = nested.map(lambda *xs: torch.cat([x[:-1] for x in xs]), *(getattr(part, what) for part in parts))
        uncut = nested.map(lambda x, y: torch.cat([x[:-1], y[:-1]]), *(getattr(part, what) for part in whole))
        assert_identical(cut, uncut, what)
        # the virtual reaction to the look-ahead row was the right one, too
        assert_identical(*(nested.map(lambda x: x[-1], getattr(last, what)) for last in (parts[-1], whole[-1])), what)
    for flag in ("terminated", "truncated", "valid"):
        cut, uncut = (torch.cat([getattr(part.env, flag) for part in some]) for some in (parts, whole))
        assert torch.equal(cut, uncut)


@stickiness
@groupings
@engines
def test_asking_for_final_changes_nothing_else(engine, groups, sticky):
    actor = RecurrentActorCritic()
    without = fragments(engine, actor, 4, groups=groups, sticky=sticky)
    asked = fragments(engine, actor, 4, groups=groups, sticky=sticky, final=True)
    assert sum(len(fragment.env.final.t) for fragment in asked) >= 8
    for k, (one, other) in enumerate(zip(asked, without, strict=True)):
        assert_identical(one._replace(env=one.env._replace(final=())), other, f"fragments[{k}]")


def test_actions_are_drawn_apart_for_each_group_and_for_each_seed():
    def acts(**how):
        return torch.cat([fragment.state.act[1:] for fragment in fragments("same", RecurrentActorCritic(), 2, **how)])

    def fresh(**how):
        torch.manual_seed(0)
        return acts(**how)

    assert torch.equal(fresh(), fresh())
    assert not torch.equal(fresh(), fresh(seed=4))
    assert not torch.equal(fresh(groups=2)[:, :3], fresh()[:, :3])


def test_groups_draw_apart_from_each_other_and_virtual_steps_from_real_ones():
    class Blind(BaseActorModule):
        def forward(self, obs, *, fin, hx=None, **ignored):
            drawn = torch.rand(fin.shape, generator=self.generator)
            return (drawn * N_ACTIONS).long(), hx, {"drawn": drawn}

    some = [LedgerEnv(gym.spaces, j) for j in range(4)]
    with same.rollout(some, Blind(), 10, groups=2, final=True) as feed:
        got = [next(feed), next(feed)]
    drawn = [fragment.actor["drawn"] for fragment in got] + [fragment.env.final.actor["drawn"] for fragment in got]
    numbers = torch.cat([x.flatten() for x in drawn])
    assert len(numbers.unique()) == len(numbers)


def test_the_global_generator_is_left_alone():
    actor = RecurrentActorCritic()
    before = torch.get_rng_state()
    got = fragments("same", actor, 2, final=True)
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(99)
    for one, other in zip(got, fragments("threaded", actor, 2, final=True, lag=0), strict=True):
        assert_identical(one, other)
