"""Losses beside those of TorchRL: the same weights, the same batch, the same noise, the largest difference.

SAC, TD3, DDPG and categorical Q-learning. TorchRL is no requirement of rlplay. In a virtual environment of its own::

    python -m venv /tmp/torchrl
    /tmp/torchrl/bin/pip install torch==2.13.0
    /tmp/torchrl/bin/pip install torchrl gymnasium gym optree cloudpickle tqdm
    /tmp/torchrl/bin/python -m tests.bench.torchrl_losses

It prints one line for each loss, and one for the gradient of each network, and exits with 1 if a difference is larger
than 1e-5 (relative, or absolute below 1). A line of a gradient has the norms of both, and the norm of their difference
in place of the difference of the norms. Their losses of critics are sums of squares, ours of half the squares.
"""

from __future__ import annotations

import copy
import sys
import warnings
from typing import Any

import torch
from tensordict import TensorDict
from tensordict.nn import ProbabilisticTensorDictModule, ProbabilisticTensorDictSequential, TensorDictModule
from torch import Tensor, nn
from torchrl.modules import DistributionalQValueActor, TanhNormal, ValueOperator
from torchrl.objectives import DDPGLoss, DistributionalDQNLoss, SACLoss, TD3Loss

from rlplay.algo import c51, sac, td3
from rlplay.replay import Batch
from rlplay.zoo.actors import mlp
from rlplay.zoo.continuous import Critics, Deterministic, SquashedGaussian
from rlplay.zoo.distributional import CategoricalQNetwork

from .neighbours import GAMMA, N, compare, failures, replayed

N_OBS, N_ACT = 3, 2
LOW, HIGH = [-1.0] * N_ACT, [1.0] * N_ACT


def their_data(batch: Batch, done: Tensor) -> TensorDict:
    """Convert a batch to TorchRL's form."""
    column = {"reward": batch.rew[0][:, None], "done": done[:, None], "terminated": done[:, None]}
    following = column | {"obs": batch.next.obs[0]}
    return TensorDict({"obs": batch.state.obs[0], "action": batch.act[0], "next": following}, N)


