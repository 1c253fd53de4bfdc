"""The law, ownership of memory, the edges and captured steps on a GPU.

On the lagging device the same code of the engine is tested in test_hazards.py and test_captured.py. These are the tests
to run under ``TORCH_CUDA_SANITIZER=1``, which looks at the operations of the main thread alone: at those of the
collector in ``same``, but not in ``threaded``.
"""

import threading
import warnings
from contextlib import contextmanager

import gym
import pytest
import torch

from rlplay import nested, sampling
from rlplay.engine import BaseActorModule
from rlplay.engine.memory.cuda import CudaLane
from rlplay.engine.rollout import same, single, threaded
from rlplay.engine.rollout.evaluate import evaluate
from rlplay.zoo.actors import ActorCritic, GaussianActorCritic, NatureCNN, QNetwork, mlp
from tests.support.assertions import assert_identical_on_any_device
from tests.support.collecting import REAL_GRAPHS, VIRTUAL_GRAPHS
from tests.support.cuda import fragments_beside_a_learner

pytestmark = [
    pytest.mark.cuda,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]

N_ENVS, N_STEPS, N_FRAGMENTS = 5, 11, 6


@contextmanager
def implicit_synchronization_refused():
    """Make each operation that waits for the device in hiding an error, inside the `with` block."""
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*prototype feature.*")  # torch's own, about this mode
        try:
            torch.cuda.set_sync_debug_mode("error")
            yield
        finally:
            torch.cuda.set_sync_debug_mode("default")


def does_not_grow(used):
    """Return whether less than half a block of memory is kept for each fragment.

    The number of finals varies, so the lows of some fragments are compared with those of others, 30 fragments later.
    """
    earlier, later = min(used[10:30]), min(used[40:60])
    return later - earlier < 30 * 512 / 2


class GruActor(BaseActorModule):
    def __init__(self):
        super().__init__()
        self.core = torch.nn.GRU(4, 8)
        self.head = torch.nn.Linear(8, 3)

    def forward(self, obs, *, hx=None, **ignored):
        out, hx = self.core(obs, hx)
        logits, value = self.head(out).split([2, 1], dim=-1)
        return sampling.categorical(logits, generator=self.generator), hx, {"logits": logits, "value": value[..., 0]}


def collected(engine, *, home="cuda", stream=None, sleep=False, make_actor=GruActor, env="CartPole-v1", **options):
    """Collect and learn on a stream of the learner's, without ever waiting for it."""
    torch.manual_seed(1)
    actor = make_actor().to(home)
    envs = [gym.make(env) for _ in range(N_ENVS)]
    with (
        torch.cuda.stream(stream),
        engine.rollout(envs, actor, N_STEPS, seed=3, final=True, **options) as feed,
    ):
        kept = fragments_beside_a_learner(feed, actor, N_FRAGMENTS, sleep=sleep)
        torch.cuda.synchronize()
    return kept


@pytest.mark.parametrize("sleep", [False, True])
@pytest.mark.parametrize("lag", [0, 1, 2])
def test_threaded_yields_the_fragments_of_same_on_a_gpu(lag, sleep):
    expected = collected(same, lag=lag, groups=2)
    assert all(leaf.is_cuda for leaf in nested.leaves(expected))
    assert_identical_on_any_device(expected, collected(threaded, lag=lag, groups=2, sleep=sleep))


def feed_forward():
    """An actor whose steps hand nothing on to each other, with products that cuBLAS needs a workspace for."""
    return ActorCritic(mlp(4, 512, 512, 2), mlp(4, 512, 512, 1))


@pytest.mark.parametrize("compile", [False, True])
def test_groups_on_streams_of_their_own_yield_the_fragments_of_one_stream(compile, monkeypatch):
    """Captured steps are replayed side by side: with three groups one is launched before the other two are done."""
    options = {"make_actor": feed_forward, "lag": 1, "groups": 3, "compile": compile}
    with monkeypatch.context() as patch:
        patch.setattr(CudaLane, "use_turn", lambda self, turn: None)
        expected = collected(same, **options)
    for _ in range(3):
        assert_identical_on_any_device(expected, collected(threaded, sleep=True, **options))


