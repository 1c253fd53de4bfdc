"""Policies over the actions of every kind of space, and fragments that they have collected."""

from __future__ import annotations

import math
from typing import NamedTuple

import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import unroll
from rlplay.engine import BaseActorModule
from tests.support.fragments import random_fragment


class Pair(NamedTuple):
    aim: torch.Tensor
    bits: torch.Tensor


# Of each kind: the widths of the linear layers of a policy, its info made of their outputs, an action, and log p and
# entropy of it by torch's distributions or, for a squashed policy, by an integral.


def discrete(x):
    return {"logits": x}


def masked(x):
    return {"logits": x.masked_fill(torch.tensor([False, True, False]), -math.inf)}


def multi_discrete(x):
    return {"logits": (x[..., :3], x[..., 3:5])}


def box(x):
    return {"mean": x[..., :2], "log_std": x[..., 2:4] / 4}


def squashed(x):
    return box(x) | {"pre_tanh": x[..., :2].detach() + 100}  # a draw of the learner's, which is not looked at


KINDS = {
    "discrete": (3, discrete),
    "masked": (3, masked),
    "multi_discrete": (5, multi_discrete),
    "multi_binary": (4, discrete),
    "box": (4, box),
    "squashed": (4, squashed),
    "dict": (9, lambda x: {"turn": masked(x[..., :3]), "aim": box(x[..., 3:7]), "b": discrete(x[..., 7:9])}),
    "tuple": (12, lambda x: {"policy": (box(x[..., :4]), {"bits": discrete(x[..., 4:8])}, squashed(x[..., 8:12]))}),
    "named": (8, lambda x: {"policy": Pair(squashed(x[..., :4]), discrete(x[..., 4:]))}),
}
every_kind = pytest.mark.parametrize("kind", KINDS)


def draw(kind, T, B, g):
    """Draw the actions of a space of a kind, `1+T` rows."""

    def ints(*highs):
        return torch.stack([torch.randint(n, (1 + T, B), generator=g) for n in highs], dim=-1)

    def real():
        return torch.randn(1 + T, B, 2, dtype=torch.float64, generator=g)

    def bits(n=4):
        return ints(*[2] * n).to(torch.int8)

    return {
        "discrete": lambda: ints(3)[..., 0],
        "masked": lambda: 2 * ints(2)[..., 0],
        "multi_discrete": lambda: ints(3, 2),
        "multi_binary": bits,
        "box": real,
        "squashed": lambda: 2 * real().tanh(),
        "dict": lambda: {"turn": 2 * ints(2)[..., 0], "aim": real(), "b": bits(2)},
        "tuple": lambda: (real(), {"bits": bits()}, 2 * real().tanh()),
        "named": lambda: Pair(2 * real().tanh(), bits()),
    }[kind]()


class Linear(BaseActorModule):
    """A policy of any kind."""

    def __init__(self, kind, seed=0):
        super().__init__()
        torch.manual_seed(seed)
        width, self.info = KINDS[kind]
        self.policy, self.value = nn.Linear(2, width).double(), nn.Linear(2, 1).double()

    def forward(self, obs, *, act, **ignored):
        return act, (), self.info(self.policy(obs)) | {"value": self.value(obs).squeeze(-1)}


def fragment_of(kind, seed=0, T=5, B=3):
    """Draw a fragment that another policy of the kind has collected."""
    fragment, behaviour = random_fragment(seed, T=T, B=B), Linear(kind, seed=1)
    act = draw(kind, T, B, torch.Generator().manual_seed(seed))
    fragment = fragment._replace(state=fragment.state._replace(act=act))
    info, _, final = nested.map(torch.Tensor.detach, unroll(fragment, behaviour))
    info = with_pre_tanh(info, nested.map(lambda x: x[[*range(1, 1 + T), T]], act))
    return fragment._replace(actor=info, env=fragment.env._replace(final=fragment.env.final._replace(actor=final)))


def with_pre_tanh(info, act):
    """Record of each squashed policy what its actions were before `tanh`."""
    if isinstance(act, torch.Tensor):
        return info | {"pre_tanh": torch.atanh(act / 2)} if "pre_tanh" in info else info
    if "policy" in info:
        return info | {"policy": with_pre_tanh(info["policy"], act)}
    if isinstance(act, dict):
        return info | {key: with_pre_tanh(info[key], act[key]) for key in act}
    return tuple(with_pre_tanh(*both) for both in zip(info, act, strict=True))
