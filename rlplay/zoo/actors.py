"""Small actors made of a body, an optional recurrent core, and the heads of an actor-critic or a Q-network.

Their info has the entries that the losses of :mod:`rlplay.algo` need; the docstrings of :class:`ActorCritic`,
:class:`GaussianActorCritic` and :class:`QNetwork` list them. The parts are plain torch modules that the user passes in.
The user thereby chooses widths, shared or separate networks, and recurrence::

    ActorCritic(mlp(4, 64, 64, 2), mlp(4, 64, 64, 1))                                # two separate networks
    ActorCritic(nn.Linear(512, 6), nn.Linear(512, 1), body=NatureCNN(4))             # shared features
    ActorCritic(nn.Linear(32, 3), nn.Linear(32, 1), core=nn.LSTM(4, 32))             # recurrent
    QNetwork(Duelling(mlp(4, 64, 1), mlp(4, 64, 2)), epsilon=0.1)
    QNetwork(nn.Linear(64, 2), body=mlp(4, 64), core=nn.GRU(64, 64), epsilon=0.1)    # recurrent
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from .. import sampling
from ..engine import BaseActorModule
from ..nested import Nested

__all__ = ["ActorCritic", "Duelling", "GaussianActorCritic", "Modular", "NatureCNN", "QNetwork", "mlp", "orthogonal_"]


def mlp(*sizes: int, activation: Callable[[], nn.Module] = nn.Tanh) -> nn.Sequential:
    """Make a multilayer perceptron: linear layers of these sizes, with activations between them and none at the end."""
    layers: list[nn.Module] = []
    for n_in, n_out in pairwise(sizes):
        layers += [nn.Linear(n_in, n_out), activation()]
    return nn.Sequential(*layers[:-1])


def orthogonal_(module: nn.Module, gain: float) -> None:
    """Set the weights of all linear and convolutional layers to orthogonal matrices times ``gain``, and biases to zero.

    Saxe et al. (2014), "Exact solutions to the nonlinear dynamics of learning in deep linear neural networks". Layers
    of an actor-critic usually have gains of the square root of 2, the policy's last layer 0.01, the critic's last 1.
    """
    for layer in module.modules():
        if isinstance(layer, nn.Linear | nn.Conv2d):
            nn.init.orthogonal_(layer.weight, gain)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)


class NatureCNN(nn.Module):
    """The convolutional body of Mnih et al. (2015), "Human-level control through deep reinforcement learning".

    Takes uint8 images ``(n_seq, B, in_channels, 84, 84)`` (frames stacked as channels), scales them from 0..255 to
    0..1 on the images' device, and returns features ``(n_seq, B, 512)``.
    """

    def __init__(self, in_channels: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(
            nn.Conv2d(in_channels, 32, kernel_size=8, stride=4),
            nn.ReLU(),
            nn.Conv2d(32, 64, kernel_size=4, stride=2),
            nn.ReLU(),
            nn.Conv2d(64, 64, kernel_size=3, stride=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(64 * 7 * 7, 512),
            nn.ReLU(),
        )

    def forward(self, obs: Tensor) -> Tensor:
        """Compute features of images. Convolutions take one batch dimension, so rows and environments are merged."""
        features: Tensor = self.layers(obs.flatten(0, 1) / 255)
        return features.view(*obs.shape[:2], -1)


class Duelling(nn.Module):
    """Action values as the sum of a state value and advantages.

    ::

        q(s, a) = v(s) + adv(s, a) - mean over a' of adv(s, a')

    Parameters
    ----------
    value : module
        From features ``(..., F)`` to ``(..., 1)``.
    advantage : module
        From features ``(..., F)`` to ``(..., A)``.
    dim : int
        The dimension of the actions. With ``-2``, ``value`` may give ``(..., 1, n)`` and ``advantage`` ``(..., A, n)``,
        for the ``n`` atoms of :class:`rlplay.zoo.distributional.CategoricalQNetwork`.

    Notes
    -----
    Wang et al. (2016), "Dueling Network Architectures for Deep Reinforcement Learning", eq. 9.
    """

    def __init__(self, value: nn.Module, advantage: nn.Module, *, dim: int = -1) -> None:
        super().__init__()
        self.value, self.advantage, self.dim = value, advantage, dim

    def forward(self, features: Tensor) -> Tensor:
        """Compute action values ``(..., A)`` from features ``(..., F)``."""
        advantage: Tensor = self.advantage(features)
        q: Tensor = self.value(features) + advantage - advantage.mean(dim=self.dim, keepdim=True)
        return q


class Modular(BaseActorModule):
    """The base class of these actors: a body and an optional core. Subclasses add heads and define :meth:`react`.

    Parameters
    ----------
    body : module, optional
        From observations ``(n_seq, B, ...)`` to features ``(n_seq, B, F)``; by default the identity.
    core : torch.nn.LSTM or torch.nn.GRU, optional
        From features ``(n_seq, B, F)`` and a recurrent state ``(L, B, H)`` to features ``(n_seq, B, H)`` and the next
        recurrent state. Time-major (``batch_first=False``) and unidirectional, which are torch's defaults.
    """

    def __init__(self, body: nn.Module | None = None, core: nn.LSTM | nn.GRU | None = None) -> None:
        super().__init__()
        self.body, self.core = nn.Identity() if body is None else body, core

    def forward(self, obs: Nested, *, hx: Nested = None, **ignored: Any) -> tuple[Tensor, Nested, dict[str, Tensor]]:
        """Return actions, recurrent state and info for rows ``(n_seq, B, ...)`` without a reset between them."""
        features = self.body(obs)
        if self.core is not None:
            features, hx = self.core(features, hx)
        act, info = self.react(features)
        return act, hx, info

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Compute actions and info from features ``(n_seq, B, F)``."""
        raise NotImplementedError


