"""Fragments with ends and padding, buffers of them, and where an item comes from."""

from __future__ import annotations

import pytest
import torch

from rlplay import nested
from rlplay.engine import Final, Fragment, Outcome, State
from rlplay.replay import Prioritized, Uniform

T, B, SHELVES, GAMMA = 5, 3, 3, 0.9
CAPACITY = SHELVES * T * B + 4  # not all of it can be used

both = pytest.mark.parametrize("kind", [Uniform, Prioritized])
kinds = pytest.mark.parametrize("sequences", [False, True])
finals = pytest.mark.parametrize("final", [False, True])


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def draw(kind, buffer, n, seed=0, beta=0.5, **how):
    how |= {"beta": beta} if kind is Prioritized else {}
    how |= {"generator": generator(seed)}
    if buffer._holds_sequences:
        return buffer.sample_sequences(n, **how)
    return buffer.sample(n, **{"gamma": GAMMA, **how})


def make_fragment(seed, final=True, ends=0.2, valid=0.8, n_steps=T, n_envs=B):
    """Draw a fragment in which every number is another; what never happened is NaN where it can be."""
    gen = generator(seed)
    rows, steps = (n_steps + 1, n_envs), (n_steps, n_envs)

    def obs(*lead):
        image = torch.randint(256, (*lead, 2, 2), generator=gen).byte()
        return {"image": image, "pair": (torch.randn(*lead, generator=gen), [torch.randn(*lead, 3, generator=gen)])}

    def toss(p):
        return torch.rand(steps, generator=gen) < p

    terminated, truncated, valid = toss(ends / 2), toss(ends / 2), toss(valid)
    fin = torch.cat([torch.rand(1, n_envs, generator=gen) < 0.3, terminated | truncated])
    rew = torch.randn(rows, generator=gen)
    rew[1:][~valid] = float("nan")
    act = torch.randint(7, rows, generator=gen)
    state = State(torch.randint(1000, rows, generator=gen), obs(*rows), act, rew, fin)
    t, b = (fin[1:] & valid).nonzero(as_tuple=True)
    last = Final(t, b, obs(len(t)), {"value": torch.randn(len(t), generator=gen)})
    outcome = Outcome(terminated, truncated, valid, {"code": torch.randn(steps, generator=gen)}, last if final else ())
    hx = (torch.randn(2, n_envs, 4, generator=gen),)
    return Fragment(state, {"value": torch.randn(rows, generator=gen)}, outcome, hx)


def committed(buffer, n, **how):
    """Commit some fragments, with more and fewer ends; return copies of them."""
    fragments = [make_fragment(k, **{"ends": (0.1, 0.9, 0.0, 0.4)[k % 4], **how}) for k in range(n)]
    for fragment in fragments:
        buffer.commit(fragment)
    return fragments


def assert_same_numbers(got, expected):
    assert nested.structure(got) == nested.structure(expected)
    for x, y in zip(nested.leaves(got), nested.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        torch.testing.assert_close(x, y, rtol=0, atol=0, equal_nan=True)


def where(item, sequences=False):
    """Tell which fragment an item is of, and where it is in there."""
    k, rest = divmod(item, B if sequences else T * B)
    return (k, rest) if sequences else (k, *divmod(rest, B))


def eligible(fragments, sequences=False):
    """List the ids of all items that may be drawn."""
    found = []
    for k in range(max(0, len(fragments) - SHELVES), len(fragments)):
        valid = fragments[k].env.valid
        valid = valid.any(dim=0) if sequences else valid.flatten()
        found += [k * len(valid) + i for i in valid.nonzero().flatten().tolist()]
    return found
