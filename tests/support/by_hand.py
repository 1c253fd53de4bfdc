"""Steps a vector environment in torch by hand, with the actions of some fragments, and compares all rows."""

from __future__ import annotations

from collections import defaultdict

import torch

from rlplay import nested
from rlplay.engine.core import Episode
from tests.support.assertions import equal_tensors

LAST_NAMES = ("final_obs", "final_observation")


def whole(fragments):
    """Return the states, without look-ahead rows but the last one, and the outcomes of consecutive fragments."""
    state = nested.map(lambda *xs: torch.cat([*(x[:-1] for x in xs), xs[-1][-1:]]), *(one.state for one in fragments))
    env = nested.map(lambda *xs: torch.cat(xs), *(one.env._replace(final=()) for one in fragments))
    return state, env


def check_by_hand(env, seed, fragments, episodes, *, start=0, names=()):
    """Check rows, outcomes, finals and episodes against those of a fresh environment."""
    state, outcome = whole(fragments)
    n, mode, n_steps = env.num_envs, env.mode, fragments[0].env.valid.shape[0]
    obs, _ = env.reset(seed=seed)
    obs = nested.map(torch.clone, obs)
    stepno, ret, resetting = [0] * n, [0.0] * n, [False] * n
    flags = [(False, False)] * n
    played, lasts = [], defaultdict(list)
    rew, fin = torch.zeros(n), torch.ones(n, dtype=torch.bool)
    for t in range(len(state.fin)):
        assert equal_tensors(at(state.obs, t), nested.map(lambda x: x - start if start else x, obs)), t
        assert state.stepno[t].tolist() == stepno, t
        assert torch.equal(state.rew[t], rew), t
        assert torch.equal(state.fin[t], fin), t
        if t + 1 == len(state.fin):
            break
        act = at(state.act, t + 1)
        answer = env.step(nested.map(lambda x: (x + start).clone() if start else x.clone(), act))
        obs, reward, *ends, infos = (*nested.map(torch.clone, answer[:-1]), answer[-1])
        if len(ends) == 1:
            cut = infos["time_outs"].reshape(n).bool()
            ends = [ends[0].reshape(n).bool() & ~cut, cut]
        terminated, truncated = (x.reshape(n).bool().tolist() for x in ends)
        last = nested.map(torch.clone, next((infos[name] for name in LAST_NAMES if name in infos), obs))
        for j in range(n):
            if resetting[j]:
                terminated[j], truncated[j] = flags[j]
                rew[j], resetting[j], stepno[j], ret[j], fin[j] = 0.0, False, 0, 0.0, True
                assert not outcome.valid[t, j]
                assert equal_tensors(at(state.act, t + 1, j), at(state.act, t, j))
                assert all(absent(outcome.info[name][t, j]) for name in names)
                continue
            assert outcome.valid[t, j]
            rew[j] = reward.reshape(n)[j]
            stepno[j], ret[j] = stepno[j] + 1, ret[j] + float(rew[j])
            for name in names:
                assert torch.equal(outcome.info[name][t, j], infos[name][j].to(outcome.info[name].dtype)), (t, name)
            fin[j] = terminated[j] or truncated[j]
            if fin[j]:
                played.append(Episode(j, ret[j], stepno[j]))
                lasts[t // n_steps].append((t % n_steps, j, at(last, j), stepno[j], at(act, j), float(rew[j])))
                resetting[j] = mode == "NEXT_STEP"
                stepno[j], ret[j] = 0, 0.0
        flags = list(zip(terminated, truncated, strict=True))
        assert outcome.terminated[t].tolist() == terminated
        assert outcome.truncated[t].tolist() == truncated
        if mode == "DISABLED":
            begun, _ = env.reset(options={"reset_mask": fin.clone()})
            obs = nested.map(lambda x, y: torch.where(fin.view(-1, *(1,) * (x.ndim - 1)), y, x), obs, begun)
    assert played == episodes
    assert len(played) > n
    for k, fragment in enumerate(fragments):
        if fragment.env.final != ():
            check_final(fragment.env.final, lasts[k], start)


def check_final(final, expected, start):
    assert [*zip(final.t.tolist(), final.b.tolist(), strict=True)] == [(t, j) for t, j, *_ in expected]
    for k, (_, _, last, stepno, act, rew) in enumerate(expected):
        assert equal_tensors(at(final.obs, k), nested.map(lambda x: x - start if start else x, last))
        told = at(final.actor, k)  # the counting actor tells its inputs
        assert equal_tensors(told["obs"], at(final.obs, k))
        assert (told["stepno"], told["rew"], told["fin"], told["virtual"]) == (stepno, rew, False, True)
        assert equal_tensors(told["act"], act)
        assert told["hx"]["count"] == stepno


def at(tree, *where):
    return nested.map(lambda x: x[where], tree)


def absent(x):
    return bool(x.isnan().all()) if x.is_floating_point() else not x.any()