class ActorCritic(Modular):
    """An actor-critic for a Discrete space. It samples actions in train mode, and takes the likeliest in eval mode.

    Its action is int64 ``(n_seq, B)``, its info ``{"logits": float (n_seq, B, A), "value": float (n_seq, B)}``.

    Parameters
    ----------
    policy : module
        From features ``(n_seq, B, F)`` to unnormalised log-probabilities ``(n_seq, B, A)``.
    value : module
        From features to ``(n_seq, B, 1)``.
    body, core : module, optional
        As for :class:`Modular`.
    """

    def __init__(
        self,
        policy: nn.Module,
        value: nn.Module,
        *,
        body: nn.Module | None = None,
        core: nn.LSTM | nn.GRU | None = None,
    ) -> None:
        super().__init__(body, core)
        self.policy, self.value = policy, value

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose an action for each row, and return it with logits and value."""
        logits = self.policy(features)
        act = sampling.categorical(logits, generator=self.generator) if self.training else logits.argmax(dim=-1)
        return act, {"logits": logits, "value": self.value(features).squeeze(-1)}


class GaussianActorCritic(Modular):
    """An actor-critic for a Box of ``D`` numbers, with a normal distribution. In eval mode the action is the mean.

    Its action is float32 ``(n_seq, B, D)``. Its info is
    ``{"mean": float (n_seq, B, D), "log_std": float (n_seq, B, D), "value": float (n_seq, B)}``.

    The action may lie outside the bounds of the space. It is recorded, and handed to the environment, as it was drawn:
    many environments clip it themselves, and for others there is ``gymnasium.wrappers.ClipAction``. The losses need the
    action that was drawn, since its probability is that of the normal distribution.

    Parameters
    ----------
    policy : module
        From features ``(n_seq, B, F)`` to the mean ``(n_seq, B, D)``.
    value : module
        From features to ``(n_seq, B, 1)``.
    n_dims : int
        ``D``.
    body, core : module, optional
        As for :class:`Modular`.

    Attributes
    ----------
    log_std : parameter, ``(D,)``
        The logarithm of the standard deviation, the same in all states; 0 at first.
    """

    def __init__(
        self,
        policy: nn.Module,
        value: nn.Module,
        n_dims: int,
        *,
        body: nn.Module | None = None,
        core: nn.LSTM | nn.GRU | None = None,
    ) -> None:
        super().__init__(body, core)
        self.policy, self.value = policy, value
        self.log_std = nn.Parameter(torch.zeros(n_dims))

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose an action for each row, and return it with mean, log_std and value."""
        mean = self.policy(features)
        log_std = self.log_std.expand_as(mean)
        act = mean.detach().float()
        if self.training:
            noise = torch.randn(act.shape, device=act.device, generator=self.generator)
            act = act + log_std.detach().float().exp() * noise  # `torch.normal` would wait for the device
        return act, {"mean": mean, "log_std": log_std, "value": self.value(features).squeeze(-1)}


class QNetwork(Modular):
    """Action values with an epsilon-greedy policy. In eval mode the policy is greedy.

    Its action is int64 ``(n_seq, B)``, its info ``{"q": float (n_seq, B, A)}``.

    Parameters
    ----------
    q : module
        From features ``(n_seq, B, F)`` to action values ``(n_seq, B, A)``, such as a :class:`Duelling`.
    epsilon : float in [0, 1]
        The probability of a uniformly drawn action.
    body, core : module, optional
        As for :class:`Modular`.

    Attributes
    ----------
    epsilon : buffer, no dimensions
        Change it by ``actor.epsilon.fill_(...)``. As a buffer it is copied to the behaviour copy with the weights.
    """

    epsilon: Tensor

    def __init__(
        self,
        q: nn.Module,
        *,
        epsilon: float,
        body: nn.Module | None = None,
        core: nn.LSTM | nn.GRU | None = None,
    ) -> None:
        super().__init__(body, core)
        self.q = q
        self.register_buffer("epsilon", torch.tensor(float(epsilon)))

    def react(self, features: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
        """Choose the best or a random action for each row, and return it with the action values."""
        q = self.q(features)
        greedy = not self.training
        act = q.argmax(dim=-1) if greedy else sampling.epsilon_greedy(q, self.epsilon, generator=self.generator)
        return act, {"q": q}
