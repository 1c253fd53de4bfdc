"""Losses take actors in torch's wrappers, and go through them: gradients are synchronised, compiled graphs are used."""

from __future__ import annotations

import subprocess
import sys

import gymnasium
import pytest
import torch
from torch import nn

from rlplay import nested
from rlplay.algo import a2c, dqn, ppo, unroll, vtrace
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same
from rlplay.zoo import ddp
from rlplay.zoo.actors import ActorCritic, QNetwork, mlp
from tests.support.torchrun import run_by_torchrun


class Steps(BaseActorModule):
    """Overrides `step` alone."""

    def __init__(self):
        super().__init__()
        self.policy, self.value = mlp(4, 8, 2), mlp(4, 8, 1)

    def step(self, stepno, obs, act, rew, fin, /, *, hx, virtual):
        logits = self.policy(obs).log_softmax(-1)
        return logits.argmax(-1), (), {"logits": logits, "value": self.value(obs)[..., 0]}


class Both(Steps):
    def forward(self, obs):
        return self.policy(obs)


class Recurrent(ActorCritic):
    def __init__(self):
        super().__init__(nn.Linear(8, 2), nn.Linear(8, 1), core=nn.GRU(4, 8))


ACTORS = {"forward": lambda: ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1)), "step": Steps, "recurrent": Recurrent}


class Wrapper(nn.Module):
    """As DistributedDataParallel: it knows only the `forward` of the module inside."""

    def __init__(self, module):
        super().__init__()
        self.module, self.n_calls = module, 0

    def forward(self, *args, **kwargs):
        self.n_calls += 1
        return self.module(*args, **kwargs)


def collect(actor):
    envs = [gymnasium.make("CartPole-v1", max_episode_steps=5) for _ in range(3)]
    with same.rollout(envs, actor, 12, seed=0, final=True) as feed:
        return next(feed)


@pytest.mark.parametrize("make", ACTORS.values(), ids=ACTORS)
@pytest.mark.parametrize("loss", [a2c.loss, vtrace.loss])
def test_a_loss_of_a_wrapped_actor_is_that_of_the_actor_and_calls_the_wrapper(make, loss):
    torch.manual_seed(0)
    actor = make()
    fragment, wrapper = collect(actor), Wrapper(Wrapper(actor))
    expected, _ = loss(fragment, actor, gamma=0.9)
    found, _ = loss(fragment, wrapper, gamma=0.9)
    assert torch.equal(expected, found)
    assert wrapper.n_calls == wrapper.module.n_calls > 0


def test_ppo_and_dqn_take_wrapped_actors():
    torch.manual_seed(0)
    actor = ACTORS["forward"]()
    fragment, wrapper = collect(actor), Wrapper(actor)
    pairs = [
        ppo.losses(fragment, x, gamma=0.9, n_epochs=1, n_minibatches=1, generator=torch.Generator().manual_seed(0))
        for x in (actor, wrapper)
    ]
    for (expected, _), (found, _) in zip(*pairs, strict=True):
        assert torch.equal(expected, found)
    q = QNetwork(mlp(4, 8, 2), epsilon=0.5)
    fragment = collect(q)
    losses = [dqn.loss(fragment, x, target=y, gamma=0.9)[0] for x, y in ((q, q), (Wrapper(q), Wrapper(q)))]
    assert torch.equal(*losses)


@pytest.mark.parametrize("make", [ACTORS["forward"], Steps], ids=["forward", "step"])
def test_the_graph_of_a_compiled_actor_is_used(make):
    torch.manual_seed(0)
    actor, n_calls = make(), [0]

    def backend(graph, example_inputs):
        def counted(*args):
            n_calls[0] += 1
            return graph(*args)

        return counted

    fragment = collect(actor)
    compiled = torch.compile(actor, backend=backend)
    expected, _ = a2c.loss(fragment, actor, gamma=0.9)
    found, _ = a2c.loss(fragment, compiled, gamma=0.9)
    assert torch.allclose(expected, found)
    assert n_calls[0] > 0
    found.backward()
    assert all(weight.grad is not None for weight in actor.parameters())


