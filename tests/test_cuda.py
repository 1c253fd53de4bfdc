"""The law, ownership and the edges on a real GPU. The same engine code runs on the lagging device in test_hazards.py.

Under ``TORCH_CUDA_SANITIZER=1`` these are the tests to run.
"""

import gym
import pytest
import torch

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.rollout import same, threaded
from rlplay.engine.rollout.evaluate import evaluate

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

N_ENVS, N_STEPS, N_FRAGMENTS = 5, 11, 6
A_WHILE = 20_000_000  # cycles for which a kernel sleeps, to stretch the windows in which something may go wrong


class Actor(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.core = torch.nn.GRU(4, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, obs, *, hx=None, **ignored):
        out, hx = self.core(obs, hx)
        logits, value = self.head(out).split([2, 1], dim=-1)
        return sampling.categorical(logits, generator=self.generator), hx, {"logits": logits, "value": value[..., 0]}


def collected(engine, *, home="cuda", stream=None, sleep=False, **options):
    """Collect and learn on a stream of the learner's, without ever waiting for it."""
    torch.manual_seed(1)
    actor, kept = Actor().to(home), []
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    with (
        torch.cuda.stream(stream),
        engine.rollout(envs, actor, N_STEPS, seed=3, final=True, **options) as feed,
    ):
        for _ in range(N_FRAGMENTS):
            fragment = next(feed)
            if sleep:
                torch.cuda._sleep(A_WHILE)
            kept.append(nested.map(torch.clone, fragment))
            del fragment
            with torch.no_grad():
                for weight in actor.parameters():
                    weight.mul_(0.9)
        torch.cuda.synchronize()
    return kept


def assert_identical(some, others):
    for name, x, y in zip(nested.names(some), nested.leaves(some), nested.leaves(others), strict=True):
        assert torch.equal(x.cpu(), y.cpu()), name


@pytest.mark.parametrize("sleep", [False, True])
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_threaded_yields_the_fragments_of_same(lag, sleep):
    expected = collected(same, lag=lag, groups=2)
    assert all(leaf.is_cuda for leaf in nested.leaves(expected))
    assert_identical(expected, collected(threaded, lag=lag, groups=2, sleep=sleep))


def test_the_learner_may_be_on_a_stream_of_its_own():
    assert_identical(collected(same, lag=1), collected(threaded, lag=1, stream=torch.cuda.Stream(), sleep=True))


@pytest.mark.parametrize(("device", "actor_device"), [("cuda", "cpu"), ("cpu", "cuda"), ("cpu", "cpu")])
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_actor_and_consumer_may_be_on_different_devices(device, actor_device, home):
    options = {"lag": 1, "device": device, "actor_device": actor_device, "home": home}
    expected = collected(same, **options)
    assert {leaf.device.type for leaf in nested.leaves(expected)} == {device}
    assert_identical(expected, collected(threaded, sleep=True, **options))


def test_fragments_that_are_kept_do_not_change():
    torch.manual_seed(0)
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    with threaded.rollout(envs, Actor().cuda(), N_STEPS, seed=0, lag=2, final=True) as feed:
        kept = [next(feed) for _ in range(N_FRAGMENTS)]
        copies = nested.map(torch.clone, kept)
        for _ in range(N_FRAGMENTS):
            next(feed)
    assert_identical(kept, copies)


def test_neither_side_calls_anything_that_synchronises_in_hiding():
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    with threaded.rollout(envs, Actor().cuda(), N_STEPS, seed=0) as feed:
        next(feed)
        torch.cuda.set_sync_debug_mode("error")
        try:
            for _ in range(N_FRAGMENTS):
                next(feed)
        finally:
            torch.cuda.set_sync_debug_mode("default")


def test_device_memory_stays_flat():
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    used = []
    with threaded.rollout(envs, Actor().cuda(), N_STEPS, seed=0, lag=2, final=True) as feed:
        for _ in range(60):
            next(feed)
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_allocated())
    assert max(used[30:]) <= max(used[:30])


def test_evaluate_runs_on_the_gpu():
    rewards, info = evaluate([gym.make("CartPole-v1") for _ in range(3)], Actor().cuda(), n_steps=20)
    assert rewards.shape[1] == 3
    assert info["logits"].shape == (len(rewards) + 1, 3, 2)


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="CUDA devices"):
        same.rollout([gym.make("CartPole-v1")], Actor(), 5, device=f"cuda:{torch.cuda.device_count()}")
