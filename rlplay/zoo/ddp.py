"""Several learners: A2C with DistributedDataParallel, one process a rank, each with a shard of the environments.

Run ``torchrun --nproc-per-node 2 -m rlplay.zoo.ddp --env CartPole-v1 --seed 0``.
Two processes of four environments make the updates of one with eight (``--n-envs 8 --groups 2``), up to the order of
a sum.
"""

from __future__ import annotations

import argparse
import os

import torch
import torch._dynamo  # imported later, it would keep the process group, whose threads may abort the process at its end
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel

from rlplay.algo import a2c
from rlplay.engine.rollout import threaded

from .actors import ActorCritic, mlp
from .pages import make

__all__ = ["device_of_this_process", "train"]


def train(env: str, seed: int, steps: int, n_envs: int, groups: int = 1) -> ActorCritic:
    """Train in this process, one of those that ``torchrun`` has started; return the actor.

    Parameters
    ----------
    env : str
        The name of an environment with a flat Box of observations and a Discrete space of actions.
    seed : int
        The same one in all processes.
    steps : int
        Environment steps of each process.
    n_envs : int
        The number of environments of each process.
    groups : int
        The number of groups that the actor reacts to one after the other. Two processes with one group each are the
        parts of one process with two.
    """
    device = device_of_this_process()
    torch.manual_seed(seed)  # the same weights at first in all processes
    envs = make(env, n_envs)
    n_obs, n_act = envs[0].observation_space.shape[0], envs[0].action_space.n
    actor = ActorCritic(mlp(n_obs, 64, 64, n_act), mlp(n_obs, 64, 64, 1)).to(device)
    learner = DistributedDataParallel(actor)  # the loss calls it, so that gradients are averaged over all processes
    optim = torch.optim.Adam(actor.parameters(), lr=2e-3)
    shard = dist.get_rank(), dist.get_world_size()
    with threaded.rollout(envs, actor, n_steps=16, seed=seed, groups=groups, shard=shard) as feed:
        for fragment in feed:
            loss, _ = a2c.loss(fragment, learner, gamma=0.99, C=0.95)
            optim.zero_grad()
            loss.backward()
            optim.step()
            if feed.steps >= steps:
                break
    return actor


def device_of_this_process() -> torch.device:
    """Return a GPU of this process's own, if this machine has one for each of its processes; else the CPU."""
    rank, n = int(os.environ["LOCAL_RANK"]), int(os.environ["LOCAL_WORLD_SIZE"])  # those on this machine; of torchrun
    kind = torch.accelerator.current_accelerator(check_available=True)
    on_gpu = kind is not None and kind.type == "cuda" and torch.accelerator.device_count() >= n
    return torch.device("cuda", rank) if on_gpu else torch.device("cpu")


def main() -> None:
    """Read the options, train, and let rank 0 print a checksum of the weights."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--env", default="CartPole-v1", help="the environment's name; default: %(default)s")
    parser.add_argument("--seed", type=int, default=0, help="default: %(default)s")
    parser.add_argument("--steps", type=int, default=20_000, help="environment steps a process; default: %(default)s")
    parser.add_argument("--n-envs", type=int, default=4, help="environments a process; default: %(default)s")
    parser.add_argument("--groups", type=int, default=1, help="groups a process; default: %(default)s")
    parser.add_argument("--out", help="a file for the weights")
    options = parser.parse_args()
    torch.set_num_threads(1)
    dist.init_process_group("nccl" if device_of_this_process().type == "cuda" else "gloo")
    try:
        actor = train(options.env, options.seed, options.steps, options.n_envs, options.groups)
        if dist.get_rank() == 0:
            print(f"trained; the sum of all weights is {sum(x.sum().item() for x in actor.parameters()):.6f}")
            if options.out:
                torch.save(actor.state_dict(), options.out)
    finally:
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