class Joined(nn.Module):
    """A critic of ours, called with observation and action."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, obs: Tensor, act: Tensor) -> Tensor:
        return self.net(torch.cat([obs, act], dim=-1))


class Hard(Joined):
    """The policy of TD3."""

    def forward(self, obs: Tensor) -> Tensor:
        return self.net(obs).tanh()


class Moments(Joined):
    """The policy of SAC: the mean and the standard deviation before the tanh."""

    def forward(self, obs: Tensor) -> tuple[Tensor, Tensor]:
        mean, log_std = self.net(obs).chunk(2, dim=-1)
        return mean, log_std.clamp(-20, 2).exp()


def by_name(params: Any) -> dict[str, Tensor]:
    """Return their parameters by the names of ours; those of several critics are stacked."""
    return {name.removeprefix("module.net."): x for name, x in params.flatten_keys(".").items()}


def load(params: Any, nets: list[nn.Module]) -> None:
    """Copy the weights of our networks into theirs."""
    ours = [dict(net.named_parameters()) for net in nets]
    for name, theirs in by_name(params).items():
        theirs.data.copy_(torch.stack([one[name] for one in ours]).view_as(theirs))


def compare_losses(name: str, ours: Tensor, theirs: Tensor, nets: list[nn.Module], params: Any, *, by: int = 1) -> None:
    """Compare ``by`` times our loss with theirs, and the gradients."""
    compare(name, by * ours, theirs)
    expected = by_name(params)
    ours_of = [dict(net.named_parameters()) for net in nets]
    flat = [one[key] for key in expected for one in ours_of]
    mine = torch.cat([x.flatten() for x in torch.autograd.grad(by * ours, flat)])
    found = torch.cat([x.flatten() for x in torch.autograd.grad(theirs, list(expected.values()))])
    compare(f"{name}, norm of the gradient", mine.norm(), found.norm())
    compare(f"{name}, largest difference of gradients", (mine - found).abs().max(), 0.0)


def perturbed(module: nn.Module) -> Any:
    """Return a copy with other weights, as a target network has them."""
    copied = copy.deepcopy(module)
    with torch.no_grad():
        for weight in copied.parameters():
            weight += 0.1 * torch.randn_like(weight)
    return copied


def beside_sac() -> None:
    """Compare all losses of SAC."""
    batch, done = replayed(torch.rand(1, N, N_ACT) * 2 - 1)
    actor, critic = SquashedGaussian(mlp(N_OBS, 64, 2 * N_ACT), LOW, HIGH), Critics(N_OBS + N_ACT, 64)
    target, log_alpha = perturbed(critic), nn.Parameter(torch.tensor(0.3).log())

    bounds = {"low": -1.0, "high": 1.0, "tanh_loc": False}
    policy = ProbabilisticTensorDictSequential(
        TensorDictModule(Moments(copy.deepcopy(actor.policy)), in_keys=["obs"], out_keys=["loc", "scale"]),
        ProbabilisticTensorDictModule(
            in_keys=["loc", "scale"], out_keys=["action"], distribution_class=TanhNormal, distribution_kwargs=bounds
        ),
    )
    values = [ValueOperator(Joined(copy.deepcopy(x)), in_keys=["obs", "action"]) for x in critic.each]
    loss_of = SACLoss(policy, values, loss_function="l2", alpha_init=0.3, target_entropy=-float(N_ACT))
    loss_of.make_value_estimator(gamma=GAMMA)
    load(loss_of.target_qvalue_network_params, list(target.each))
    torch.manual_seed(1)
    theirs = loss_of(their_data(batch, done))

    torch.manual_seed(1)
    loss, _ = sac.critic_loss(batch, actor, critic, target=target, log_alpha=log_alpha)
    critics, params = list(critic.each), loss_of.qvalue_network_params
    compare_losses("TorchRL SAC critics", loss, theirs["loss_qvalue"], critics, params, by=2)
    loss, info = sac.actor_loss(batch, actor, critic, log_alpha=log_alpha)
    params = loss_of.actor_network_params.get("module").get("0")
    compare_losses("TorchRL SAC actor", loss, theirs["loss_actor"], [actor.policy], params)
    temperature = sac.temperature_loss(info["log_p"], log_alpha, target_entropy=-N_ACT)
    compare("TorchRL SAC temperature", temperature, theirs["loss_alpha"])


def beside_td3() -> None:
    """Compare the losses of TD3, and of DDPG, which has one critic and no noise."""
    for name, n_critics in (("TD3", 2), ("DDPG", 1)):
        batch, done = replayed(torch.rand(1, N, N_ACT) * 2 - 1)
        actor, critic = Deterministic(mlp(N_OBS, 64, N_ACT), LOW, HIGH), Critics(N_OBS + N_ACT, 64, n=n_critics)
        target_actor, target = perturbed(actor).eval(), perturbed(critic)  # draws no noise of its own

        policy = TensorDictModule(Hard(copy.deepcopy(actor.policy)), in_keys=["obs"], out_keys=["action"])
        values = [ValueOperator(Joined(copy.deepcopy(x)), in_keys=["obs", "action"]) for x in critic.each]
        if name == "TD3":
            loss_of: Any = TD3Loss(policy, values, bounds=(-1.0, 1.0), loss_function="l2")
            key, kind = "loss_qvalue", "qvalue"
        else:
            loss_of = DDPGLoss(policy, values[0], loss_function="l2", delay_actor=True, delay_value=True)
            key, kind = "loss_value", "value"
        loss_of.make_value_estimator(gamma=GAMMA)
        load(loss_of.target_actor_network_params, [target_actor.policy])
        load(getattr(loss_of, f"target_{kind}_network_params"), list(target.each))
        torch.manual_seed(1)
        theirs = loss_of(their_data(batch, done))

        torch.manual_seed(1)
        nets: dict[str, Any] = {"target": target, "low": -1.0, "high": 1.0, "noise": 0.2 if name == "TD3" else 0.0}
        loss, _ = td3.critic_loss(batch, target_actor, critic, **nets)
        params = getattr(loss_of, f"{kind}_network_params")
        compare_losses(f"TorchRL {name} critics", loss, theirs[key], list(critic.each), params, by=2)
        loss, _ = td3.actor_loss(batch, actor, critic)
        params = loss_of.actor_network_params
        compare_losses(f"TorchRL {name} actor", loss, theirs["loss_actor"], [actor.policy], params)


def beside_c51() -> None:
    """Compare categorical Q-learning. Their loss is a cross-entropy, ours a divergence: the gradients are compared."""
    n_atoms, n_act = 21, 3
    atoms = torch.linspace(-3, 3, n_atoms)
    net = nn.Sequential(nn.Linear(3, 16), nn.Tanh(), nn.Linear(16, n_atoms * n_act), nn.Unflatten(-1, (n_atoms, n_act)))
    slow = copy.deepcopy(net)
    batch, done = replayed(torch.randint(n_act, (1, N)))
    value = DistributionalQValueActor(net, spec=None, support=atoms, action_space="categorical", in_keys=["obs"])
    loss_of = DistributionalDQNLoss(value, gamma=GAMMA, delay_value=True)

    def by_shape(tensors: Any) -> dict[tuple[int, ...], torch.Tensor]:
        return {tuple(x.shape): x for x in tensors}  # no two parameters have the same

    theirs = by_shape(loss_of.target_value_network_params.values(True, True))
    with torch.no_grad():
        for weight in slow.parameters():
            weight += 0.3 * torch.randn_like(weight)
            theirs[tuple(weight.shape)].copy_(weight)
    loss_of(their_data(batch, done))["loss"].backward()
    expected = by_shape(x.grad for x in loss_of.parameters() if x.grad is not None)

    actor, target = (CategoricalQNetwork(nn.Sequential(x, _Swap()), atoms, epsilon=0.0) for x in (net, slow))
    loss, _ = c51.replayed(batch, actor, atoms=atoms, target=target, double=True)
    for shape, found in by_shape(torch.autograd.grad(loss, list(net.parameters()))).items():
        compare(f"TorchRL C51 gradient {shape}, norm", found.norm(), expected[shape].norm())
        compare(f"TorchRL C51 gradient {shape}, difference", (found - expected[shape]).abs().max(), 0.0)


class _Swap(nn.Module):
    """Puts atoms behind actions."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.transpose(-1, -2)


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    torch.set_num_threads(1)
    torch.manual_seed(0)
    for part in (beside_sac, beside_td3, beside_c51):
        part()
    print("larger than 1e-5:", failures or "none")
    sys.exit(bool(failures))
