"""Actors that several test modules use; each does one thing that an engine has to cope with."""

from __future__ import annotations

import random

import numpy as np
import torch
from torch import nn

from rlplay import sampling
from rlplay.engine import BaseActorModule
from rlplay.testing import CountingActor


def zeros_like_act(fin):
    return torch.zeros(fin.shape, dtype=torch.int64)


class AssignsBuffer(BaseActorModule):
    """Assigns a new tensor to its buffer at each step, as hand-written running statistics do."""

    def __init__(self):
        super().__init__()
        self.register_buffer("count", torch.zeros(()))

    def forward(self, obs, *, fin, hx=None, **ignored):
        self.count = self.count + 1
        return zeros_like_act(fin), (), {"count": self.count.expand(fin.shape)}


class RemembersObservation(BaseActorModule):
    """Returns its observation, the same tensor, as its recurrent state."""

    def forward(self, obs, *, fin, hx=None, **ignored):
        before = torch.zeros_like(obs) if hx is None else hx
        return zeros_like_act(fin), obs, {"before": before}


class AdvancesStateInPlace(BaseActorModule):
    """Advances its recurrent state in place."""

    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = torch.zeros(1, fin.shape[1]) if hx is None else hx
        hx += 1
        return zeros_like_act(fin), hx, {"hx": hx.clone()}


class KeepsStateFromVirtualSteps(BaseActorModule):
    """Counts rows; a virtual step returns no recurrent state, unless it is given none."""

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        before = torch.zeros(1, fin.shape[1], 1) if hx is None else hx
        return zeros_like_act(fin), None if virtual and hx is not None else before + 1, {"before": before}


class DrawsFirstState(BaseActorModule):
    """Draws its first recurrent state."""

    def reset(self, hx, at):
        drawn = torch.rand(hx.shape, generator=self.generator)
        if isinstance(at, torch.Tensor):
            return torch.where(at[None, :, None], drawn, hx)
        hx = hx.clone()
        hx[:, at] = drawn[:, at]
        return hx

    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = torch.zeros(1, fin.shape[1], 3) if hx is None else hx
        act = sampling.categorical(torch.zeros(*fin.shape, 2), generator=self.generator)
        return act, hx, {"hx": hx.expand(*fin.shape, 3).clone()}


class AddsWeight(BaseActorModule):
    """Acts 0; its info is the observation plus its weight."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))

    def forward(self, obs, **ignored):
        return torch.zeros(obs.shape, dtype=torch.int64), (), obs + self.weight


class AnswerActor(BaseActorModule):
    """Base of small actors without weights: a subclass defines `answer`, which goes into the info."""

    def forward(self, obs, *, fin, hx=None, **ignored):
        return torch.zeros_like(fin, dtype=torch.int64), (), {"answer": self.answer(obs, fin)}


class BranchesOnData(AnswerActor):
    def answer(self, obs, fin):
        return obs * 2 if obs.sum() > 0 else obs


class CountsInAttribute(AnswerActor):
    n = 0

    def answer(self, obs, fin):
        self.n += 1
        return obs * self.n


class ChangesTensorAttribute(AnswerActor):
    def __init__(self):
        super().__init__()
        self.table = torch.zeros(6)

    def answer(self, obs, fin):
        return obs + self.table.add_(1)


class DrawsFromTorchGenerator(AnswerActor):
    def answer(self, obs, fin):
        return torch.rand_like(obs) * 0


class DrawsFromOwnGenerator(AnswerActor):
    def answer(self, obs, fin):
        return torch.rand(obs.shape, generator=self.generator)


class DrawsFromNumpyRandom(AnswerActor):
    def answer(self, obs, fin):
        return obs * np.random.rand()  # noqa: NPY002


class DrawsFromPythonRandom(AnswerActor):
    def answer(self, obs, fin):
        return obs * 2 if random.random() < 0.5 else obs


class ChangesBuffers(BaseActorModule):
    """Changes buffers in place, by assignment, by swapping two of them, and inside a layer."""

    def __init__(self):
        super().__init__()
        self.norm = nn.BatchNorm1d(6)
        self.register_buffer("seen", torch.zeros((), dtype=torch.int64))
        self.tally = {"also": self.seen}
        self.register_buffer("one", torch.tensor(1.0))
        self.register_buffer("other", torch.tensor(2.0))

    def forward(self, obs, *, fin, virtual, hx=None, **ignored):
        if not virtual:
            self.seen.add_(1)
            self.one, self.other = self.other, self.one
        info = {"norm": self.norm(obs[0])[None], "seen": self.seen.expand(fin.shape), "one": self.one.expand(fin.shape)}
        return fin.long(), (), info


class TiedWeights(BaseActorModule):
    """Uses one weight in two layers; computes from parameters alone, and takes views of them."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Linear(6, 6), nn.Linear(6, 6)
        self.second.weight = self.first.weight
        self.log_std = nn.Parameter(torch.zeros(6))
        self.table = torch.arange(6.0)

    def forward(self, obs, *, fin, hx=None, **ignored):
        out = self.second(self.first(obs).relu()) * torch.tensor(0.5) + self.table
        return (
            fin.long(),
            (),
            {"out": out, "std": self.log_std.exp().expand_as(out), "raw": self.log_std.expand_as(out)},
        )


class SwapsState(BaseActorModule):
    """Swaps two leaves of its recurrent state at each step."""

    def forward(self, obs, *, fin, hx=None, **ignored):
        hx = {"a": obs[..., :2], "b": 1 + obs[..., :2], "n": fin[..., None].long()} if hx is None else hx
        info = {"a": hx["a"], "n": hx["n"]}
        return fin.long(), {"a": hx["b"], "b": hx["a"], "n": hx["n"].add_(1)}, info


class Convolves(BaseActorModule):
    """Convolves; makes a tensor at its first step and keeps it in an attribute."""

    def __init__(self):
        super().__init__()
        self.layer = nn.Conv1d(1, 4, 3)
        self.scale = None

    def forward(self, obs, *, fin, hx=None, **ignored):
        if self.scale is None:
            self.scale = torch.full((1,), 0.5)
        return fin.long(), (), {"seen": self.layer(obs[0][:, None] * self.scale).flatten(1)[None]}


class ReportsModes(AnswerActor):
    """Answers 2 in train mode, plus 1 if its part is in train mode."""

    def __init__(self):
        super().__init__()
        self.part = nn.Identity()

    def answer(self, obs, fin):
        return torch.full_like(obs, 2 * self.training + self.part.training)


class ReportsThreads(CountingActor):
    """Repeats the last action; its info is the number of torch threads."""

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        threads = torch.full(fin.shape, torch.get_num_threads())
        return act.clone(), (), {"threads": threads}