def test_what_cannot_go_through_a_wrapper_is_refused():
    actor = Both()
    fragment = collect(actor)
    with pytest.raises(TypeError, match=r"Both has a `step` and a `forward` of its own, but Wrapper calls only"):
        unroll(fragment, Wrapper(actor))
    with pytest.raises(TypeError, match=r"or one in a wrapper of torch .* got Wrapper"):
        unroll(fragment, Wrapper(nn.Linear(2, 2)))
    with pytest.raises(TypeError, match=r"pass the module inside \(`\._orig_mod`\)"):
        same.rollout([gymnasium.make("CartPole-v1")], torch.compile(ACTORS["forward"](), backend="eager"))


def test_an_actor_with_neither_forward_nor_step_is_told_so():
    class Nothing(BaseActorModule):
        pass

    with pytest.raises(NotImplementedError, match="has neither a `forward` nor a `step` of its own"):
        same.rollout([gymnasium.make("CartPole-v1")], Nothing())


FRAGMENTS = """
import torch
from rlplay.engine import Final, Fragment, State
from rlplay.engine.core import Outcome


def fragment_of(end, recurrent):
    none = torch.zeros(5, 2, dtype=torch.bool)
    truncated, fin = none.clone(), torch.zeros(6, 2, dtype=torch.bool)
    truncated[2, 0] = fin[3, 0] = end
    at = truncated.nonzero()
    final = Final(at[:, 0], at[:, 1], torch.randn(len(at), 2), ())
    state = State(torch.ones(6, 2).long(), torch.randn(6, 2, 2), torch.ones(6, 2).long(), torch.randn(6, 2), fin)
    return Fragment(state, (), Outcome(none, truncated, ~none, {}, final), torch.zeros(1, 2, 2) if recurrent else ())
"""

LEARNER = """
import datetime
import torch
import torch._dynamo  # as in rlplay.zoo.ddp
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel
from rlplay.algo import RunningNorm, a2c
from rlplay.zoo.actors import ActorCritic

torch.set_num_threads(1)
dist.init_process_group("gloo", timeout=datetime.timedelta(seconds=45))
for core in (None, nn.GRU(2, 2)):
    torch.manual_seed(0)
    actor = ActorCritic(nn.Linear(2, 3), nn.Linear(2, 1), body=RunningNorm((2,)), core=core)
    learner = DistributedDataParallel(actor)
    for k in range(3):
        end = k % 2 == dist.get_rank()  # only one of the two processes sees an episode end
        fragment = fragment_of(end, recurrent=core is not None)
        actor.zero_grad()
        a2c.loss(fragment, learner, gamma=0.9)[0].backward()
        grads = torch.cat([x.grad.flatten() for x in actor.parameters()])
        assert learner.broadcast_buffers
        actor.body.update(fragment.state.obs[:-1])
        total = grads.clone()
        dist.all_reduce(total)
        assert torch.allclose(total / 2, grads, atol=1e-6)
dist.barrier()  # gloo may abort a process that the other one leaves while it is still connected
del learner
dist.destroy_process_group()
"""