def test_a_list_of_vector_environments_yields_the_fragments_of_same_on_a_gpu():
    vector = pytest.importorskip("ale_py.vector_env")

    def fragments(engine, **options):
        torch.manual_seed(0)
        actor = ActorCritic(torch.nn.Linear(512, 4), torch.nn.Linear(512, 1), body=NatureCNN(4)).cuda()
        envs = [vector.AtariVectorEnv("breakout", 4) for _ in range(2)]
        with engine.rollout(envs, actor, N_STEPS, seed=3, **options) as feed:
            return [nested.map(torch.clone, next(feed)) for _ in range(4)]

    assert_identical_on_any_device(fragments(same), fragments(threaded, compile=True))


@pytest.mark.parametrize("groups", [1, 2])
def test_a_captured_step_of_a_group_takes_one_copy_each_way_one_wait_and_one_launch(groups):
    counted = []
    for n_steps in (8, 24):
        envs = [gym.make("CartPole-v1") for _ in range(4 * groups)]
        with same.rollout(envs, feed_forward().cuda(), n_steps, groups=groups, compile=True) as feed:
            next(feed)
            before = feed._lane.counters.copy()
            next(feed)
            counted.append(feed._lane.counters.since(before))
    costs, n = counted[1].since(counted[0]), 16 * groups
    assert (costs.copies_up, costs.copies_down, costs.host_waits, costs.launches) == (n, n, n, n)
    assert costs.allocations == 0


def test_the_collector_has_priority_over_the_learner(monkeypatch):
    """A graph has the priority of the stream that it was captured in."""
    priorities, capture, launch = set(), CudaLane.capture, CudaLane.launch

    def noting(work):
        return lambda: (priorities.add(torch.cuda.current_stream().priority), work())[1]

    monkeypatch.setattr(CudaLane, "capture", lambda lane, work, *rest: capture(lane, noting(work), *rest))
    monkeypatch.setattr(CudaLane, "launch", lambda lane, work: launch(lane, noting(work)))
    collected(threaded, make_actor=feed_forward, groups=2, compile=True)
    assert torch.cuda.current_stream().priority == 0
    assert priorities == {-1}


def test_the_learner_may_be_on_a_stream_of_its_own():
    assert_identical_on_any_device(
        collected(same, lag=1), collected(threaded, lag=1, stream=torch.cuda.Stream(), sleep=True)
    )


@pytest.mark.parametrize(("device", "actor_device"), [("cuda", "cpu"), ("cpu", "cuda"), ("cpu", "cpu")])
@pytest.mark.parametrize("home", ["cpu", "cuda"])
def test_actor_and_consumer_may_be_on_different_devices(device, actor_device, home):
    options = {"lag": 1, "device": device, "actor_device": actor_device, "home": home}
    expected = collected(same, **options)
    assert {leaf.device.type for leaf in nested.leaves(expected)} == {device}
    assert_identical_on_any_device(expected, collected(threaded, sleep=True, **options))


def test_fragments_that_are_kept_do_not_change():
    torch.manual_seed(0)
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    with threaded.rollout(envs, GruActor().cuda(), N_STEPS, seed=0, lag=2, final=True) as feed:
        kept = [next(feed) for _ in range(N_FRAGMENTS)]
        copies = nested.map(torch.clone, kept)
        for _ in range(N_FRAGMENTS):
            next(feed)
    assert_identical_on_any_device(kept, copies)


def test_neither_learner_nor_collector_synchronizes_implicitly():
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    with threaded.rollout(envs, GruActor().cuda(), N_STEPS, seed=0) as feed:
        next(feed)
        with implicit_synchronization_refused():
            for _ in range(N_FRAGMENTS):
                next(feed)


def test_device_memory_stays_flat():
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    used = []
    with threaded.rollout(envs, GruActor().cuda(), N_STEPS, seed=0, lag=2, final=True) as feed:
        for _ in range(60):
            next(feed)
            torch.cuda.synchronize()
            used.append(torch.cuda.memory_allocated())
    assert does_not_grow(used)


def test_evaluate_runs_on_the_gpu():
    rewards, info = evaluate([gym.make("CartPole-v1") for _ in range(3)], GruActor().cuda(), n_steps=20)
    assert rewards.shape[1] == 3
    assert info["logits"].shape == (len(rewards) + 1, 3, 2)


# ---- captured steps


class Normed(BaseActorModule):
    """Buffers that change in place, and one that is put in another's place."""

    def __init__(self):
        super().__init__()
        self.norm, self.head = torch.nn.BatchNorm1d(4), torch.nn.Linear(4, 2)
        self.register_buffer("count", torch.zeros(()))

    def forward(self, obs, *, hx=None, **ignored):
        self.count = self.count + 1
        logits = self.head(self.norm(obs[0]))[None]
        act = sampling.categorical(logits, generator=self.generator)
        return act, hx, {"logits": logits, "count": self.count.expand(act.shape)}


