"""Fragments made by hand or at random, small float64 actors, and their gradients, for the tests of losses."""

from __future__ import annotations

import torch
from torch import nn

from rlplay import nested
from rlplay.engine import BaseActorModule, Final, Fragment, Outcome, State
from rlplay.replay import Batch


class Table(BaseActorModule):
    """Looks up logits and values by the observation, which is the number of the state."""

    def __init__(self, n_states=8, n_actions=3):
        super().__init__()
        torch.manual_seed(0)
        self.logits = nn.Parameter(torch.randn(n_states, n_actions, dtype=torch.float64))
        self.value = nn.Parameter(torch.arange(n_states, dtype=torch.float64))

    def forward(self, obs, *, hx=None, **ignored):
        logits = self.logits[obs]
        return logits.argmax(-1), (), {"logits": logits, "q": logits, "value": self.value[obs]}


class Dense(BaseActorModule):
    """Uses all inputs but the step number; recurrent if `recurrent`."""

    def __init__(self, recurrent=False, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        self.core = nn.GRU(4, 6) if recurrent else None
        self.body = nn.Linear(4, 6)
        self.head = nn.Linear(6, 8)
        self.double()

    def forward(self, obs, *, act, rew, fin, stepno, hx=None, **ignored):
        last = act if act.ndim == 2 else act.sum(-1)
        x = torch.cat([obs, torch.stack([rew, last], -1).to(obs)], -1)
        z, hx = self.core(x, hx) if self.core else (self.body(x).tanh(), ())
        out = self.head(z)
        info = {"logits": out[..., :3], "q": out[..., :3], "value": out[..., 3]}
        info |= {"mean": out[..., 4:6], "log_std": out[..., 6:] / 4}
        return out[..., 0].long(), hx, info


def fragment_of(obs, rew, terminated=None, truncated=None, valid=None, act=None, final=(), hx=(), fin0=False):
    """Make a fragment of lists: ``1+T`` observations, ``T`` of the others. Flat lists are one environment."""
    obs, rew = torch.as_tensor(obs), torch.as_tensor(rew)
    if rew.ndim == 1:
        obs, rew = obs[:, None], rew[:, None]
    T, B = rew.shape

    def column(x, fill, dtype):
        return torch.full((T, B), fill, dtype=dtype) if x is None else torch.as_tensor(x, dtype=dtype).view(T, B)

    terminated, truncated = column(terminated, False, torch.bool), column(truncated, False, torch.bool)
    row = torch.zeros(1, B)
    state = State(
        stepno=torch.zeros(1 + T, B, dtype=torch.int64),
        obs=obs,
        act=torch.cat([row.long(), column(act, 0, torch.int64)]),
        rew=torch.cat([row.to(rew), rew]),
        fin=torch.cat([row.bool() | fin0, terminated | truncated]),
    )
    return Fragment(state, (), Outcome(terminated, truncated, column(valid, True, torch.bool), {}, final), hx)


def ended(obs, t, b=None):
    """Make the finals of episodes that ended at steps `t` of environments `b` (default 0)."""
    t = torch.tensor(t, dtype=torch.int64)
    return Final(t, torch.zeros_like(t) if b is None else torch.tensor(b), torch.as_tensor(obs), ())


def random_fragment(seed=0, T=9, B=4, recurrent=False, box=False):
    """Draw a fragment with terminated and truncated episodes, and random infos of a behaviour policy."""
    g = torch.Generator().manual_seed(seed)

    def said(*lead):
        names = {"logits": (3,), "value": (), "mean": (2,), "log_std": (2,)}
        return {name: torch.randn(*lead, *n, dtype=torch.float64, generator=g) / 2 for name, n in names.items()}

    over, how = torch.rand(T, B, generator=g) < 0.3, torch.rand(T, B, generator=g) < 0.5
    t, b = over.nonzero(as_tuple=True)
    fragment = fragment_of(
        torch.randn(1 + T, B, 2, dtype=torch.float64, generator=g),
        torch.randn(T, B, generator=g),
        over & how,
        over & ~how,
        act=torch.randint(3, (T, B), generator=g),
        final=Final(t, b, torch.randn(len(t), 2, dtype=torch.float64, generator=g), said(len(t))),
        hx=torch.randn(1, B, 6, dtype=torch.float64, generator=g) if recurrent else (),
    )
    if box:
        act = torch.randn(1 + T, B, 2, dtype=torch.float64, generator=g)
        fragment = fragment._replace(state=fragment.state._replace(act=act))
    return fragment._replace(actor=said(1 + T, B))


def made_sticky(fragment):
    """Turn the rows after the first end of each environment into padding, as a sticky feed does."""
    over = fragment.state.fin[1:].cumsum(0) > 0
    fragment.state.fin[1:] = over
    fragment.env.terminated.logical_or_(over & ~fragment.env.truncated)
    fragment.env.valid[1:] = ~over[:-1]
    final = fragment.env.final
    first = fragment.env.valid[final.t, final.b]
    final = nested.map(lambda x: x[first], final)
    return fragment._replace(env=fragment.env._replace(final=final))


def random_batch(seed=0, N=12, act=None):
    """Draw replayed transitions in float64, with importance weights; a third of them end an episode.

    `act` is the nest of actions, `(1, N, ...)`; by default those of a Discrete space with three.
    """
    g = torch.Generator().manual_seed(seed)

    def state():
        obs = torch.randn(1, N, 2, dtype=torch.float64, generator=g)
        last = torch.randint(3, (1, N), generator=g)
        rew = torch.randn(1, N, dtype=torch.float64, generator=g)
        return State(torch.zeros(1, N, dtype=torch.int64), obs, last, rew, torch.zeros(1, N, dtype=torch.bool))

    act = torch.randint(3, (1, N), generator=g) if act is None else act
    rew = torch.randn(1, N, dtype=torch.float64, generator=g)
    discount = 0.9 * (torch.rand(1, N, dtype=torch.float64, generator=g) > 0.3)
    weight = torch.rand(N, dtype=torch.float64, generator=g)
    return Batch(state(), act, rew, discount, state(), torch.arange(N), weight)


def gradients(loss, module):
    """Return the gradients of all parameters; zero where there are none."""
    found = torch.autograd.grad(loss, list(module.parameters()), allow_unused=True, retain_graph=True)
    return [torch.zeros_like(p) if x is None else x for x, p in zip(found, module.parameters(), strict=True)]