@pytest.mark.parametrize(("n_processes", "device"), [(2, "cuda:1"), (4, "cpu")])
def test_devices_are_counted_on_each_machine_and_the_backend_follows(monkeypatch, n_processes, device):
    """The third or fifth of all processes is the second one of its machine, which has two GPUs."""
    environment = {"RANK": n_processes + 1, "WORLD_SIZE": 2 * n_processes}
    environment |= {"LOCAL_RANK": 1, "LOCAL_WORLD_SIZE": n_processes}
    for name, value in environment.items():
        monkeypatch.setenv(name, str(value))
    monkeypatch.setattr(torch.accelerator, "current_accelerator", lambda check_available: torch.device("cuda"))
    monkeypatch.setattr(torch.accelerator, "device_count", lambda: 2)
    monkeypatch.setattr(sys, "argv", ["ddp"])
    found = []

    def refuse(backend):
        found.append(backend)
        raise RuntimeError

    monkeypatch.setattr(torch.distributed, "init_process_group", refuse)
    assert ddp.device_of_this_process() == torch.device(device)
    with pytest.raises(RuntimeError):
        ddp.main()
    assert found == ["nccl" if device == "cuda:1" else "gloo"]


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_two_learners_may_see_different_numbers_of_episodes_end(tmp_path):
    """The actor has buffers, which DistributedDataParallel sends with each call."""
    run_by_torchrun(FRAGMENTS + LEARNER, tmp_path / "learner.py", n_processes=2)


@pytest.mark.timeout(600)
def test_two_learners_train_to_the_weights_of_one_with_twice_the_environments(tmp_path):
    """The page runs under `torchrun`; gradients are averaged by gloo, so sums are in another order."""

    def train(n_processes, n_envs, groups):
        out = tmp_path / f"{n_processes}.pt"
        options = ["--steps", n_envs * 16 * 12, "--n-envs", n_envs, "--groups", groups, "--out", out]
        page = "import runpy; runpy.run_module('rlplay.zoo.ddp', run_name='__main__')"
        run_by_torchrun(page, tmp_path / "ddp.py", *options, n_processes=n_processes)
        return torch.load(out)

    two, one = train(2, 2, 1), train(1, 4, 2)
    for x, y in zip(nested.leaves(two), nested.leaves(one), strict=True):
        torch.testing.assert_close(x, y, rtol=2e-3, atol=2e-4)


SHARDED = """
import tempfile

import gymnasium as gym
import torch
import torch.distributed as dist
from torch.distributed.fsdp import FullyShardedDataParallel, fully_shard

from rlplay.engine.rollout import multi, same, threaded
from rlplay.zoo.actors import ActorCritic, mlp

dist.init_process_group("gloo", init_method=f"file://{tempfile.mktemp()}", rank=0, world_size=1)
mesh = dist.init_device_mesh("cpu", (1,))


def actor_with(shard):
    actor = ActorCritic(mlp(4, 8, 2), mlp(4, 8, 1))
    return shard(actor) or actor


def shard_part(actor):
    actor.policy = FullyShardedDataParallel(actor.policy, device_id=torch.device("cpu"))


def distribute(actor):
    weight = dist.tensor.distribute_tensor(actor.policy[0].weight, mesh)
    actor.policy[0].weight = torch.nn.Parameter(weight)


def wrap(actor, **how):
    return FullyShardedDataParallel(actor, device_id=torch.device("cpu"), **how)


def make_env():
    return gym.make("CartPole-v1")


for shard in (
    wrap,
    lambda actor: wrap(actor).module,
    lambda actor: wrap(actor, use_orig_params=True).module,
    shard_part,
    lambda actor: fully_shard(actor, mesh=mesh),
    lambda actor: fully_shard(actor.policy, mesh=mesh) and None,
    distribute,
):
    actor = actor_with(shard)
    for call in (
        lambda: same.rollout([make_env], actor, 3),
        lambda: threaded.rollout([make_env], actor, 3),
        lambda: multi.rollout(make_env, actor, 3, 1, 1),
    ):
        try:
            call()
            print("accepted")
        except TypeError as error:
            print(error)
dist.destroy_process_group()
"""


def test_sharded_parameters_are_refused_at_the_call(tmp_path):
    done = subprocess.run([sys.executable, "-W", "ignore", "-c", SHARDED], capture_output=True, text=True, timeout=250)
    assert done.returncode == 0, done.stderr[-3000:]
    said = done.stdout.splitlines()
    assert len(said) == 21
    for line in said:
        assert "sharded" in line
        assert "FSDP" in line
        assert "DistributedDataParallel" in line