class Lstm(ActorCritic):
    def __init__(self):
        super().__init__(torch.nn.Linear(8, 2), torch.nn.Linear(8, 1), core=torch.nn.LSTM(4, 8))


ACTORS = {
    "a GRU": (GruActor, "CartPole-v1"),
    "an LSTM": (Lstm, "CartPole-v1"),
    "feed-forward": (lambda: ActorCritic(mlp(4, 64, 2), mlp(4, 64, 1)), "CartPole-v1"),
    "epsilon-greedy": (lambda: QNetwork(mlp(4, 64, 2), epsilon=0.5), "CartPole-v1"),
    # three numbers a row, so that rows begin anywhere
    "real-valued actions": (lambda: GaussianActorCritic(mlp(3, 64, 1), mlp(3, 64, 1), 1), "Pendulum-v1"),
    "buffers": (Normed, "CartPole-v1"),
}


@pytest.mark.parametrize(("make_actor", "env"), ACTORS.values(), ids=ACTORS)
def test_captured_steps_are_the_eager_ones_bit_for_bit(make_actor, env, captures):
    options = {"make_actor": make_actor, "env": env, "lag": 1, "groups": 2}
    expected = collected(same, **options)
    assert not captures
    for engine in (same, threaded):
        assert_identical_on_any_device(expected, collected(engine, compile=True, sleep=engine is threaded, **options))
    assert len(captures) == 2 * 2 * 2 * (REAL_GRAPHS + VIRTUAL_GRAPHS)  # groups, in train and in eval mode, engines


@pytest.mark.parametrize("options", [{"lag": 0}, {"lag": 2, "groups": 3}, {"lag": 1, "sticky": True}], ids=str)
def test_captured_steps_of_sticky_and_short_fragments_are_the_eager_ones(options, captures):
    assert_identical_on_any_device(collected(same, **options), collected(threaded, compile=True, sleep=True, **options))
    assert captures


@pytest.mark.parametrize("device", ["cuda", "cpu"])
def test_captured_steps_of_a_collector_process_are_the_eager_ones(device):
    options = {"lag": 1, "device": device, "actor_device": "cuda", "compile": True}
    expected = collected(same, **options)
    torch.manual_seed(1)
    actor, kept = GruActor().cuda(), []
    with single.rollout(lambda: gym.make("CartPole-v1"), actor, N_STEPS, N_ENVS, seed=3, final=True, **options) as feed:
        for _ in range(N_FRAGMENTS):
            kept.append(nested.map(torch.clone, next(feed)))
            with torch.no_grad():
                for weight in actor.parameters():
                    weight.mul_(0.9)
    assert_identical_on_any_device(expected, kept)


def test_noise_of_captured_steps_goes_on_from_fragment_to_fragment(captures):
    """A graph that did not count what it draws would draw the same again."""

    class Random(BaseActorModule):
        def __init__(self):
            super().__init__()
            self.weight = torch.nn.Parameter(torch.zeros(1))  # for it to be somewhere

        def forward(self, obs, *, fin, hx=None, **ignored):
            noise = torch.rand(fin.shape, device=fin.device, generator=self.generator)
            return fin.long(), hx, {"noise": noise}

    options = {"make_actor": Random, "lag": 1}
    expected, got = collected(same, **options), collected(threaded, compile=True, **options)
    assert_identical_on_any_device(expected, got)
    noise = torch.cat([fragment.actor["noise"][:N_STEPS] for fragment in got])
    assert len(noise.unique()) == noise.numel()
    assert captures


def test_the_learner_may_draw_from_the_global_generator_meanwhile(captures):
    """What it draws is what it would draw beside eager steps: replaying counts the collector's own numbers alone."""

    def drawn(**options):
        torch.manual_seed(1)
        actor, numbers = GruActor().cuda(), []
        with threaded.rollout(
            [gym.make("CartPole-v1") for _ in range(N_ENVS)], actor, N_STEPS, seed=3, lag=2, **options
        ) as feed:
            for _ in range(N_FRAGMENTS):
                next(feed)
                numbers += [torch.rand(64, device="cuda") for _ in range(50)]
        return torch.stack(numbers)

    assert torch.equal(drawn(), drawn(compile=True))
    assert captures


class Reading(GruActor):
    def forward(self, obs, **inputs):
        scale = 2.0 if obs.sum().item() > 0 else 1.0
        return super().forward(obs * scale, **inputs)


