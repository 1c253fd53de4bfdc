"""Heads of policies for any action space: from features to actions, and to the info that the losses need."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .. import sampling
from ..nested import Nested
from .actors import Modular

__all__ = ["AnyActorCritic", "Bits", "Choice", "Choices", "Head", "Nest", "Real", "head_for"]


class Head(nn.Module):
    """The base class of heads. Subclasses define :meth:`forward`."""

    def forward(self, features: Tensor, generator: torch.Generator | None) -> tuple[Nested, Nested]:
        """Return actions and info for features ``(n_seq, B, F)``.

        In train mode actions are drawn from ``generator``; in eval mode they are the likeliest ones. The info has the
        entries of :mod:`rlplay.algo.policy`.
        """
        raise NotImplementedError


class Choice(Head):
    """A Discrete action with ``n`` values: int64 ``(n_seq, B)``."""

    def __init__(self, n_features: int, n: int) -> None:
        super().__init__()
        self.logits = nn.Linear(n_features, n)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return actions and ``{"logits": (n_seq, B, n)}``."""
        logits = self.logits(features)
        return _choose(logits, generator, self.training), {"logits": logits}


class Choices(Head):
    """A MultiDiscrete action with components of ``nvec`` values: int64 ``(n_seq, B, len(nvec))``."""

    def __init__(self, n_features: int, nvec: Sequence[int]) -> None:
        super().__init__()
        self._sizes = [int(n) for n in nvec]
        self.logits = nn.Linear(n_features, sum(self._sizes))

    def forward(self, features: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Nested]]:
        """Return actions and ``{"logits": (tensor (n_seq, B, n), ...)}``."""
        logits = self.logits(features).split(self._sizes, dim=-1)
        act = torch.stack([_choose(x, generator, self.training) for x in logits], dim=-1)
        return act, {"logits": tuple(logits)}


class Bits(Head):
    """A MultiBinary action of ``n`` bits: int8 ``(n_seq, B, n)``."""

    def __init__(self, n_features: int, n: int) -> None:
        super().__init__()
        self.logits = nn.Linear(n_features, n)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return actions and ``{"logits": (n_seq, B, n)}``."""
        logits = self.logits(features)
        act = sampling.bernoulli(logits, generator=generator) if self.training else logits > 0
        return act.to(torch.int8), {"logits": logits}


class Real(Head):
    """A Box action of ``shape``, normally distributed with the same deviations in all states: float ``(*, shape)``."""

    def __init__(self, n_features: int, shape: Sequence[int]) -> None:
        super().__init__()
        self.mean = nn.Linear(n_features, math.prod(shape))
        self.log_std = nn.Parameter(torch.zeros(tuple(shape)))

    def forward(self, features: Tensor, generator: torch.Generator | None) -> tuple[Tensor, dict[str, Tensor]]:
        """Return actions and ``{"mean", "log_std"}``, of the shape of the actions."""
        mean = self.mean(features).view(*features.shape[:2], *self.log_std.shape)
        log_std = self.log_std.expand_as(mean)
        act = mean.detach()
        if self.training:
            noise = torch.randn(act.shape, dtype=act.dtype, device=act.device, generator=generator)
            act = act + log_std.detach().exp() * noise
        return act, {"mean": mean, "log_std": log_std}


class Nest(Head):
    """A Dict or Tuple action, of the heads of its parts: a dict or a tuple of actions and of infos."""

    def __init__(self, parts: Mapping[str, Head] | Sequence[Head]) -> None:
        super().__init__()
        self._keys = list(parts) if isinstance(parts, Mapping) else None
        self.parts = nn.ModuleList(parts.values() if isinstance(parts, Mapping) else parts)

    def forward(self, features: Tensor, generator: torch.Generator | None) -> tuple[Nested, Nested]:
        """Return the nest of actions and the nest of infos."""
        acts, infos = zip(*[part(features, generator) for part in self.parts], strict=True)
        if self._keys is None:
            return acts, infos
        return dict(zip(self._keys, acts, strict=True)), dict(zip(self._keys, infos, strict=True))


def head_for(space: Any, n_features: int) -> Head:
    """Make the head for an action space of gym or gymnasium.

    Parameters
    ----------
    space : gym.Space
        Discrete, MultiDiscrete, MultiBinary, a Box, or Dict and Tuple of these.
    n_features : int
        The number of features that the head gets.

    Raises
    ------
    ValueError
        The space is of another kind.
    """
    kind = type(space).__name__  # gym and gymnasium have the same names
    if kind == "Discrete":
        return Choice(n_features, int(space.n))
    if kind == "MultiDiscrete" and space.nvec.ndim == 1:
        return Choices(n_features, space.nvec)
    if kind == "MultiBinary" and len(space.shape) == 1:
        return Bits(n_features, space.shape[0])
    if kind == "Box" and space.dtype.kind == "f":
        return Real(n_features, space.shape)
    if kind == "Dict":
        return Nest({key: head_for(space[key], n_features) for key in space})
    if kind == "Tuple":
        return Nest([head_for(part, n_features) for part in space])
    raise ValueError(f"There is no head for the action space {space}: write one, as in rlplay/zoo/heads.py.")


class AnyActorCritic(Modular):
    """An actor-critic for any action space. Its info is ``{"policy": the head's info, "value": float (n_seq, B)}``.

    Parameters
    ----------
    policy : module
        From features ``(n_seq, B, F)`` to features for the head.
    head : Head
        Such as :func:`head_for` makes it.
    value : module
        From features to ``(n_seq, B, 1)``.
    body, core : module, optional
        As for :class:`~rlplay.zoo.actors.Modular`.
    """

    def __init__(
        self,
        policy: nn.Module,
        head: Head,
        value: nn.Module,
        *,
        body: nn.Module | None = None,
        core: nn.LSTM | nn.GRU | None = None,
    ) -> None:
        super().__init__(body, core)
        self.policy, self.head, self.value = policy, head, value

    def react(self, features: Tensor) -> tuple[Nested, dict[str, Nested]]:
        """Choose an action for each row, and return it with the policy and the value."""
        act, info = self.head(self.policy(features), self.generator)
        return act, {"policy": info, "value": self.value(features).squeeze(-1)}


def _choose(logits: Tensor, generator: torch.Generator | None, explore: bool) -> Tensor:
    return sampling.categorical(logits, generator=generator) if explore else logits.argmax(dim=-1)