def test_a_step_that_reads_on_the_host_runs_eagerly_with_one_warning_that_says_why(captures):
    expected = collected(same, make_actor=Reading)
    with pytest.warns(RuntimeWarning, match="runs eagerly, since the host has to wait") as caught:
        assert_identical_on_any_device(expected, collected(threaded, lag=0, make_actor=Reading, compile=True))
    assert len(caught) == 1
    assert not captures


@pytest.mark.parametrize("engine", [same, threaded])
def test_where_capturing_fails_steps_run_eagerly(engine, monkeypatch):
    """The stream, the allocator, and both the own and the global generator are as if nobody had tried."""
    really, spoilt = CudaLane.capture, []

    def capture(lane, work, generators, key=0):
        def spoiling():
            work()
            spoilt.append(threading.current_thread())
            torch.ones(1, device="cuda").item()

        return really(lane, spoiling, generators, key)

    expected = collected(same)
    monkeypatch.setattr(CudaLane, "capture", capture)
    with pytest.warns(RuntimeWarning, match="runs eagerly, since capturing it failed with") as caught:
        got = collected(engine, lag=0, compile=True)
    assert_identical_on_any_device(expected, got)
    assert (len(caught), len(spoilt)) == (1, 1)
    torch.rand(3, device="cuda")
    before = torch.cuda.memory_stats()["active_bytes.all.current"]
    big = torch.ones(2**20, device="cuda")
    big.record_stream(torch.cuda.Stream())  # the allocator would put it off for as long as it believes in a capture
    del big
    torch.cuda.synchronize()
    torch.ones(1, device="cuda")
    assert torch.cuda.memory_stats()["active_bytes.all.current"] <= before + 1024
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(1, device="cuda")
    with torch.cuda.graph(graph):
        x += 1
    graph.replay()
    assert x.item() == 1


@pytest.mark.parametrize("key", [0, 1])
def test_a_capture_works_after_one_that_failed(key):
    """With the key of the failed capture, and with that of an earlier graph, which is dropped after the failure."""
    device = torch.device("cuda", 0)
    lane, x, generator = CudaLane(device, device), torch.zeros(3, device=device), torch.Generator(device)

    def adds():
        x.add_(torch.ones_like(x))

    def fails():
        adds()
        x.sum().item()

    torch.cuda.synchronize()
    with lane.collecting():
        earlier = lane.capture(adds, [generator], 0)
        with pytest.raises(RuntimeError):
            lane.capture(fails, [generator], 1)
        del earlier
        again = lane.capture(adds, [generator], key)
        for _ in range(3):
            lane.launch(again)
    torch.cuda.synchronize()
    assert x.tolist() == [3.0] * 3


def test_captured_steps_neither_synchronize_implicitly_nor_leak_memory(captures):
    envs, used = [gym.make("CartPole-v1") for _ in range(N_ENVS)], []
    with threaded.rollout(envs, GruActor().cuda(), N_STEPS, seed=0, lag=2, final=True, compile=True) as feed:
        next(feed)
        with implicit_synchronization_refused():
            for _ in range(60):
                next(feed)
                used.append(torch.cuda.memory_allocated())
    assert does_not_grow(used)
    assert captures


def test_a_learner_may_capture_a_graph_of_its_own_inside_a_pause(captures):
    graph, x = torch.cuda.CUDAGraph(), torch.zeros(4, device="cuda")
    expected = collected(same, lag=1)
    torch.manual_seed(1)
    actor, kept = GruActor().cuda(), []
    envs = [gym.make("CartPole-v1") for _ in range(N_ENVS)]
    with threaded.rollout(envs, actor, N_STEPS, seed=3, lag=1, final=True, compile=True) as feed:
        for j in range(N_FRAGMENTS):
            kept.append(nested.map(torch.clone, next(feed)))
            if j == 1:
                with feed.pause(), torch.cuda.graph(graph):
                    x += 1
            if j > 1:
                graph.replay()
            with torch.no_grad():
                for weight in actor.parameters():
                    weight.mul_(0.9)
    assert_identical_on_any_device(expected, kept)
    assert x.tolist() == [N_FRAGMENTS - 2] * 4


def test_capturing_prints_and_warns_nothing(captures):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        collected(threaded, compile=True)
    assert captures


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(ValueError, match="CUDA devices"):
        same.rollout([gym.make("CartPole-v1")], GruActor(), 5, device=f"cuda:{torch.cuda.device_count()}")
